// Products with few tokens (decode): dot products along the rows of the weight.
//
// Every weight is read once, from front to back, so memory bounds the time. A vector holds kLanes kept
// values, two of every group; the activations of their groups lie in two vectors, the even groups in one
// and the odd groups in the other, a group in each 128-bit part:
//
//     x        g0 g1 g2 g3 | g4 ...      even  g0 | g2      odd  g1 | g3       (eight lanes)
//     values   a b of g0, a b of g1 | a b of g2, a b of g3
//
// so that pick() takes lanes 0 and 1 of every part from `even`, 2 and 3 from `odd`, each by its 2-bit index.
//
// That is two picks for every token. Where the machine expands (kExpands: AVX-512 puts kept values to their places
// among zeros by a mask of bits), from kExpandedTokens on the weight is expanded once for all tokens instead, which
// then multiply as if it were dense: twice the multiply-adds, and nothing else.
#pragma once

#include "epilogue-inl.h"
#include "weight-inl.h"

// Tokens that one pass over the weights serves.
constexpr std::int64_t kMaxFewTokens = 8;
// Columns whose kept values fill a vector, and vectors of a block.
constexpr std::int64_t kVectorCols = 2 * kLanes;
constexpr std::int64_t kBlockVectors = kBlockCols / kVectorCols;

// out [padded], the columns of x [k] in the order that pick() wants, zeros beyond k.
static void arrange(const float* x, std::int64_t k, std::int64_t padded, float* out) {
  for (std::int64_t group = 0; 4 * group < padded; ++group) {
    const std::int64_t pair = group / 2, part = pair % (kLanes / 4), vector = pair / (kLanes / 4);
    float* to = out + vector * kVectorCols + group % 2 * kLanes + 4 * part;
    const std::int64_t live = k - 4 * group;
    if (live >= 4) {
      std::memcpy(to, x + 4 * group, 4 * sizeof(float));
    } else {
      for (std::int64_t i = 0; i < 4; ++i) to[i] = i < live ? x[4 * group + i] : 0.0f;
    }
  }
}

// Sums of T tokens and R rows: two chains for one or two tokens, for the latency of the multiply-add.
template <int T, int R>
struct DotSums {
  static constexpr int kChains = T <= 2 ? 2 : 1;
  Vec chain[R][T][kChains];
};

// Whether T tokens see expanded weights, and their activations in plain order.
template <int T>
constexpr bool kExpanded = kExpands && T >= kExpandedTokens;

// One block of columns of R rows times T tokens, their activations in plain order, by expanded weights.
template <int T, int R, typename W>
[[gnu::always_inline]] static inline void expanded_times_tokens(const Rows<W>& rows, const float* const* x,
                                                                std::int64_t col, DotSums<T, R>& sums) {
  std::uint64_t masks[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) masks[r] = expansion_masks(rows.indices + r * rows.index_stride);
#pragma GCC unroll 8
  for (std::int64_t v = 0; v < kBlockCols / kLanes; ++v) {
    Vec weight[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      weight[r] = expand(rows.values + r * rows.value_stride + v * (kLanes / 2), masks[r]);
      masks[r] >>= kLanes;
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Vec activations = load(x[t] + col + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        Vec& sum = sums.chain[r][t][v % DotSums<T, R>::kChains];
        sum = fma(weight[r], activations, sum);
      }
    }
  }
}

// One block of columns of R rows times T tokens. x [T] as arrange() has them, from this block on.
template <int T, int R, typename W>
[[gnu::always_inline]] static inline void picked_times_tokens(const Rows<W>& rows, const float* const* x,
                                                              std::int64_t col, DotSums<T, R>& sums) {
#pragma GCC unroll 8
  for (std::int64_t v = 0; v < kBlockVectors; ++v) {
    Vec weight[R];
    Indices index[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      weight[r] = load(rows.values + r * rows.value_stride + v * kLanes);
      index[r] = load_indices(rows.indices + r * rows.index_stride + v * (kLanes / 4));
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Vec even = load(x[t] + col + v * kVectorCols), odd = load(x[t] + col + v * kVectorCols + kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        Vec& sum = sums.chain[r][t][v % DotSums<T, R>::kChains];
        sum = fma(weight[r], pick(even, odd, index[r]), sum);
      }
    }
  }
}

template <int T, int R, typename W>
[[gnu::always_inline]] static inline void block_times_tokens(const Rows<W>& rows, const float* const* x,
                                                             std::int64_t col, DotSums<T, R>& sums) {
  if constexpr (kExpanded<T>) {
    expanded_times_tokens(rows, x, col, sums);
  } else {
    picked_times_tokens(rows, x, col, sums);
  }
}

// R rows times T tokens, over all columns: out[t * token_stride + r * row_stride].
template <int T, int R, typename W>
static std::uint64_t rows_times_tokens(const Rows<W>& rows, std::int64_t padded, const float* const* x,
                                       std::int64_t ahead, float* out, std::int64_t row_stride,
                                       std::int64_t token_stride) {
  DotSums<T, R> sums;
  for (auto& row : sums.chain) {
    for (auto& token : row) {
      for (Vec& chain : token) chain = zero();
    }
  }
  std::uint64_t wrong = 0;
  for (int r = 0; r < R; ++r) wrong |= disorder(rows.indices + r * rows.index_stride, padded / 8);
  std::int64_t col = 0;
  for (; col + kBlockCols <= padded; col += kBlockCols) {
    const Rows<W> block = rows.from_col(col);
    if (ahead != 0) {
      for (int r = 0; r < R; ++r) {
        const auto* line = reinterpret_cast<const char*>(block.values + r * block.value_stride) + ahead;
        prefetch(line);
        if constexpr (sizeof(W) == 4) prefetch(line + 64);
      }
    }
    block_times_tokens<T, R>(block, x, col, sums);
  }
  if (col < padded) {  // the last columns, in a block of their own whose other weights are zero
    W values[R][kBlockCols / 2] = {};
    std::uint8_t indices[R][kBlockCols / 8];
    const Rows<W> last = rows.from_col(col);
    const std::int64_t cols = padded - col;
    for (int r = 0; r < R; ++r) {
      std::memset(indices[r], 0x44, sizeof indices[r]);
      std::memcpy(values[r], last.values + r * rows.value_stride, static_cast<std::size_t>(cols / 2) * sizeof(W));
      std::memcpy(indices[r], last.indices + r * rows.index_stride, static_cast<std::size_t>(cols / 8));
    }
    block_times_tokens<T, R>(Rows<W>{values[0], indices[0], kBlockCols / 2, kBlockCols / 8}, x, col, sums);
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) {
      Vec total = sums.chain[r][t][0];
      if constexpr (DotSums<T, R>::kChains == 2) total = add(total, sums.chain[r][t][1]);
      out[t * token_stride + r * row_stride] = sum(total);
    }
  }
  return wrong;
}

// T tokens against the rows [begin, end), R at a time: the rows lie an R-th of them apart, so that each of
// the R streams of weights runs from front to back through memory, over the ends of its rows.
template <typename W, int T, int R>
static std::uint64_t decode(const Linear& a, std::int64_t ahead, const float* const* x, std::int64_t begin,
                            std::int64_t end) {
  const Rows<W> weight = rows_of<W>(a.weight).from_row(begin);
  const std::int64_t count = end - begin, apart = count / R;
  float* sums = scratch(Scratch::kSums, T * count);
  std::uint64_t wrong = 0;
  for (std::int64_t row = 0; row < apart; ++row) {
    Rows<W> rows = weight.from_row(row);
    rows.value_stride *= apart, rows.index_stride *= apart;
    wrong |= rows_times_tokens<T, R>(rows, a.weight.padded, x, ahead, sums + row, apart, count);
  }
  for (std::int64_t row = apart * R; row < count; ++row) {
    wrong |= rows_times_tokens<T, 1>(weight.from_row(row), a.weight.padded, x, ahead, sums + row, 1, count);
  }
  const auto* bias = static_cast<const float*>(a.bias);
  for (int t = 0; t < T; ++t) {
    if (a.weight.scale != nullptr) {
      const float of_token = a.x_scale == nullptr ? 1 : a.x_scale[t];
      for (std::int64_t i = 0; i < count; ++i) sums[t * count + i] *= a.weight.scale[begin + i] * of_token;
    }
    if (bias != nullptr) {
      for (std::int64_t i = 0; i < count; ++i) sums[t * count + i] += bias[begin + i];
    }
    finish_row(sums + t * count, zero(), a.activation, count, static_cast<float*>(a.y) + t * a.m + begin);
  }
  return wrong;
}

template <typename W>
using Decode = std::uint64_t (*)(const Linear&, std::int64_t, const float* const*, std::int64_t, std::int64_t);

// As many rows side by side as the machine has streams to read, and registers to sum up in.
template <typename W>
static Decode<W> pick_decode(std::int64_t tokens, int streams) {
  static constexpr Decode<W> kOneStream[] = {decode<W, 1, 1>, decode<W, 2, 1>, decode<W, 3, 1>, decode<W, 4, 1>,
                                             decode<W, 5, 1>, decode<W, 6, 1>, decode<W, 7, 1>, decode<W, 8, 1>};
  static constexpr Decode<W> kTwo[] = {decode<W, 1, 2>, decode<W, 2, 2>, decode<W, 3, 2>, decode<W, 4, 2>};
  if (streams == 4 && tokens == 1) return decode<W, 1, 4>;
  if constexpr (kExpands) {  // rows share the loads of activations, and 32 registers hold their sums
    static constexpr Decode<W> kMore[] = {decode<W, 2, 4>, decode<W, 3, 4>, decode<W, 4, 4>, decode<W, 5, 4>,
                                          decode<W, 6, 4>, decode<W, 7, 3>, decode<W, 8, 3>};
    if (tokens >= kExpandedTokens) return kMore[tokens - 2];
  }
  return streams >= 2 && tokens <= 4 ? kTwo[tokens - 1] : kOneStream[tokens - 1];
}

// Parts of m rows, a thread each: one is worth waking for about 64 KB of weights, and takes whole groups of four rows.
static inline std::int64_t few_parts(std::int64_t m, std::int64_t padded, std::size_t bytes, int threads) {
  const std::int64_t wish = usable_threads(threads), fours = (m + 3) / 4;
  const std::int64_t paying = m * padded * static_cast<std::int64_t>(bytes) / (128 << 10) + 1;
  const std::int64_t parts = wish < paying ? wish : paying;
  return parts < fours ? parts : fours;
}

template <typename W>
static bool linear_few(const Linear& a, const Tuning& tuning) {
  const std::int64_t padded = round_up(a.weight.padded, kBlockCols);
  const float* x[kMaxFewTokens];
  float* arranged = scratch(Scratch::kInput, a.n * padded);
  for (std::int64_t t = 0; t < a.n; ++t) {
    const float* from = static_cast<const float*>(a.x) + t * a.x_stride;
    if (!kExpands || a.n < kExpandedTokens) {
      arrange(from, a.k, padded, arranged + t * padded);
    } else {
      std::memcpy(arranged + t * padded, from, static_cast<std::size_t>(a.k) * sizeof(float));
      for (std::int64_t i = a.k; i < padded; ++i) arranged[t * padded + i] = 0;
    }
    x[t] = arranged + t * padded;
  }
  const Decode<W> run = pick_decode<W>(a.n, tuning.streams);
  const std::int64_t ahead = sizeof(W) == 4 ? tuning.prefetch_wide : tuning.prefetch_narrow;
  const std::int64_t parts = few_parts(a.m, padded, sizeof(W), a.threads), fours = (a.m + 3) / 4;
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(parts)) if (parts > 1) reduction(| : wrong)
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t end = fours * (part + 1) / parts * 4;
    wrong |= run(a, ahead, x, fours * part / parts * 4, end < a.m ? end : a.m);
  }
  return wrong == 0;
}
