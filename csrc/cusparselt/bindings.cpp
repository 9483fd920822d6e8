// The cuSPARSELt part of sparse24._C. Addresses and streams arrive as integers.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "sparse24.h"

namespace py = pybind11;
using namespace sparse24;
using namespace sparse24::cusparselt;

void bind_cusparselt(py::module_& m);

namespace {

using Address = std::uintptr_t;
using Bytes = std::tuple<std::size_t, std::size_t, std::size_t>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Bytes tuple_of(const Sizes& sizes) { return {sizes.blob, sizes.compress_buffer, sizes.workspace}; }

using BufferAddresses = std::array<Address, 10>;

SearchBuffers search_buffers(const BufferAddresses& addresses) {
  const auto [dense, x, y, bias, scale, blob, compress_buffer, workspace, flush, flush_bytes] = addresses;
  return {
      at<void>(dense),           at<void>(x),         at<void>(y),     at<void>(bias), at<float>(scale), at<void>(blob),
      at<void>(compress_buffer), at<void>(workspace), at<void>(flush), flush_bytes};
}

void bind_types(py::module_& m) {
  py::class_<Algorithm>(m, "Algorithm")
      .def(py::init([](int id, int split_k, int split_k_mode, int split_k_buffers) {
             return Algorithm{id, split_k, split_k_mode, split_k_buffers};
           }),
           py::arg("id") = 0, py::arg("split_k") = 0, py::arg("split_k_mode") = 0, py::arg("split_k_buffers") = -1)
      .def_readonly("id", &Algorithm::id)
      .def_readonly("split_k", &Algorithm::split_k)
      .def_readonly("split_k_mode", &Algorithm::split_k_mode)
      .def_readonly("split_k_buffers", &Algorithm::split_k_buffers)
      .def("__eq__", [](const Algorithm& self, const Algorithm& other) { return self == other; })
      .def("__hash__", [](const Algorithm& self) {
        return py::hash(py::make_tuple(self.id, self.split_k, self.split_k_mode, self.split_k_buffers));
      });
  py::class_<Product>(m, "Product")
      .def(py::init([](int in, int out, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t x_stride,
                       std::int64_t y_stride, const std::array<std::int64_t, 3>& batches, int activation,
                       const std::array<float, 2>& relu_bounds, bool has_bias, bool scale_per_row,
                       const Algorithm& algorithm) {
             return Product{static_cast<DType>(in),
                            static_cast<DType>(out),
                            m,
                            n,
                            k,
                            x_stride,
                            y_stride,
                            batches[0],
                            batches[1],
                            batches[2],
                            static_cast<Activation>(activation),
                            relu_bounds[0],
                            relu_bounds[1],
                            has_bias,
                            scale_per_row,
                            algorithm};
           }),
           py::arg("dtype"), py::arg("out_dtype"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("x_stride"),
           py::arg("y_stride"), py::arg("batches"), py::arg("activation"), py::arg("relu_bounds"), py::arg("has_bias"),
           py::arg("scale_per_row"), py::arg("algorithm"))
      .def_readonly("m", &Product::m)
      .def_readonly("n", &Product::n)
      .def_readonly("k", &Product::k)
      .def_readonly("algorithm", &Product::algorithm)
      .def("__str__", &describe);
  py::class_<BlobKey>(m, "BlobKey")
      .def("__eq__", [](const BlobKey& self, const BlobKey& other) { return self == other; })
      .def("__hash__",
           [](const BlobKey& self) {
             return py::hash(py::make_tuple(self.device, self.m, self.k, self.algorithm.id, self.algorithm.split_k));
           })
      .def_property_readonly("out_dtype", [](const BlobKey& self) { return static_cast<int>(self.out); });
  py::class_<Trial>(m, "Trial")
      .def_readonly("algorithm", &Trial::algorithm)
      .def_readonly("microseconds", &Trial::microseconds)
      .def_readonly("error", &Trial::error)
      .def_readonly("refused", &Trial::refused);
  py::class_<Search>(m, "Search")
      .def(py::init([](int device, const Product& product, const BufferAddresses& buffers, Address stream) {
             return std::make_unique<Search>(device, product, search_buffers(buffers), at<void>(stream));
           }),
           py::arg("device"), py::arg("product"), py::arg("buffers"), py::arg("stream"))
      .def("try_out", &Search::try_out, py::arg("algorithm"), py::arg("launches"),
           py::call_guard<py::gil_scoped_release>());
}

void bind_library(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> free_gil;
  m.def("cusparselt_set_search_paths", &set_search_paths, py::arg("cusparselt"), py::arg("cudart"), free_gil);
  m.def("cusparselt_library", [] {
    const Library found = library();
    return std::make_tuple(found.version, found.path, found.cudart_path, found.caveat);
  });
  m.def("cusparselt_driver", [] {
    const Driver found = driver();
    return std::make_tuple(found.driver_version, found.runtime_version, found.devices, found.problem);
  });
  m.def("cusparselt_why_unusable", &why_unusable, py::arg("device"), free_gil);
  m.def(
      "cusparselt_open_device",
      [](int device) {
        const Device found = open_device(device);
        return std::make_tuple(found.sm, found.multiprocessors);
      },
      py::arg("device"), free_gil);
  m.def("cusparselt_why_illegal", &why_illegal, py::arg("product"), py::arg("sm"), py::arg("version"));
  m.def(
      "cusparselt_multiples",
      [](int dtype, int out_dtype) {
        const Multiples of = multiples(static_cast<DType>(dtype), static_cast<DType>(out_dtype));
        return std::make_tuple(of.m, of.n, of.k, of.x_stride, of.y_stride);
      },
      py::arg("dtype"), py::arg("out_dtype"));
  m.def("cusparselt_is_capturing", [](Address stream) { return is_capturing(at<void>(stream)); }, py::arg("stream"));
  m.def("cusparselt_synchronize", [](Address stream) { synchronize(at<void>(stream)); }, py::arg("stream"), free_gil);
  m.def("cusparselt_set_plan_capacity", &set_plan_capacity, py::arg("plans"));
  m.def("cusparselt_plans_cached", &plans_cached);
  m.def("cusparselt_release_thread", &release_thread, free_gil);
}

void bind_search(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> free_gil;
  m.def(
      "cusparselt_algorithms",
      [](int device, const Product& product, Address stream) { return algorithms(device, product, at<void>(stream)); },
      py::arg("device"), py::arg("product"), py::arg("stream"), free_gil);
  m.def(
      "cusparselt_search_sizes",
      [](int device, const Product& product, Address stream) {
        return tuple_of(search_sizes(device, product, at<void>(stream)));
      },
      py::arg("device"), py::arg("product"), py::arg("stream"), free_gil);
  m.def(
      "cusparselt_library_search",
      [](int device, const Product& product, const BufferAddresses& buffers, int launches, Address stream) {
        return library_search(device, product, search_buffers(buffers), launches, at<void>(stream));
      },
      py::arg("device"), py::arg("product"), py::arg("buffers"), py::arg("launches"), py::arg("stream"), free_gil);
}

}  // namespace

void bind_cusparselt(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> free_gil;
  bind_types(m);
  bind_library(m);
  m.def(
      "cusparselt_sizes",
      [](int device, const Product& product, Address bias, Address stream) {
        return tuple_of(sizes(device, product, at<void>(stream), at<void>(bias)));
      },
      py::arg("device"), py::arg("product"), py::arg("bias"), py::arg("stream"), free_gil);
  m.def("cusparselt_blob_key", &blob_key, py::arg("device"), py::arg("product"), free_gil);
  m.def(
      "cusparselt_compress",
      [](int device, const Product& product, Address bias, Address dense, Address blob, Address buffer,
         Address stream) {
        return compress(device, product, at<void>(dense), at<void>(blob), at<void>(buffer), at<void>(stream),
                        at<void>(bias));
      },
      py::arg("device"), py::arg("product"), py::arg("bias"), py::arg("dense"), py::arg("blob"), py::arg("buffer"),
      py::arg("stream"), free_gil);
  m.def(
      "cusparselt_matmul",
      [](int device, const Product& product, const BlobKey& key, Address blob, Address x, Address y, Address bias,
         Address scale, float alpha, Address workspace, std::size_t workspace_bytes, Address stream) {
        matmul(device, product,
               {at<void>(blob), key, at<void>(x), at<void>(y), at<void>(bias), at<float>(scale), alpha,
                at<void>(workspace), workspace_bytes},
               at<void>(stream));
      },
      py::arg("device"), py::arg("product"), py::arg("key"), py::arg("blob"), py::arg("x"), py::arg("y"),
      py::arg("bias"), py::arg("scale"), py::arg("alpha"), py::arg("workspace"), py::arg("workspace_bytes"),
      py::arg("stream"), free_gil);
  bind_search(m);
}
