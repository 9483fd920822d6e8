// The C++ API of sparse24. Knows pointers, sizes and threads; nothing of torch or Python.
//
// Canonical compressed layout of a weight [rows, cols] (the same on every device):
//   values   [rows, padded/2]  the two kept values of every group of four, in column order
//   indices  [rows, padded/8]  2 bits a kept value, low bits first
// with padded = cols rounded up to 8. A group with fewer than two non-zeros is filled with zero
// slots at its lowest free columns, so the two indices of a group always increase.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sparse24 {

enum class DType { kFloat32, kFloat16, kBFloat16, kInt8, kFloat8 };
enum class Activation { kNone, kRelu, kGelu, kGeluTanh };
enum class MemoryFormat { kContiguous, kChannelsLast };

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// ---- canonical format (format.cpp: scalar, the definition of correct) ----

// dense [rows, cols] with row_stride elements between rows. Throws InvalidArgument that names the
// row and the group when a group holds more than two non-zeros. Negative zero counts as zero.
void compress(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
              void* values, std::uint8_t* indices);

// Throws sparse24::InvalidArgument when the two indices of a group do not increase (a damaged
// checkpoint), naming the row and the group.
void check_indices(const std::uint8_t* indices, std::int64_t rows, std::int64_t padded);

// dense [rows, padded], contiguous. Checks the indices.
void expand(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
            void* dense);

// ---- masks (kept = 1). Groups of m run along the middle axis of [outer, length, inner]. ----
// Magnitudes compare by their bits: NaN ranks above Inf, so it is never pruned silently; ties go to
// the lower index. A last group shorter than m keeps its min(n, size) largest.

void nm_mask(const void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
             std::uint8_t* mask, int threads);

// Zeroes what the mask prunes, in place and in the same pass; mask may be null.
void nm_prune(void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
              std::uint8_t* mask, int threads);

// The 4x4 pattern with two kept per row and per column (90 of them) of largest sum of magnitudes.
// weight [rows, cols], both multiples of 4.
void transposable_mask(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                       int threads);

// ---- products on the CPU: fp32, weight packed into panels for the chosen instruction set ----

// "avx512", "avx2", "neon" or "scalar": the best that the machine runs, or SPARSE24_CPU_ISA.
std::string cpu_isa();

std::int64_t panels_bytes(std::int64_t rows, std::int64_t padded);

// values and indices in canonical layout (fp32, fp16 or bf16 values); panels 64-byte aligned.
void pack(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
          void* panels);

// y [n, m] = activation(x [n, k] W^T + bias). x rows have x_stride elements between them.
struct Linear {
  const void* panels;
  const float* x;
  const float* bias;  // null: none
  float* y;
  std::int64_t n, m, k, x_stride;
  Activation activation;
  int threads;
};
void linear(const Linear& args);

// y = activation(conv2d(x, W) + bias), W [out_channels, R*S*C] with k ordered (r, s, c), the C
// input channels of a group padded to a multiple of 4. x and y have the same memory format.
struct Conv2d {
  const void* panels;  // of groups * (out_channels / groups) rows, packed group by group
  const float* x;
  const float* bias;
  float* y;
  std::int64_t batch, in_channels, height, width, out_channels;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::int64_t groups;
  MemoryFormat format;
  Activation activation;
  int threads;
};
void conv2d(const Conv2d& args);

}  // namespace sparse24
