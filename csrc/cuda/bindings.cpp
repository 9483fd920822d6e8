// The Python module sparse24._CUDA. Pointers and streams arrive as integers; the operators have checked every
// argument. Importing it needs no driver: the CUDA runtime is linked in, and looks for one at the first launch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "error.h"
#include "few_tokens_call.h"
#include "kernels.h"

namespace py = pybind11;
using namespace sparse24;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(int code) { return static_cast<DType>(code); }

bool launch_few_tokens(const FewTokensCall* c) noexcept {
  try {
    const auto dtype = dtype_of(c->dtype);
    cuda::few_tokens({c->x, c->n, c->k, c->x_stride, c->values, c->indices, c->m, round_up(c->k, 8), nullptr, c->bias,
                      static_cast<Activation>(c->activation), c->y},
                     dtype, dtype, c->stream);
  } catch (const std::exception&) {
    return false;  // the long way meets it again, and has the words
  }
  return true;
}

// One Error in Python for all backends: the class that sparse24._C registers.
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    py::set_error(py::module_::import("sparse24._C").attr("Error"), error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_CUDA, m) {
  m.doc() = "The CUDA kernels of sparse24. Use sparse24.ops, which checks the arguments.";
  py::register_local_exception_translator(translate);
  const py::call_guard<py::gil_scoped_release> free_gil;

  m.def(
      "mask24",
      [](Address weight, int dtype, std::int64_t rows, std::int64_t cols, Address mask, Address stream) {
        cuda::mask24(at<void>(weight), dtype_of(dtype), rows, cols, at<std::uint8_t>(mask), at<void>(stream));
      },
      py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("mask"), py::arg("stream"),
      free_gil);
  m.def(
      "prune24",
      [](Address weight, int dtype, std::int64_t rows, std::int64_t cols, Address mask, Address stream) {
        cuda::prune24(at<void>(weight), dtype_of(dtype), rows, cols, at<std::uint8_t>(mask), at<void>(stream));
      },
      py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("mask"), py::arg("stream"),
      free_gil);
  m.def(
      "transposable_mask",
      [](Address weight, int dtype, std::int64_t rows, std::int64_t cols, Address mask, Address stream) {
        cuda::transposable_mask(at<void>(weight), dtype_of(dtype), rows, cols, at<std::uint8_t>(mask),
                                at<void>(stream));
      },
      py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("mask"), py::arg("stream"),
      free_gil);
  m.def(
      "compress",
      [](Address dense, int dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride, Address values,
         Address indices, Address first_crowded, Address stream) {
        cuda::compress(at<void>(dense), dtype_of(dtype), rows, cols, row_stride, at<void>(values),
                       at<std::uint8_t>(indices), at<std::int64_t>(first_crowded), at<void>(stream));
      },
      py::arg("dense"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"), py::arg("values"),
      py::arg("indices"), py::arg("first_crowded"), py::arg("stream"), free_gil);
  m.def(
      "expand",
      [](Address values, Address indices, int dtype, std::int64_t rows, std::int64_t padded, Address dense,
         std::int64_t dense_rows, std::int64_t dense_cols, Address stream) {
        cuda::expand(at<void>(values), at<std::uint8_t>(indices), dtype_of(dtype), rows, padded, at<void>(dense),
                     dense_rows, dense_cols, at<void>(stream));
      },
      py::arg("values"), py::arg("indices"), py::arg("dtype"), py::arg("rows"), py::arg("padded"), py::arg("dense"),
      py::arg("dense_rows"), py::arg("dense_cols"), py::arg("stream"), free_gil);
  m.def(
      "im2col",
      [](Address x, Address matrix, int element_size, const std::array<std::int64_t, 4>& image,
         const std::array<std::int64_t, 2>& channel_slice, const std::array<std::int64_t, 8>& window,
         std::int64_t k_padded, std::int64_t ld, const std::array<std::int64_t, 2>& token_range, Address stream) {
        const auto [batch, height, width, channels] = image;
        const auto [r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w] = window;
        const cuda::Im2col args{at<void>(x),
                                at<void>(matrix),
                                element_size,
                                batch,
                                height,
                                width,
                                channels,
                                channel_slice[0],
                                channel_slice[1],
                                r,
                                s,
                                stride_h,
                                stride_w,
                                pad_h,
                                pad_w,
                                dilation_h,
                                dilation_w,
                                k_padded,
                                ld,
                                token_range[0],
                                token_range[1]};
        py::gil_scoped_release free;
        cuda::im2col(args, at<void>(stream));
      },
      py::arg("x"), py::arg("matrix"), py::arg("element_size"), py::arg("image"), py::arg("channel_slice"),
      py::arg("window"), py::arg("k_padded"), py::arg("ld"), py::arg("token_range"), py::arg("stream"));
  m.def(
      "epilogue",
      [](Address product, int dtype, std::int64_t n, std::int64_t columns, Address token_scale, Address row_scale,
         Address bias, int activation, Address out, int out_dtype, Address stream) {
        const cuda::Epilogue args{at<void>(product),
                                  n,
                                  columns,
                                  at<float>(token_scale),
                                  at<float>(row_scale),
                                  at<float>(bias),
                                  static_cast<Activation>(activation),
                                  at<void>(out)};
        cuda::epilogue(args, dtype_of(dtype), dtype_of(out_dtype), at<void>(stream));
      },
      py::arg("product"), py::arg("dtype"), py::arg("n"), py::arg("m"), py::arg("token_scale"), py::arg("row_scale"),
      py::arg("bias"), py::arg("activation"), py::arg("out"), py::arg("out_dtype"), py::arg("stream"), free_gil);
  m.attr("FEW_TOKENS") = cuda::kFewTokens;
  m.attr("few_tokens_function") = reinterpret_cast<Address>(static_cast<FewTokensFunction>(&launch_few_tokens));
  m.def(
      "few_tokens",
      [](Address x, int dtype, std::int64_t n, std::int64_t k, std::int64_t x_stride, Address values, int weight_dtype,
         Address indices, std::int64_t m, Address scale, Address bias, int activation, Address y, Address stream) {
        const cuda::FewTokens args{at<void>(x),
                                   n,
                                   k,
                                   x_stride,
                                   at<void>(values),
                                   at<std::uint8_t>(indices),
                                   m,
                                   round_up(k, 8),
                                   at<float>(scale),
                                   at<void>(bias),
                                   static_cast<Activation>(activation),
                                   at<void>(y)};
        cuda::few_tokens(args, dtype_of(dtype), dtype_of(weight_dtype), at<void>(stream));
      },
      py::arg("x"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("x_stride"), py::arg("values"),
      py::arg("weight_dtype"), py::arg("indices"), py::arg("m"), py::arg("scale"), py::arg("bias"),
      py::arg("activation"), py::arg("y"), py::arg("stream"), free_gil);
  m.def(
      "quantize_per_token",
      [](Address x, int dtype, std::int64_t n, std::int64_t k, std::int64_t row_stride, Address out, int out_dtype,
         std::int64_t k_padded, Address given, Address scale, Address stream) {
        cuda::quantize_per_token(at<void>(x), dtype_of(dtype), n, k, row_stride, at<void>(out), dtype_of(out_dtype),
                                 k_padded, at<float>(given), at<float>(scale), at<void>(stream));
      },
      py::arg("x"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("row_stride"), py::arg("out"),
      py::arg("out_dtype"), py::arg("k_padded"), py::arg("given"), py::arg("scale"), py::arg("stream"), free_gil);
}
