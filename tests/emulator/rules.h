// The rules of cuSPARSELt that are plain functions of their arguments. README.md holds them as one table.
#pragma once

#include <cstdint>
#include <limits>

#include "state.h"

namespace emulator {

struct Matrix {
  std::int64_t rows = 0, cols = 0, ld = 0;
  std::uint32_t alignment = 0;
  DataType type = kReal32F;
  Order order = kOrderCol;
  bool structured = false;
  int batches = 1;
  std::int64_t batch_stride = 0;

  std::int64_t lines() const { return order == kOrderRow ? rows : cols; }
  std::int64_t line_length() const { return order == kOrderRow ? cols : rows; }
  std::int64_t row_stride() const { return order == kOrderRow ? ld : 1; }
  std::int64_t col_stride() const { return order == kOrderRow ? 1 : ld; }
  // Elements from the first to the last of all batches.
  std::int64_t extent() const { return (lines() - 1) * ld + line_length() + (batches - 1) * batch_stride; }
  bool operator==(const Matrix&) const = default;
};

// op(A) op(B) seen from one operand: its extent along K and along the other dimension, and the strides of both.
struct View {
  std::int64_t extent, k, extent_stride, k_stride;
  bool k_contiguous() const { return k_stride == 1; }
};
View view(const Matrix& matrix, bool is_a, Operation op);

struct Product {
  Matrix a, b, c, d;
  Operation op_a, op_b;
  ComputeType compute;
  int sm = 0;

  bool sparse_a() const { return a.structured; }
  const Matrix& sparse() const { return sparse_a() ? a : b; }
  const Matrix& dense() const { return sparse_a() ? b : a; }
  View sparse_view() const { return view(sparse(), sparse_a(), sparse_a() ? op_a : op_b); }
  View dense_view() const { return view(dense(), !sparse_a(), sparse_a() ? op_b : op_a); }
};

struct Epilogue {
  int relu = 0, gelu = 0, alpha_vector = 0, beta_vector = 0;
  float relu_upper_bound = std::numeric_limits<float>::max(), relu_threshold = 0, gelu_scaling = 1;
  std::int64_t bias_stride = 0;
  std::int32_t scale_mode[5] = {};  // A, B, C, D, D_OUT
  bool operator==(const Epilogue&) const = default;
};

struct Pointers {
  const void* bias = nullptr;
  const void* sparse = nullptr;
  const void* scale[5] = {};
};

struct Algorithm {
  int config_id = 0, config_max_id = 4, search_iterations = 5, split_k = 1, split_k_mode = 1, split_k_buffers = 0;
  bool operator==(const Algorithm&) const = default;
};

// What a plan fixed. Immutable, so that queued work may outlive the plan.
struct Problem {
  Product product;
  Epilogue epilogue;
  Algorithm algorithm;
  std::size_t workspace = 0;
};

int bits(DataType type);  // 0: no type of a matrix
inline std::size_t bytes(DataType type, std::int64_t count) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(bits(type)) / 8;
}
inline bool is_fp8(DataType type) { return type == kReal8FE4M3 || type == kReal8FE5M2; }
inline bool is_sm12x(int sm) { return sm == 120 || sm == 121; }

// rows, cols and ld must be multiples of this many elements.
std::int64_t required_multiple(DataType type, bool structured);

// The reason why a product cannot be described, or null.
const char* unsupported_product(const Product& product, Label& label);
// The reason why no kernel exists for a product that can be described, or null.
const char* no_kernel(const Product& product, const Epilogue& epilogue, int version, Label& label);

bool gelu_allowed(const Product& product, const Epilogue& epilogue);
bool gelu_scaling_allowed(const Product& product, const Epilogue& epilogue);

// Of a bias and of the vectors.
DataType bias_type(const Product& product);

// One compressed copy of a structured matrix: the kept values, then the metadata. A plan knows which dimension is K;
// a bare descriptor (no view) has room for either.
std::size_t values_bytes(const Matrix& matrix);
std::size_t metadata_bytes(const Matrix& matrix, const View* view, int sm);
std::size_t compress_buffer_bytes(const Matrix& matrix, const View* view, int sm);
inline std::size_t copy_bytes(const Matrix& matrix, const View* view, int sm) {
  return values_bytes(matrix) + metadata_bytes(matrix, view, sm);
}
inline std::int64_t compressed_copies(const Matrix& matrix) { return matrix.batch_stride == 0 ? 1 : matrix.batches; }

std::size_t workspace_bytes(const Product& product);

Algorithm default_algorithm(const Product& product);
void check_algorithm_attribute(const Product& product, const Algorithm& algorithm, AlgAttribute attribute, int value);

}  // namespace emulator
