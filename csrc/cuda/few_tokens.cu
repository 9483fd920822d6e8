// The launch of few_tokens.cuh: a warp has its rows, and the lanes of one or more warps take their columns in turn.

#include <algorithm>

#include "few_tokens.cuh"
#include "launch.cuh"

namespace sparse24::cuda {
namespace {

// Warps that a launch should have to keep a GPU's memory busy: 32 for each of 132 multiprocessors.
constexpr std::int64_t kWarpsWanted = 4224;

// threadIdx.y is the warp of the block: `splits` warps after each other share rows and divide columns.
template <typename X, typename W, Access kAccess, int kTokens>
__global__ void few_tokens_kernel(FewTokens a, int splits) {
  constexpr int kRows = FewTokensTuning<kTokens>::kRows;
  __shared__ float of_warps[kFewTokensWarps][kRows * kTokens];
  const int warp = static_cast<int>(threadIdx.y), part = warp % splits, lane = static_cast<int>(threadIdx.x);
  const std::int64_t row = (std::int64_t{blockIdx.x} * (kFewTokensWarps / splits) + warp / splits) * kRows;
  const std::int64_t token = std::int64_t{blockIdx.y} * kTokens;
  float sums[kRows][kTokens] = {};
  if (row < a.m) {
    constexpr int kColumns = 2 * kFewTokensKept<W, kTokens>;
    const std::int64_t items = (a.padded + kColumns - 1) / kColumns;
    for (std::int64_t item = part * kWarp + lane; item < items; item += std::int64_t{splits} * kWarp) {
      few_tokens_item<X, W, kAccess>(a, row, token, item, sums);
    }
  }
  SPARSE24_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SPARSE24_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      float sum = sums[r][t];
      SPARSE24_UNROLL
      for (int apart = kWarp / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
      if (lane == 0) of_warps[warp][r * kTokens + t] = sum;
    }
  }
  __syncthreads();
  if (part != 0) return;
  for (int i = lane; i < kRows * kTokens; i += kWarp) {
    float sum = 0;
    for (int other = 0; other < splits; ++other) sum += of_warps[warp + other][i];
    few_tokens_finish<X>(a, row + i / kTokens, token + i % kTokens, sum);
  }
}

// As few as give the launch its warps, but so that every lane has an item.
int splits_for(const FewTokens& a, int rows, int columns) {
  const std::int64_t row_groups = (a.m + rows - 1) / rows, most = std::max<std::int64_t>(1, a.padded / columns / kWarp);
  int splits = 1;
  while (splits < kFewTokensWarps && 2 * splits <= most && row_groups * splits < kWarpsWanted) splits *= 2;
  return splits;
}

template <typename X, typename W, Access kAccess, int kTokens>
void launch_few(const FewTokens& a, void* stream) {
  constexpr int kRows = FewTokensTuning<kTokens>::kRows;
  const int splits = splits_for(a, kRows, 2 * kFewTokensKept<W, kTokens>);
  const std::int64_t rows_of_block = std::int64_t{kRows} * (kFewTokensWarps / splits);
  const auto blocks = static_cast<unsigned>((a.m + rows_of_block - 1) / rows_of_block);
  const auto rounds = static_cast<unsigned>((a.n + kTokens - 1) / kTokens);
  launch("few_tokens", few_tokens_kernel<X, W, kAccess, kTokens>, {dim3(blocks, rounds), dim3(kWarp, kFewTokensWarps)},
         stream, a, splits);
}

template <typename X, typename W>
void launch_for(const FewTokens& a, void* stream) {
  const std::int64_t x_size = sizeof(typename X::Bits), w_size = sizeof(typename W::Bits);
  const Access access = access_for({a.x, a.values, a.indices}, {a.x_stride * x_size, a.padded / 2 * w_size});
  // Index bytes of an item are read at once: 16 of values stand for 1, 2 or 4 of them.
  if (access == Access::kElements) return launch_few<X, W, Access::kElements, 4>(a, stream);
  if (a.n == 1) return launch_few<X, W, Access::kVector, 1>(a, stream);
  if (a.n <= 4) return launch_few<X, W, Access::kVector, 4>(a, stream);
  if (a.n <= 8) return launch_few<X, W, Access::kVector, 8>(a, stream);
  launch_few<X, W, Access::kVector, 16>(a, stream);
}

}  // namespace

void few_tokens(const FewTokens& a, DType x, DType weight, void* stream) {
  if (a.n == 0 || a.m == 0) return;
  const auto need = [](bool ok, auto... what) {
    if (!ok) throw InvalidArgument(message("few_tokens: ", what...));
  };
  need(a.n <= kFewTokens, "at most ", kFewTokens, " tokens, not ", a.n, "; more are for cuSPARSELt or a dense product");
  need(a.k >= 1 && a.padded == round_up(a.k, 8), "a weight of ", a.padded, " columns for inputs of ", a.k);
  need(a.x_stride >= a.k, "inputs of ", a.k, " columns, ", a.x_stride, " apart");
  need(a.m <= (std::int64_t{1} << 31) - 1, "at most 2^31 - 1 rows, not ", a.m);
  const bool is_int8 = weight == DType::kInt8;
  if (!is_int8 && weight != x) refuse_dtype("few_tokens", "weights of the input's dtype, or int8");
  switch (x) {
    case DType::kFloat32:
      return is_int8 ? launch_for<Float32, Int8>(a, stream) : launch_for<Float32, Float32>(a, stream);
    case DType::kFloat16:
      return is_int8 ? launch_for<Float16, Int8>(a, stream) : launch_for<Float16, Float16>(a, stream);
    case DType::kBFloat16:
      return is_int8 ? launch_for<BFloat16, Int8>(a, stream) : launch_for<BFloat16, BFloat16>(a, stream);
    default: refuse_dtype("few_tokens", "inputs of fp32, fp16 and bf16");
  }
}

}  // namespace sparse24::cuda
