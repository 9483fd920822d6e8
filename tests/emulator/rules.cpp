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

// measured: 16 bytes of elements, 32 for a structured matrix.
std::int64_t required_multiple(DataType type, bool structured) { return (structured ? 256 : 128) / bits(type); }

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

const char* unsupported_product(const Product& p, int version, Label& label) {
  label = is_fp8(p.a.type) || p.a.type == kReal4FE2M1 ? kDocumented : kMeasured;
  if (!in_type_table(p)) return "this combination of types of A, B, C, D and compute is not in the type table";
  if (is_fp8(p.a.type) && p.sm < 90 && !(p.sm == 89 && version >= 800)) {
    return "fp8 needs SM 90, or SM 89 since 0.8.0";
  }
  if (p.a.type == kReal4FE2M1 && p.sm < 100) return "fp4 needs SM 100";
  const bool k_contiguous = view(p.a, true, p.op_a).k_contiguous() && view(p.b, false, p.op_b).k_contiguous();
  if (bits(p.a.type) <= 8 && !k_contiguous) {
    return "8-bit operands must be contiguous along K: A row-major and not transposed or column-major and "
           "transposed, B the other way round";
  }
  return nullptr;
}

const char* no_kernel(const Product& p, const Epilogue& epilogue, Label& label) {
  label = kMeasured;
  if (p.compute == kCompute16F && p.sm != 90) return "16-bit compute has kernels on SM 90 only";
  label = kAssumed;
  if (p.a.type == kReal4FE2M1) return "the emulator does not compute fp4 products";
  if (p.a.type == kReal8FE4M3 && block_scaled(epilogue)) return "the emulator does not compute block-scaled products";
  return nullptr;
}

// measured for int8 and fp16; documented for fp8 (strings of 0.10).
bool gelu_allowed(const Product& p, const Epilogue& epilogue) {
  if (p.a.type == kReal8I) return p.d.type == kReal8I;
  if (block_scaled(epilogue)) return false;
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

// measured on a grid of shapes to 320 x 320 on sm_86 with 0.10; assumed: fp8 as int8, other SMs alike.
std::size_t metadata_bytes(const Matrix& m) {
  const std::int64_t n = m.lines(), k = m.line_length();
  const auto larger = [&](std::int64_t small, std::int64_t large) {
    return std::max(round_up(n, small) * round_up(k, large), round_up(n, large) * round_up(k, small));
  };
  switch (bits(m.type)) {
    case 32: return static_cast<std::size_t>(larger(16, 64) / 2);
    case 16: return static_cast<std::size_t>(larger(32, 64) / 8);
    default: return static_cast<std::size_t>(round_up(n, 64) * round_up(k, 128) / 4);
  }
}

// measured: one copy of the metadata, where 8- and 32-bit types hold two.
std::size_t compress_buffer_bytes(const Matrix& m) { return metadata_bytes(m) / (bits(m.type) == 16 ? 1 : 2); }

// measured on square problems for split-K 1 (sm_86); assumed: a float partial sum per split otherwise.
std::size_t workspace_bytes(const Product& p, const Algorithm& algorithm) {
  const std::int64_t outputs = p.d.rows * p.d.cols;
  std::int64_t size = 0;
  switch (bits(p.a.type)) {
    case 32: size = std::max<std::int64_t>(outputs / 4, 512); break;
    case 16: size = std::max<std::int64_t>(outputs / 8, 256); break;
    default: size = std::max<std::int64_t>(outputs / 8, 1024); break;
  }
  if (algorithm.split_k > 1) size += outputs * p.d.batches * algorithm.split_k * 4;
  return static_cast<std::size_t>(size);
}

// measured on sm_86; documented that the number of ids depends on SM and type; assumed: the numbers elsewhere,
// and that split-K is -1 on SM 90 (seen in a log).
Algorithm default_algorithm(const Product& p) {
  Algorithm algorithm;
  if (p.sm >= 90) algorithm.config_max_id = (p.sm == 90 ? 10 : 6) + (bits(p.a.type) == 16 ? 1 : 0);
  if (p.sm == 90) algorithm.split_k = -1;
  if (p.sm >= 100) algorithm.split_k_mode = kSplitKHeuristic;
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
      require(value >= 1 || (sm90 && value == -1), kInvalidValue, kMeasured,
              "SPLIT_K must be at least 1 (or -1, Segment-K, on SM 90)");
      require(value <= (sm90 ? 1 : p.sparse_view().k), kInvalidValue, kDocumented,
              "SPLIT_K must be at most K, and 1 or -1 on SM 90");
      return;
    case kSplitKMode:
      require(sm90 ? value >= 1 && value <= 6 : value == kSplitKOneKernel || value == kSplitKTwoKernels, kInvalidValue,
              sm90 ? kAssumed : kMeasured, "SPLIT_K_MODE must be 1 or 2 (up to 6 from SM 90 on)");
      return;
    case kSplitKBuffers:
      require(value >= 0, kInvalidValue, kMeasured, "SPLIT_K_BUFFERS must not be negative");
      require(!sm90 || value == 0, kInvalidValue, kDocumented, "SPLIT_K_BUFFERS must be 0 from SM 90 on");
      return;
  }
  require(false, kInvalidValue, kMeasured, "unknown attribute of an algorithm selection");
}

}  // namespace emulator
