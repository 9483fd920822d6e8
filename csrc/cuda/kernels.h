// The CUDA kernels: plain pointers to memory of the current device, sizes, and a stream (a cudaStream_t).
//
// Every call is asynchronous on the stream: none allocates, synchronises or asks the device anything, so
// all can be captured into a graph. A call with an empty result launches nothing. A launch that fails
// throws Error with CUDA's own text; sizes that the kernel cannot take throw InvalidArgument before.
// Sizes are 64-bit throughout. Speed depends on alignment, results do not: where pointers and row strides
// are multiples of 16 bytes, memory is read and written in 16-byte accesses.
#pragma once

#include <cstdint>

#include "sparse24.h"

namespace sparse24::cuda {

// ---- masks (kept = 1) of a contiguous weight [rows, cols]: fp32, fp16, bf16 ----

// 2:4 along cols by the rules of sparse24::nm_mask.
void mask24(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, void* stream);

// Also zeroes what the mask prunes, in place; mask may be null.
void prune24(void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, void* stream);

// The same bits as sparse24::transposable_mask. rows and cols are multiples of 4.
void transposable_mask(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                       void* stream);

// ---- canonical format, every dtype ----

// As sparse24::compress, except that a crowded group throws nothing: the smallest row * (padded / 4) + group
// of a group with more than two non-zeros is left in *first_crowded (device memory), which the caller has set to
// INT64_MAX, and the group keeps its first two.
void compress(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
              void* values, std::uint8_t* indices, std::int64_t* first_crowded, void* stream);

// dense [dense_rows, dense_cols], contiguous, both at least the weight's: rows and columns beyond it become
// zero, so a shape padded to what a product needs is written in one pass. Does not check the indices; damaged
// ones give a wrong weight but stay in bounds.
void expand(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
            void* dense, std::int64_t dense_rows, std::int64_t dense_cols, void* stream);

// ---- operands of products ----

// The patches of a channels_last image as rows of a matrix. Row i is token first_token + i of the
// batch * out_h * out_w output pixels; its columns are (r, s, c) with c padded to a multiple of 4, as in the
// weight of SparseConv2d. Padding of every kind is zero, up to column k_padded; columns from there to ld are
// not written. A part of the tokens at a time keeps the matrix of a large batch small.
struct Im2col {
  const void* x;     // [batch, height, width, channels], contiguous
  void* matrix;      // [tokens, ld], at a multiple of 16 bytes
  int element_size;  // 1, 2 or 4 bytes
  std::int64_t batch, height, width, channels;
  std::int64_t first_channel, group_channels;  // the slice that belongs to one group of the convolution
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::int64_t k_padded;  // a multiple of 4, at least kernel_h * kernel_w * round_up(group_channels, 4)
  std::int64_t ld;        // elements between rows: at least k_padded, a multiple of 16 bytes
  std::int64_t first_token, tokens;
};
void im2col(const Im2col& args, void* stream);

// Symmetric int8 or float8_e4m3fn, a scale for each of the n rows: out [n, k_padded] = round_half_even(x * (largest /
// absmax)), in fp32, with zeros from k on; scale [n] = absmax / largest, so that x is about out * scale; largest is 127
// or 448. Where `given` (device, [1], or null) is not 0, it is the scale of all rows, out is x * (1 / given), and what
// is beyond the largest saturates. x (fp32, fp16, bf16) has row_stride elements between rows. A row whose absmax is
// below largest * 2^-126 (scale would not be a normal number) counts as zeros: out 0, scale 1, or given. A row that
// holds NaN or Inf gives out 0 and scale NaN: its product is NaN throughout instead of silently finite.
void quantize_per_token(const void* x, DType dtype, std::int64_t n, std::int64_t k, std::int64_t row_stride, void* out,
                        DType out_dtype, std::int64_t k_padded, const float* given, float* scale, void* stream);

// ---- products ----

// y [n, m] = activation(scale * (x [n, k] W^T) + bias) for at most kFewTokens tokens, the weight [m, padded] in the
// canonical form, of x's dtype (fp32, fp16, bf16) or int8. Sums are fp32, in an order that the sizes give, and rounded
// once. Damaged indices give wrong numbers but stay in bounds.
constexpr int kFewTokens = 16;
struct FewTokens {
  const void* x;
  std::int64_t n, k, x_stride;  // elements between tokens
  const void* values;           // [m, padded / 2]
  const std::uint8_t* indices;  // [m, padded / 8]
  std::int64_t m, padded;       // padded: k rounded up to 8
  const float* scale;           // [m], or null
  const void* bias;             // [m], of x's dtype, or null
  Activation activation;
  void* y;  // [n, m], of x's dtype, contiguous
};
void few_tokens(const FewTokens& args, DType x, DType weight, void* stream);

// out [n, m] = activation(token_scale * row_scale * product + bias), contiguous; the product int32 or fp32, out fp32,
// fp16, bf16 or int8 (to nearest even, saturated). In fp32, in that order, rounded once.
struct Epilogue {
  const void* product;
  std::int64_t n, m;
  const float* token_scale;  // [n], or null
  const float* row_scale;    // [m], or null
  const float* bias;         // [m], or null
  Activation activation;
  void* out;
};
void epilogue(const Epilogue& args, DType product, DType out, void* stream);

}  // namespace sparse24::cuda
