// Products of 8-bit numbers (and of bfloat16 where the machine multiplies its pairs), many tokens, "pairs in a tile".
//
// The two kept weights of a group of four are one pair, which names one of six pairs of activations. So a tile
// holds all six, each a 32-bit lane of two 16-bit numbers,
//
//     tile [group][6 pairs][V vectors of tokens]
//
// and a group is one instruction for a vector of tokens: sums += w.a * x.a + w.b * x.b. That is half of what
// many_tokens-inl.h needs, for one and a half times its tile. Integers are exact in any order.
//
// D says what a pair is: D::Kept and D::X, the types of weight and x, D::Sums, a vector of sums, and
//   to_halves(kept, count, to)                    bytes as bfloat16, where the weight is int8 and x is not
//   zero load store to_float                      of sums
//   dot(D::splat(pair), tile row, sums)           sums, and the products of a pair with a vector of pairs
#pragma once

#include "many_tokens-inl.h"

constexpr std::int64_t kPairings = 6, kMaxPairVectors = kMaxVectors < 10 ? kMaxVectors : 10;

// Which of the six pairs a nibble of indices a + 4 b names: 01 02 03 12 13 23. Disordered ones name any.
constexpr std::uint8_t kPairing[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 2, 4, 5, 0};

// 32-bit words of the rows of `lanes` tokens, [words][lanes], from byte `begin` on. Bytes from `end` on count as
// zeros. pack_rows moves four words of a row at a time, whatever they hold.
static void pack_words(const char* const* rows, std::int64_t lanes, std::int64_t begin, std::int64_t end,
                       std::int64_t words, std::uint32_t* to) {
  const std::int64_t whole = (end - begin) / 4 < words ? (end - begin) / 4 : words;
  const float* from[kMaxPairVectors * kLanes];
  for (std::int64_t i = 0; i < lanes; ++i) from[i] = reinterpret_cast<const float*>(rows[i] + begin);
  pack_rows(from, lanes / kLanes, 0, whole, words, reinterpret_cast<float*>(to));
  const std::int64_t rest = end - begin - 4 * whole;
  if (whole == words || rest <= 0) return;
  for (std::int64_t i = 0; i < lanes; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, rows[i] + begin + 4 * whole, static_cast<std::size_t>(rest));
    to[whole * lanes + i] = word;
  }
}

// The six pairs of a group's activations, of 16 bits each: columns 0 and 1 in `low`, 2 and 3 in `high`.
static inline void store_pairs(std::uint32_t low, std::uint32_t high, std::int64_t lanes, std::uint32_t* to) {
  const std::uint32_t a = low & 0xffffu, b = low >> 16, c = high << 16, d = high & 0xffff0000u;
  to[0] = low;
  to[lanes] = a | c;
  to[2 * lanes] = a | d;
  to[3 * lanes] = b | c;
  to[4 * lanes] = b | d;
  to[5 * lanes] = high;
}

// The tile's columns [k, k + 4 groups) of `lanes` tokens.
static void pack_pairs(const std::int8_t* const* x, std::int64_t lanes, std::int64_t k, std::int64_t live,
                       std::int64_t groups, std::uint32_t* tile) {
  alignas(64) std::uint32_t words[kBlockCols / 4 * kMaxPairVectors * kLanes];
  pack_words(reinterpret_cast<const char* const*>(x), lanes, k, live, groups, words);
  const auto widened = [](std::uint32_t word, int byte) {  // sign-extended, in the low half
    return static_cast<std::uint32_t>(static_cast<std::int32_t>(word << (24 - 8 * byte)) >> 24) & 0xffffu;
  };
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::uint32_t* from = words + g * lanes;
    for (std::int64_t i = 0; i < lanes; ++i) {
      const std::uint32_t low = widened(from[i], 0) | widened(from[i], 1) << 16;
      const std::uint32_t high = widened(from[i], 2) | widened(from[i], 3) << 16;
      store_pairs(low, high, lanes, tile + g * kPairings * lanes + i);
    }
  }
}

[[maybe_unused]] static void pack_pairs(const BFloat16* const* x, std::int64_t lanes, std::int64_t k, std::int64_t live,
                                        std::int64_t groups, std::uint32_t* tile) {
  alignas(64) std::uint32_t words[kBlockCols / 2 * kMaxPairVectors * kLanes];
  pack_words(reinterpret_cast<const char* const*>(x), lanes, 2 * k, 2 * live, 2 * groups, words);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::uint32_t* from = words + 2 * g * lanes;
    for (std::int64_t i = 0; i < lanes; ++i)
      store_pairs(from[i], from[lanes + i], lanes, tile + g * kPairings * lanes + i);
  }
}

// Kept bytes widened to pairs of 16-bit integers.
[[maybe_unused]] static inline const void* widened_pairs(const std::int8_t* kept, std::int64_t groups,
                                                         std::uint32_t* wide) {
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int32_t a = kept[2 * g], b = kept[2 * g + 1];
    wide[g] = (static_cast<std::uint32_t>(a) & 0xffffu) | static_cast<std::uint32_t>(b) << 16;
  }
  return wide;
}

// Kept pairs as the products take them: bfloat16's lie as they are, bytes become what x is, in `room`.
template <typename D>
static inline const void* kept_pairs(const typename D::Kept* kept, std::int64_t groups, std::uint32_t* room) {
  if constexpr (sizeof(typename D::Kept) == 2) {
    return kept;
  } else if constexpr (sizeof(typename D::X) == 1) {
    return widened_pairs(kept, groups, room);
  } else {
    D::to_halves(kept, 2 * groups, room);
    return room;
  }
}

// The pair at `index`, however its numbers were written.
static inline std::uint32_t pair_at(const void* kept, std::int64_t index) {
  std::uint32_t pair;
  std::memcpy(&pair, static_cast<const char*>(kept) + 4 * index, sizeof pair);
  return pair;
}

// One row's kept pairs against the tile.
template <typename D, int V>
[[gnu::always_inline]] static inline void row_times_pairs(const void* kept, const std::uint8_t* indices,
                                                          std::int64_t groups, const std::uint32_t* tile, float* sums,
                                                          bool first) {
  constexpr std::int64_t kRow = V * kLanes;
  typename D::Sums acc[V];
#pragma GCC unroll 16
  for (int i = 0; i < V; ++i) acc[i] = first ? D::zero() : D::load(sums + i * kLanes);
  const auto group = [&](std::int64_t g, unsigned nibble) __attribute__((always_inline)) {
    const std::uint32_t* row = tile + (g * kPairings + kPairing[nibble]) * kRow;
    const auto weight = D::splat(pair_at(kept, g));
#pragma GCC unroll 16
    for (int i = 0; i < V; ++i) acc[i] = D::dot(weight, row + i * kLanes, acc[i]);
  };
  for (std::int64_t g = 0; g < groups; g += 2) {  // a byte of indices
    const unsigned byte = indices[g / 2];
    group(g, byte & 15);
    group(g + 1, byte >> 4);
  }
#pragma GCC unroll 16
  for (int i = 0; i < V; ++i) D::store(sums + i * kLanes, acc[i]);
}

template <typename D>
using PairsRun = void (*)(Rows<typename D::Kept>, std::int64_t, std::int64_t, const std::uint32_t*, float*, bool,
                          std::int64_t);

template <typename D, int V>
static void pairs_run(Rows<typename D::Kept> rows, std::int64_t count, std::int64_t groups, const std::uint32_t* tile,
                      float* sums, bool first, std::int64_t ahead) {
  alignas(64) std::uint32_t wide[kBlockCols / 4] = {};
  for (std::int64_t row = 0; row < count; ++row, rows = rows.from_row(1), sums += V * kLanes) {
    if (ahead != 0) prefetch_rows(rows, ahead, 1);
    row_times_pairs<D, V>(kept_pairs<D>(rows.values, groups, wide), rows.indices, groups, tile, sums, first);
  }
}

template <typename D, int... V>
static PairsRun<D> pick_pairs_of(std::int64_t vectors, std::integer_sequence<int, V...>) {
  static constexpr PairsRun<D> kTable[] = {pairs_run<D, V + 1>...};
  return kTable[vectors - 1];
}

// sums [rows][lanes] of `count` rows as float32, times a scale a row and a scale a lane. Null: none.
template <typename D>
static void finish_pairs(float* sums, std::int64_t lanes, std::int64_t count, const float* scale,
                         const float* x_scale) {
  for (std::int64_t row = 0; row < count; ++row) {
    const Vec of_row = broadcast(scale == nullptr ? 1 : scale[row]);
    for (std::int64_t i = 0; i < lanes; i += kLanes) {
      Vec v = D::to_float(D::load(sums + row * lanes + i));
      if (scale != nullptr) v = mul(v, of_row);
      if (x_scale != nullptr) v = mul(v, load(x_scale + i));
      store(sums + row * lanes + i, v);
    }
  }
}

// x of D::X (int8 with x_scale), bias and y of float32.
template <typename D>
static std::uint64_t pairs_part(const Linear& a, const TilePlan& plan, std::int64_t ahead, Range row_range,
                                Range tile_range) {
  using X = typename D::X;
  const auto weight = rows_of<typename D::Kept>(a.weight);
  auto* tile =
      reinterpret_cast<std::uint32_t*>(scratch(Scratch::kTile, plan.cols / 4 * kPairings * plan.most * kLanes));
  float* sums = plan.sums();
  const X* x[kMaxPairVectors * kLanes];
  float *y[kMaxPairVectors * kLanes], x_scale[kMaxPairVectors * kLanes];
  const auto* bias = static_cast<const float*>(a.bias);
  std::uint64_t wrong = 0;
  if (tile_range.begin == 0) {
    wrong = disorder(weight.from_row(row_range.begin).indices, (row_range.end - row_range.begin) * weight.index_stride);
  }
  for (std::int64_t t = tile_range.begin; t < tile_range.end; ++t) {
    const std::int64_t vectors = plan.first(t + 1) - plan.first(t), lanes = vectors * kLanes;
    const std::int64_t token = plan.first(t) * kLanes;
    const std::int64_t tokens = a.n - token < lanes ? a.n - token : lanes;
    const PairsRun<D> run = pick_pairs_of<D>(vectors, std::make_integer_sequence<int, kMaxPairVectors>());
    for (std::int64_t i = 0; i < lanes; ++i) {  // lanes beyond the last token repeat it
      const std::int64_t at = token + (i < tokens ? i : tokens - 1);
      x[i] = static_cast<const X*>(a.x) + at * a.x_stride;
      x_scale[i] = a.x_scale == nullptr ? 1 : a.x_scale[at];
    }
    for (std::int64_t top = row_range.begin; top < row_range.end; top += plan.rows) {
      const std::int64_t rows = row_range.end - top < plan.rows ? row_range.end - top : plan.rows;
      for (std::int64_t k = 0; k < a.k; k += plan.cols) {
        const std::int64_t groups = (a.weight.padded - k < plan.cols ? a.weight.padded - k : plan.cols) / 4;
        pack_pairs(x, lanes, k, a.k, groups, tile);
        run(weight.from_row(top).from_col(k), rows, groups, tile, sums, k == 0, ahead);
      }
      finish_pairs<D>(sums, lanes, rows, a.weight.scale == nullptr ? nullptr : a.weight.scale + top,
                      a.x_scale == nullptr ? nullptr : x_scale);
      for (std::int64_t i = 0; i < tokens; ++i) y[i] = static_cast<float*>(a.y) + (token + i) * a.m + top;
      write_transposed(sums, lanes, rows, tokens, bias == nullptr ? nullptr : bias + top, a.activation, y);
    }
  }
  return wrong;
}

template <typename D>
static bool linear_pairs(const Linear& a, const Tuning& tuning) {
  if (a.n == 0 || a.m == 0) return true;
  const int threads = paying_threads(a.threads, a.n * a.m * (a.k / 4));
  Tuning own = tuning;
  own.vectors = tuning.pair_vectors < kMaxPairVectors ? tuning.pair_vectors : static_cast<int>(kMaxPairVectors);
  own.tile_cols = tuning.pair_cols;
  const TilePlan plan(own, a.n, threads);
  const Split split(a.m, plan.tiles, threads);
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1) reduction(| : wrong)
  for (std::int64_t task = 0; task < split.tasks(); ++task) {
    wrong |= pairs_part<D>(a, plan, tuning.tile_prefetch, split.rows(task), split.tiles(task));
  }
  return wrong == 0;
}
