#include "rules.h"

#include <algorithm>

#include "sparse24.h"

namespace emulator {

using sparse24::round_up;

View view(const Matrix& matrix, bool is_a, Operation op) {
  const bool k_along_cols = is_a == (op == kNonTranspose);
  return k_along_cols ? View{matrix.rows, matrix.cols, matrix.row_stride(), matrix.col_stride()}
                      : View{matrix.cols, matrix.rows, matrix.col_stride(), matrix.row_stride()};
}

int bits(DataType type) {
  switch (type) {
    case kReal32F:
    case kReal32I: return 32;
    case kReal16F:
    case kReal16BF: return 16;
    case kReal8I:
    case kReal8FE4M3:
    case kReal8FE5M2: return 8;
    case kReal4FE2M1: return 4;
  }
  return 0;
}

// measured: 16 bytes of elements, 32 for a structured matrix; of e2m1 half as much.
std::int64_t required_multiple(DataType type, bool structured) {
  const std::int64_t dense = type == kReal4FE2M1 ? 16 : 128 / bits(type);
  return structured ? 2 * dense : dense;
}

namespace {

struct TypeRow {
  DataType ab, c, d;
  ComputeType compute;
};

// measured on sm_86 for the first seven, documented for fp8: the type table of NVIDIA's wheel.
constexpr TypeRow kTypes[] = {
    {kReal32F, kReal32F, kReal32F, kCompute32F},        {kReal16BF, kReal16BF, kReal16BF, kCompute32F},
    {kReal16F, kReal16F, kReal16F, kCompute32F},        {kReal16F, kReal16F, kReal16F, kCompute16F},
    {kReal8I, kReal8I, kReal8I, kCompute32I},           {kReal8I, kReal32I, kReal32I, kCompute32I},
    {kReal8I, kReal16F, kReal16F, kCompute32I},         {kReal8I, kReal16BF, kReal16BF, kCompute32I},
    {kReal8FE4M3, kReal16F, kReal8FE4M3, kCompute32F},  {kReal8FE4M3, kReal16BF, kReal8FE4M3, kCompute32F},
    {kReal8FE4M3, kReal16F, kReal16F, kCompute32F},     {kReal8FE4M3, kReal16BF, kReal16BF, kCompute32F},
    {kReal8FE4M3, kReal32F, kReal32F, kCompute32F},     {kReal8FE5M2, kReal16F, kReal8FE5M2, kCompute32F},
    {kReal8FE5M2, kReal16BF, kReal8FE5M2, kCompute32F}, {kReal8FE5M2, kReal16F, kReal16F, kCompute32F},
    {kReal8FE5M2, kReal16BF, kReal16BF, kCompute32F},   {kReal8FE5M2, kReal32F, kReal32F, kCompute32F},
    {kReal4FE2M1, kReal16F, kReal4FE2M1, kCompute32F},  {kReal4FE2M1, kReal16BF, kReal4FE2M1, kCompute32F},
    {kReal4FE2M1, kReal16F, kReal16F, kCompute32F},     {kReal4FE2M1, kReal16BF, kReal16BF, kCompute32F},
    {kReal4FE2M1, kReal32F, kReal32F, kCompute32F},
};

bool in_type_table(const Product& p) {
  return p.a.type == p.b.type && std::any_of(std::begin(kTypes), std::end(kTypes), [&](const TypeRow& row) {
           return row.ab == p.a.type && row.c == p.c.type && row.d == p.d.type && row.compute == p.compute;
         });
}

constexpr std::int32_t kBlockScaled = kScaleVec32UE4M3;  // this mode and the one above it scale blocks

bool block_scaled(const Epilogue& epilogue) {
  return epilogue.scale_mode[0] >= kBlockScaled || epilogue.scale_mode[1] >= kBlockScaled;
}

}  // namespace

const char* unsupported_product(const Product& p, Label& label) {
  label = is_fp8(p.a.type) || p.a.type == kReal4FE2M1 ? kDocumented : kMeasured;
  if (!in_type_table(p)) return "this combination of types of A, B, C, D and compute is not in the type table";
  label = kMeasured;
  // On SM 86, where K = 64 is refused here and K = 128 when a kernel is looked for.
  if (p.a.type == kReal4FE2M1 && p.sparse_view().k % 128 != 0) return "fp4 needs K in multiples of 128";
  label = is_fp8(p.a.type) ? kDocumented : kMeasured;
  const bool k_contiguous = view(p.a, true, p.op_a).k_contiguous() && view(p.b, false, p.op_b).k_contiguous();
  if (bits(p.a.type) <= 8 && !k_contiguous) {
    return "8-bit operands must be contiguous along K: A row-major and not transposed or column-major and "
           "transposed, B the other way round";
  }
  return nullptr;
}

const char* no_kernel(const Product& p, const Epilogue& epilogue, int version, Label& label) {
  label = kMeasured;
  if (p.compute == kCompute16F && p.sm != 90) return "16-bit compute has kernels on SM 90 only";
  // measured on SM 86: the descriptor is made, and no kernel is found.
  if (is_fp8(p.a.type) && p.sm < 89) return "fp8 has kernels from SM 89 on";
  if (p.a.type == kReal4FE2M1 && p.sm < 100) return "fp4 has kernels from SM 100 on";
  // measured on SM 86, 89 and 120.
  if (p.a.type != kReal8FE4M3 && p.a.type != kReal4FE2M1 && block_scaled(epilogue)) {
    return "block scales are for e4m3 and e2m1";
  }
  label = kDocumented;
  if (is_fp8(p.a.type) && p.sm == 89 && version < 800) return "fp8 on SM 89 came with 0.8.0";
  label = kAssumed;
  if (p.a.type == kReal4FE2M1) return "the emulator does not compute fp4 products";
  if (p.a.type == kReal8FE4M3 && block_scaled(epilogue)) return "the emulator does not compute block-scaled products";
  return nullptr;
}

// measured for int8 and fp16, and for fp8 into 16 and 32 bits on SM 89 and 120; documented for fp8 elsewhere (strings
// of 0.10).
bool gelu_allowed(const Product& p, const Epilogue& epilogue) {
  if (p.a.type == kReal8I) return p.d.type == kReal8I;
  if (block_scaled(epilogue)) return false;
  if (is_fp8(p.a.type) && !is_fp8(p.d.type)) {
    if (p.sm == 89) return p.d.type == kReal16BF;
    if (is_sm12x(p.sm)) return true;
  }
  if (p.a.type == kReal8FE4M3) return p.d.type == kReal16F || p.d.type == kReal16BF || p.d.type == kReal8FE4M3;
  return p.a.type == kReal8FE5M2 && p.d.type == kReal8FE5M2;
}

// documented (strings): a narrower list.
bool gelu_scaling_allowed(const Product& p, const Epilogue& epilogue) {
  if (p.a.type == kReal8I) return p.d.type == kReal8I;
  if (block_scaled(epilogue) || !is_fp8(p.a.type)) return false;
  return p.d.type == kReal16BF || p.d.type == p.a.type;
}

// measured: float for int8, otherwise the type of D; assumed: the type of C where D is fp8.
DataType bias_type(const Product& p) {
  if (p.a.type == kReal8I) return kReal32F;
  return is_fp8(p.d.type) ? p.c.type : p.d.type;
}

std::size_t values_bytes(const Matrix& m) { return bytes(m.type, m.rows * m.cols / 2); }

// measured on a grid of shapes to 320 x 320 on sm_86 with 0.10, in 16 bits by plan and by descriptor, and for fp8 on
// sm_120 for two cubes; assumed: fp8 as int8 elsewhere, other SMs alike.
std::size_t metadata_bytes(const Matrix& m, const View* view, int sm) {
  const std::int64_t n = m.lines(), k = m.line_length();
  const auto larger = [&](std::int64_t small, std::int64_t large) {
    return std::max(round_up(n, small) * round_up(k, large), round_up(n, large) * round_up(k, small));
  };
  if (is_fp8(m.type) && is_sm12x(sm)) return static_cast<std::size_t>(round_up(n, 128) * round_up(k, 128) / 8);
  switch (bits(m.type)) {
    case 32: return static_cast<std::size_t>(larger(16, 64) / 2);
    case 16:
      return static_cast<std::size_t>((view ? round_up(view->extent, 32) * round_up(view->k, 64) : larger(32, 64)) / 8);
    default: return static_cast<std::size_t>(round_up(n, 64) * round_up(k, 128) / 4);
  }
}

// measured: one copy of the metadata, where 8- and 32-bit types hold two; fp8 on sm_120 one number for two cubes.
std::size_t compress_buffer_bytes(const Matrix& m, const View* view, int sm) {
  if (is_fp8(m.type) && is_sm12x(sm)) return 49216;
  return metadata_bytes(m, view, sm) / (bits(m.type) == 16 ? 1 : 2);
}

// measured: the compression buffer (about m k / 8), whatever the tokens and split-K, for every batch; on sm_90 a little
// more, on sm_100 mostly nothing, on sm_120 nothing for fp8. Sizes may be odd.
std::size_t workspace_bytes(const Product& p) {
  const bool is_120 = is_sm12x(p.sm);
  if ((p.sm >= 100 && !is_120) || (is_120 && is_fp8(p.a.type))) return 0;
  const View view = p.sparse_view();
  const std::size_t one = compress_buffer_bytes(p.sparse(), &view, p.sm) + (p.sm == 90 ? 319 : 0);
  return one * static_cast<std::size_t>(p.d.batches);
}

// measured (0.8.1) for 16 bits, int8 and fp8 on sm_80, 89, 90, 100, 120 and 121; assumed: fp32 as bf16.
int config_count(const Product& p) {
  const DataType type = p.a.type;
  if (p.sm == 90) return type == kReal16F ? 52 : type == kReal8I ? 25 : is_fp8(type) ? 30 : 21;
  if (is_sm12x(p.sm)) return is_fp8(type) ? 4 : 2;
  if (p.sm >= 100) return type == kReal4FE2M1 ? 60 : 108;
  return p.sm == 80 && type == kReal8I ? 5 : 4;
}

// measured that split-K is -1 on SM 90 (a log); assumed: the mode from SM 100 on.
Algorithm default_algorithm(const Product& p) {
  Algorithm algorithm;
  algorithm.config_max_id = config_count(p);
  if (p.sm == 90) algorithm.split_k = -1;
  if (p.sm >= 100 && !is_sm12x(p.sm)) algorithm.split_k_mode = kSplitKHeuristic;
  return algorithm;
}

void check_algorithm_attribute(const Product& p, const Algorithm& algorithm, AlgAttribute attribute, int value) {
  const bool sm90 = p.sm >= 90;
  switch (attribute) {
    case kConfigId:
      require(value >= 0 && value < algorithm.config_max_id, kInvalidValue, kMeasured,
              "ALG_CONFIG_ID must be at least 0 and below ALG_CONFIG_MAX_ID");
      return;
    case kConfigMaxId: require(false, kInvalidValue, kMeasured, "ALG_CONFIG_MAX_ID is read-only"); return;
    case kSearchIterations: return;
    case kSplitK:
      if (is_sm12x(p.sm) && value == 0) return;  // measured: answered without an error
      require(value >= 1 || (sm90 && value == -1), kInvalidValue, kMeasured,
              "SPLIT_K must be at least 1 (or -1, Segment-K, from SM 90 on)");
      require(value <= (p.sm == 90 ? 1 : p.sparse_view().k), kInvalidValue, kDocumented,
              "SPLIT_K must be at most K, and 1 or -1 on SM 90");
      return;
    case kSplitKMode:
      require(!is_sm12x(p.sm) || value != kSplitKHeuristic, kInvalidValue, kMeasured,
              "SPLIT_K_MODE 3 is refused on SM 120");
      require(sm90 ? value >= 1 && value <= 6 : value == kSplitKOneKernel || value == kSplitKTwoKernels, kInvalidValue,
              sm90 ? kAssumed : kMeasured, "SPLIT_K_MODE must be 1 or 2 (up to 6 from SM 90 on)");
      return;
    case kSplitKBuffers:
      require(value >= 0, kInvalidValue, kMeasured, "SPLIT_K_BUFFERS must not be negative");
      require(p.sm != 90 || value == 0, kInvalidValue, kDocumented, "SPLIT_K_BUFFERS must be 0 on SM 90");
      return;
  }
  require(false, kInvalidValue, kMeasured, "unknown attribute of an algorithm selection");
}

}  // namespace emulator
