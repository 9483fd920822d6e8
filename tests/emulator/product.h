// D = activation(alpha op(A) op(B) + beta C + bias): sums in double, epilogue in float.
#pragma once

#include "numbers.h"
#include "rules.h"
#include "sparsity.h"

namespace emulator {

// The other operand of a product: element (k, column) of one batch.
struct DenseOperand {
  const unsigned char* data;
  DataType type;
  std::int64_t k, columns, k_stride, column_stride;
  Tf32 tf32;  // how fp32 is rounded to it
  float at(std::int64_t kk, std::int64_t column) const {
    const unsigned char* element = data + bytes(type, kk * k_stride + column * column_stride);
    return load_operand(element, type, tf32);
  }
};

// Calls finish(row, column, sum) once for every output. The products of two operands are exact in double, and so
// are sums of integers. A panel of kWidth columns in double stays in the cache while all rows pass over it.
template <typename Finish>
void multiply(const KeptRows& kept, std::int64_t rows, const DenseOperand& dense, const Finish& finish) {
  using Lane = double __attribute__((vector_size(16)));
  constexpr int kLanes = 8, kWidth = 2 * kLanes;
  std::vector<Lane> panel(static_cast<std::size_t>(dense.k * kLanes));
  for (std::int64_t first = 0; first < dense.columns; first += kWidth) {
    const int width = static_cast<int>(std::min<std::int64_t>(kWidth, dense.columns - first));
    for (std::int64_t kk = 0; kk < dense.k; ++kk) {
      Lane* line = &panel[static_cast<std::size_t>(kk * kLanes)];
      for (int column = 0; column < width; ++column) line[column / 2][column % 2] = dense.at(kk, first + column);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t* columns = &kept.columns[static_cast<std::size_t>(row * kept.per_row)];
      const float* values = &kept.values[static_cast<std::size_t>(row * kept.per_row)];
      Lane sums[kLanes] = {};
      for (std::int64_t i = 0; i < kept.per_row; ++i) {
        const Lane* line = &panel[static_cast<std::size_t>(columns[i]) * kLanes];
        const Lane value = {values[i], values[i]};
#pragma GCC unroll 8
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += value * line[lane];
      }
      for (int column = 0; column < width; ++column) finish(row, first + column, sums[column / 2][column % 2]);
    }
  }
}

// The tanh form (measured on int8).
float gelu(float value);
// measured: at or below the threshold a zero of the value's sign (fp8 on sm_120: +0); above it at most the bound.
// Assumed: NaN stays.
float relu(float value, float threshold, float upper_bound, bool signed_zero = true);

// The values of one call, beside what its plan fixed.
struct MatmulCall {
  std::shared_ptr<const Problem> problem;
  float alpha, beta;  // read when the call was made, unless there are vectors
  const void *alpha_vector, *beta_vector;
  const void *a, *b, *c;
  void *d, *workspace;
  Pointers pointers;
};

// Whoever calls has checked that the memory may be touched.
void run_matmul(const MatmulCall& call);

}  // namespace emulator
