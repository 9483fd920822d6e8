// What cuSPARSELt accepts, as one table and a list of rules, so that a refusal names the rule and the
// nearest legal choice instead of "operation not supported". Written from NVIDIA's documentation, the
// release notes, and what real libraries were measured to answer.

#include <algorithm>
#include <cmath>
#include <iterator>

#include "api.h"
#include "types.h"

namespace sparse24::cusparselt {
namespace {

// in, out, first architecture. All of them since 0.6.
struct TypePair {
  DType in, out;
  int sm;
};
constexpr TypePair kTypes[] = {
    {DType::kFloat32, DType::kFloat32, 80},     {DType::kFloat16, DType::kFloat16, 80},
    {DType::kBFloat16, DType::kBFloat16, 80},   {DType::kInt8, DType::kInt8, 80},
    {DType::kInt8, DType::kInt32, 80},          {DType::kInt8, DType::kFloat16, 80},
    {DType::kInt8, DType::kBFloat16, 80},       {DType::kFloat8E4M3, DType::kFloat16, 89},
    {DType::kFloat8E4M3, DType::kBFloat16, 89}, {DType::kFloat8E4M3, DType::kFloat32, 89},
    {DType::kFloat8E5M2, DType::kFloat16, 89},  {DType::kFloat8E5M2, DType::kBFloat16, 89},
    {DType::kFloat8E5M2, DType::kFloat32, 89},
};

bool is_fp8(DType dtype) { return dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2; }

std::string type_rule(const Product& p, int sm, int version) {
  std::string outs;
  int needs = 0;
  for (const TypePair& row : kTypes) {
    if (row.in != p.in) continue;
    if (row.out == p.out) needs = row.sm;
    outs += message(outs.empty() ? "" : ", ", name_of(row.out));
  }
  if (outs.empty()) return message("inputs of ", name_of(p.in), " have no sparse product; nearest: int8 or float16");
  if (needs == 0) return message(name_of(p.in), " inputs give ", outs, ", not ", name_of(p.out));
  // From 0.8 on, newer architectures run through PTX.
  if (version < 800 && sm > (version < 700 ? 90 : 120)) {
    return message("sm_", sm, " needs a newer cuSPARSELt than ", version_text(version),
                   "; nearest: ", sm <= 120 && version < 700 ? "0.7.1" : "0.8.1");
  }
  if (needs == 89 && sm == 89 && version < 800) {
    return message(name_of(p.in), " on sm_89 needs cuSPARSELt 0.8.0 or newer, not ", version_text(version));
  }
  if (sm < needs) {
    return message(name_of(p.in), " needs an sm_", needs, " GPU or newer, not sm_", sm,
                   "; nearest: ", is_fp8(p.in) ? "int8" : "none, sparse tensor cores begin with sm_80");
  }
  if (p.in == DType::kInt8 && sm == 103) return "int8 has no sparse product on sm_103; nearest: float8_e4m3fn";
  return "";
}

std::string nearest(std::int64_t value, std::int64_t multiple) {
  const std::int64_t above = round_up(std::max<std::int64_t>(value, 1), multiple), below = value / multiple * multiple;
  return below > 0 && below != above ? message(below, " and ", above) : message(above);
}

std::string multiple_rule(const char* name, std::int64_t value, int multiple, const Product& p) {
  if (value > 0 && value % multiple == 0) return "";
  return message(name, " must be a positive multiple of ", multiple, " for ", name_of(p.in), " to ", name_of(p.out),
                 ", not ", value, "; nearest legal: ", nearest(value, multiple));
}

std::string size_rule(const Product& p) {
  const Multiples of = multiples(p.in, p.out);
  for (const std::string& broken :
       {multiple_rule("m (output features)", p.m, of.m, p), multiple_rule("n (tokens)", p.n, of.n, p),
        multiple_rule("k (input features)", p.k, of.k, p), multiple_rule("x_stride", p.x_stride, of.x_stride, p),
        multiple_rule("y_stride", p.y_stride, of.y_stride, p)}) {
    if (!broken.empty()) return broken;
  }
  if (p.x_stride < p.k) return message("x_stride must be at least k, ", p.k, ", not ", p.x_stride);
  if (p.y_stride < p.m) return message("y_stride must be at least m, ", p.m, ", not ", p.y_stride);
  const std::int64_t limit = size_of(p.in) == 4   ? (std::int64_t{1} << 30) - 1
                             : size_of(p.in) == 2 ? (std::int64_t{1} << 31) - 1
                                                  : (std::int64_t{1} << 32) - 1;
  for (const std::int64_t size : {p.m, p.n, p.k}) {
    if (size > limit) return message("sizes of ", name_of(p.in), " must not exceed ", limit, ", not ", size);
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  if (p.x_stride > kMost / p.n || p.y_stride > kMost / p.n) return "tokens x stride must not exceed 2^63-1";
  return "";
}

std::string batch_stride_rule(const char* name, std::int64_t stride, std::int64_t least, int multiple) {
  if (stride == 0 || (stride >= least && stride % multiple == 0)) return "";
  return message(name, " must be a multiple of ", multiple, " of at least n x stride = ", least, ", not ", stride,
                 "; nearest legal: ", round_up(std::max(stride, least), multiple));
}

std::string batch_rule(const Product& p) {
  if (p.batches < 1 || p.batches > std::numeric_limits<int>::max()) {
    return message("batches must be 1 to 2^31-1, not ", p.batches);
  }
  if (p.batches == 1) return "";
  const Multiples of = multiples(p.in, p.out);
  const std::string x = batch_stride_rule("x_batch_stride", p.x_batch_stride, p.n * p.x_stride, of.x_stride);
  if (!x.empty()) return x;
  if (p.y_batch_stride == 0) return "y_batch_stride must not be 0: the batches would overwrite each other";
  return batch_stride_rule("y_batch_stride", p.y_batch_stride, p.n * p.y_stride, of.y_stride);
}

// Where fp8 products take GELU in: measured on sm_89 and sm_120; elsewhere what documents have and sm_89 confirms.
bool fuses_gelu(const Product& p, int sm) {
  if (p.in == DType::kInt8) return p.out == DType::kInt8;
  if (!is_fp8(p.in)) return false;
  const bool wide = p.out == DType::kFloat16 || p.out == DType::kBFloat16 || p.out == DType::kFloat32;
  if (sm == 120 || sm == 121) return wide;
  return p.out == DType::kBFloat16 && (sm == 89 || p.in == DType::kFloat8E4M3);
}

std::string activation_rule(const Product& p, int sm) {
  if (p.activation == Activation::kGelu) {
    return "cuSPARSELt has the tanh form of GELU only; nearest: gelu_tanh, or GELU after the product";
  }
  if (p.activation == Activation::kGeluTanh) {
    if (!fuses_gelu(p, sm)) {
      const char* const fp8 = sm == 120 || sm == 121 ? "float8 to float16, bfloat16 or float32"
                              : sm == 89             ? "float8 to bfloat16"
                                                     : "float8_e4m3fn to bfloat16";
      return message("gelu_tanh is fused for int8 to int8 and ", fp8, " on sm_", sm, ", not for ", name_of(p.in),
                     " to ", name_of(p.out), "; nearest: GELU after the product");
    }
  }
  if (!std::isfinite(p.relu_threshold)) return message("relu_threshold must be finite, not ", p.relu_threshold);
  if (std::isnan(p.relu_upper_bound)) return "relu_upper_bound must be a number or infinity, not NaN";
  return "";
}

constexpr int kDeadlyId = 36;

std::string algorithm_rule(const Product& p, int sm, int version) {
  const Algorithm& a = p.algorithm;
  if (a.id < 0) return message("an algorithm id must not be negative, not ", a.id);
  if (a.split_k == -1 && sm != 90) {
    return message("split_k -1 (Segment-K) is for sm_90 only, and hangs on sm_", sm, "; nearest: 1");
  }
  // ids change their meaning with the version, so this is said of the one that was seen.
  if (a.id == kDeadlyId && sm == 90 && p.in == DType::kFloat16 && version / 100 == 8) {
    return message("algorithm ", kDeadlyId,
                   " of float16 on sm_90 leaves an illegal instruction, and the context is dead ",
                   "(seen with cuSPARSELt 0.8.1); nearest: ", kDeadlyId - 1, " and ", kDeadlyId + 1);
  }
  if (a.split_k < -1 || a.split_k > p.k) {
    return message("split_k must be 1 to k = ", p.k, " (0: default; -1 on sm_90), not ", a.split_k);
  }
  if (sm == 90 && a.split_k > 1) return message("split_k must be 1 or -1 on sm_90, not ", a.split_k);
  if (a.split_k_mode < 0 || a.split_k_mode > abi::kSplitKStreamK ||
      (sm < 90 && a.split_k_mode > abi::kSplitKTwoKernels)) {
    return message("split_k_mode must be 0 (default), 1 or 2", sm < 90 ? "" : ", or 3 to 6", " on sm_", sm, ", not ",
                   a.split_k_mode);
  }
  if (a.split_k_mode == abi::kSplitKHeuristic && (sm == 120 || sm == 121)) {
    return message("split_k_mode 3 is refused on sm_", sm, "; nearest: 0 (default)");
  }
  if (a.split_k_buffers < -1 || (sm == 90 && a.split_k_buffers > 0)) {
    return message("split_k_buffers must be ", sm == 90 ? "0 on sm_90" : "at least 0", " (-1: default), not ",
                   a.split_k_buffers);
  }
  return "";
}

}  // namespace

Multiples multiples(DType in, DType out) {
  // 32 bytes for the structured operand, 16 for dense ones, in every dimension and stride.
  const int structured = 32 / size_of(in), x = 16 / size_of(in), y = 16 / size_of(out);
  return {std::max(structured, y), std::max(x, y), structured, x, y};
}

std::string why_illegal(const Product& product, int sm, int version) {
  for (const std::string& broken : {type_rule(product, sm, version), size_rule(product), batch_rule(product),
                                    activation_rule(product, sm), algorithm_rule(product, sm, version)}) {
    if (!broken.empty()) return broken;
  }
  return "";
}

std::string describe(const Product& p) {
  static constexpr const char* kActivations[] = {"none", "relu", "gelu", "gelu_tanh"};
  std::string text = message(name_of(p.in), " to ", name_of(p.out), ", m=", p.m, ", n=", p.n, ", k=", p.k,
                             ", x_stride=", p.x_stride, ", y_stride=", p.y_stride);
  if (p.batches != 1) {
    text += message(", batches=", p.batches, " with strides ", p.x_batch_stride, " and ", p.y_batch_stride);
  }
  text += message(", activation=", kActivations[static_cast<int>(p.activation)]);
  if (p.activation == Activation::kRelu) text += message(" (", p.relu_threshold, ", ", p.relu_upper_bound, ")");
  text += message(p.has_bias ? ", bias" : "", p.scale_per_row ? ", scale per row" : "", ", algorithm ", p.algorithm.id,
                  " split_k ", p.algorithm.split_k, " mode ", p.algorithm.split_k_mode, " buffers ",
                  p.algorithm.split_k_buffers);
  return text;
}

}  // namespace sparse24::cusparselt
