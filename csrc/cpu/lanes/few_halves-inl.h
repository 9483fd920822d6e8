// Products of bfloat16 with few tokens, where the machine multiplies pairs of it (vdpbf16ps): a row's kept values
// are put to their places among zeros, 32 columns in one instruction, and meet every token in one more.
//
// What its file defines:
//   expand_halves(kept, mask)        16 kept values to 32 columns, by the low bits of a mask
//   dot_halves(sums, weight, x)      sums of pairs of 32 columns and x [32]
#pragma once

#include "few_tokens-inl.h"

constexpr std::int64_t kMostHalfTokens = 16;

// R rows times T tokens over all columns; x [T] with padded columns: out[t * token_stride + r * row_stride].
template <int T, int R>
static std::uint64_t halves_times_tokens(const Rows<BFloat16>& rows, std::int64_t padded, const BFloat16* const* x,
                                         std::int64_t ahead, float* out, std::int64_t row_stride,
                                         std::int64_t token_stride) {
  Vec sums[R][T];
  for (auto& row : sums) {
    for (Vec& each : row) each = zero();
  }
  std::uint64_t wrong = 0;
  for (int r = 0; r < R; ++r) wrong |= disorder(rows.indices + r * rows.index_stride, padded / 8);
  const auto block = [&](const Rows<BFloat16>& some, std::int64_t col) __attribute__((always_inline)) {
    std::uint64_t masks[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) masks[r] = expansion_masks(some.indices + r * some.index_stride);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      HalfVec weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        weight[r] = expand_halves(some.values + r * some.value_stride + 16 * half, masks[r]);
        masks[r] >>= 32;
      }
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const HalfVec activations = load_halves32(x[t] + col + 32 * half);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[r][t] = dot_halves(sums[r][t], weight[r], activations);
      }
    }
  };
  std::int64_t col = 0;
  for (; col + kBlockCols <= padded; col += kBlockCols) {
    const Rows<BFloat16> some = rows.from_col(col);
    if (ahead != 0) {
      for (int r = 0; r < R; ++r) prefetch(reinterpret_cast<const char*>(some.values + r * rows.value_stride) + ahead);
    }
    block(some, col);
  }
  if (col < padded) {  // the last columns, in a block of their own whose other weights are zero
    BFloat16 values[R][kBlockCols / 2] = {};
    std::uint8_t indices[R][kBlockCols / 8];
    const Rows<BFloat16> last = rows.from_col(col);
    const std::int64_t cols = padded - col;
    for (int r = 0; r < R; ++r) {
      std::memset(indices[r], 0x44, sizeof indices[r]);
      std::memcpy(values[r], last.values + r * rows.value_stride, static_cast<std::size_t>(cols));
      std::memcpy(indices[r], last.indices + r * rows.index_stride, static_cast<std::size_t>(cols / 8));
    }
    block(Rows<BFloat16>{values[0], indices[0], kBlockCols / 2, kBlockCols / 8}, col);
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) out[t * token_stride + r * row_stride] = sum(sums[r][t]);
  }
  return wrong;
}

// T tokens against `count` rows, R streams of them as in few_tokens-inl.h: sums [T][count].
template <int T, int R>
static std::uint64_t halves_against_rows(const Rows<BFloat16>& weight, std::int64_t count, std::int64_t padded,
                                         const BFloat16* const* x, std::int64_t ahead, float* sums) {
  const std::int64_t apart = count / R;
  std::uint64_t wrong = 0;
  for (std::int64_t row = 0; row < apart; ++row) {
    Rows<BFloat16> rows = weight.from_row(row);
    rows.value_stride *= apart, rows.index_stride *= apart;
    wrong |= halves_times_tokens<T, R>(rows, padded, x, ahead, sums + row, apart, count);
  }
  for (std::int64_t row = apart * R; row < count; ++row) {
    wrong |= halves_times_tokens<T, 1>(weight.from_row(row), padded, x, ahead, sums + row, 1, count);
  }
  return wrong;
}

using HalvesRun = std::uint64_t (*)(const Rows<BFloat16>&, std::int64_t, std::int64_t, const BFloat16* const*,
                                    std::int64_t, float*);

template <int... T>
static HalvesRun pick_halves_of(std::int64_t tokens, std::integer_sequence<int, T...>) {
  static constexpr HalvesRun kTable[] = {halves_against_rows<T + 1, (T < 2 ? 4 : T < 8 ? 3 : T < 12 ? 2 : 1)>...};
  return kTable[tokens - 1];
}

// bf16 x and weight, up to kMostHalfTokens tokens; float32 bias and y.
static bool linear_few_halves(const Linear& a, const Tuning& tuning) {
  const std::int64_t padded = round_up(a.weight.padded, kBlockCols);
  const BFloat16* x[kMostHalfTokens];
  auto* arranged = reinterpret_cast<BFloat16*>(scratch(Scratch::kInput, a.n * padded / 2));
  for (std::int64_t t = 0; t < a.n; ++t) {
    BFloat16* to = arranged + t * padded;
    std::memcpy(to, static_cast<const BFloat16*>(a.x) + t * a.x_stride, static_cast<std::size_t>(a.k) * sizeof *to);
    std::memset(to + a.k, 0, static_cast<std::size_t>(padded - a.k) * sizeof *to);
    x[t] = to;
  }
  const HalvesRun run = pick_halves_of(a.n, std::make_integer_sequence<int, kMostHalfTokens>());
  const Rows<BFloat16> weight = rows_of<BFloat16>(a.weight);
  const auto* bias = static_cast<const float*>(a.bias);
  const std::int64_t parts = few_parts(a.m, padded, sizeof(BFloat16), a.threads), fours = (a.m + 3) / 4;
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(parts)) if (parts > 1) reduction(| : wrong)
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t begin = fours * part / parts * 4, far = fours * (part + 1) / parts * 4;
    const std::int64_t count = (far < a.m ? far : a.m) - begin;
    float* sums = scratch(Scratch::kSums, a.n * count);
    wrong |= run(weight.from_row(begin), count, a.weight.padded, x, tuning.prefetch_narrow, sums);
    for (std::int64_t t = 0; t < a.n; ++t) {
      if (bias != nullptr) {
        for (std::int64_t i = 0; i < count; ++i) sums[t * count + i] += bias[begin + i];
      }
      finish_row(sums + t * count, zero(), a.activation, count, static_cast<float*>(a.y) + t * a.m + begin);
    }
  }
  return wrong == 0;
}
