// The Python module sparse24._C. Pointers arrive as integers; sparse24.ops has checked every argument.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "error.h"
#include "sparse24.h"

namespace py = pybind11;
using namespace sparse24;

void bind_cusparselt(py::module_& m);  // cusparselt/bindings.cpp
void bind_machine(py::module_& m);     // cpu/bindings.cpp
void bind_mask_bits(py::module_& m);   // cpu/masks/bindings.cpp
void bind_prune(py::module_& m);       // cpu/prune/bindings.cpp
void bind_calls(py::module_& m);       // bindings_calls.cpp
void bind_launches(py::module_& m);    // bindings_launches.cpp

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(int code) { return static_cast<DType>(code); }

// (values, indices, dtype, rows, padded, scale or 0)
using WeightArguments = std::tuple<Address, Address, int, std::int64_t, std::int64_t, Address>;

Weight weight_of(const WeightArguments& a) {
  const auto [values, indices, dtype, rows, padded, scale] = a;
  return {at<void>(values), at<std::uint8_t>(indices), dtype_of(dtype), rows, padded, at<float>(scale)};
}

// (precision, quantize, input_scale, output_scale): how exactly float32 is multiplied, what becomes of x before int8,
// and of y
using ModeArguments = std::tuple<int, int, float, float>;

template <typename Product>
Product with_mode(Product product, const ModeArguments& mode) {
  product.precision = static_cast<Precision>(std::get<0>(mode));
  product.quantize = static_cast<Quantize>(std::get<1>(mode));
  product.input_scale = std::get<2>(mode);
  product.output_scale = std::get<3>(mode);
  return product;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled kernels of sparse24. Use sparse24.ops, which checks the arguments.";
  py::register_exception<Error>(m, "Error", PyExc_RuntimeError);
  const py::call_guard<py::gil_scoped_release> free_gil;

  bind_cusparselt(m);
  m.def("cpu_isa", &cpu_isa);
  m.def(
      "compress",
      [](Address dense, int dtype, std::int64_t rows, std::int64_t cols, Address values, Address indices) {
        compress(at<void>(dense), dtype_of(dtype), rows, cols, cols, at<void>(values), at<std::uint8_t>(indices));
      },
      py::arg("dense"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("values"), py::arg("indices"),
      free_gil);
  m.def(
      "find_crowded",
      [](Address dense, int dtype, std::int64_t rows, std::int64_t cols) {
        return find_crowded(at<void>(dense), dtype_of(dtype), rows, cols, cols);
      },
      py::arg("dense"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), free_gil);
  m.def(
      "expand",
      [](Address values, Address indices, int dtype, std::int64_t rows, std::int64_t padded, Address dense) {
        expand(at<void>(values), at<std::uint8_t>(indices), dtype_of(dtype), rows, padded, at<void>(dense));
      },
      py::arg("values"), py::arg("indices"), py::arg("dtype"), py::arg("rows"), py::arg("padded"), py::arg("dense"),
      free_gil);
  m.def(
      "nm_mask",
      [](Address weight, int dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
         Address mask, int threads) {
        nm_mask(at<void>(weight), dtype_of(dtype), outer, length, inner, n, m, at<std::uint8_t>(mask), threads);
      },
      py::arg("weight"), py::arg("dtype"), py::arg("outer"), py::arg("length"), py::arg("inner"), py::arg("n"),
      py::arg("m"), py::arg("mask"), py::arg("threads"), free_gil);
  m.def(
      "nm_prune",
      [](Address weight, int dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
         Address mask, int threads) {
        nm_prune(at<void>(weight), dtype_of(dtype), outer, length, inner, n, m, at<std::uint8_t>(mask), threads);
      },
      py::arg("weight"), py::arg("dtype"), py::arg("outer"), py::arg("length"), py::arg("inner"), py::arg("n"),
      py::arg("m"), py::arg("mask"), py::arg("threads"), free_gil);
  m.def(
      "transposable_mask",
      [](Address weight, int dtype, std::int64_t rows, std::int64_t cols, Address mask, int threads) {
        transposable_mask(at<void>(weight), dtype_of(dtype), rows, cols, at<std::uint8_t>(mask), threads);
      },
      py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("mask"), py::arg("threads"),
      free_gil);
  m.def("cpu_isas", [] {
    std::vector<std::pair<std::string, std::string>> all;
    for (const CpuIsa& isa : cpu_isas()) all.emplace_back(isa.name, isa.problem);
    return all;
  });
  m.def(
      "linear",
      [](const WeightArguments& weight, int dtype, Address x, Address bias, Address y, std::int64_t n, std::int64_t k,
         std::int64_t x_stride, int activation, int threads, const ModeArguments& mode) {
        const Weight w = weight_of(weight);
        linear(with_mode(Linear{w, dtype_of(dtype), at<void>(x), at<void>(bias), at<void>(y), n, w.rows, k, x_stride,
                                static_cast<Activation>(activation), threads},
                         mode));
      },
      py::arg("weight"), py::arg("dtype"), py::arg("x"), py::arg("bias"), py::arg("y"), py::arg("n"), py::arg("k"),
      py::arg("x_stride"), py::arg("activation"), py::arg("threads"), py::arg("mode"), free_gil);
  m.def(
      "conv2d",
      [](const WeightArguments& weight, int dtype, Address x, Address bias, Address y,
         const std::array<std::int64_t, 4>& shape, const std::array<std::int64_t, 9>& window, bool channels_last,
         int activation, int threads, const ModeArguments& mode) {
        const auto [batch, in_channels, height, width] = shape;
        const auto [r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups] = window;
        const Weight w = weight_of(weight);
        conv2d(with_mode(Conv2d{w,
                                dtype_of(dtype),
                                at<void>(x),
                                at<void>(bias),
                                at<void>(y),
                                batch,
                                in_channels,
                                height,
                                width,
                                w.rows,
                                r,
                                s,
                                stride_h,
                                stride_w,
                                pad_h,
                                pad_w,
                                dilation_h,
                                dilation_w,
                                groups,
                                channels_last ? MemoryFormat::kChannelsLast : MemoryFormat::kContiguous,
                                static_cast<Activation>(activation),
                                threads},
                         mode));
      },
      py::arg("weight"), py::arg("dtype"), py::arg("x"), py::arg("bias"), py::arg("y"), py::arg("shape"),
      py::arg("window"), py::arg("channels_last"), py::arg("activation"), py::arg("threads"), py::arg("mode"),
      free_gil);
  bind_machine(m);
  bind_mask_bits(m);
  bind_prune(m);
  bind_calls(m);
  bind_launches(m);  // after cuSPARSELt, whose types it takes
}
