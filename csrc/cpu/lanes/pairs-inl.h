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
// D says what a pair is: D::Kept, the type of the weight (and of x), D::Sums, a vector of sums, and
//   zero load store to_float                      of sums
//   dot(D::splat(pair), tile row, sums)           sums, and the products of a pair with a vector of pairs
#pragma once

#include "many_tokens-inl.h"

constexpr std::int64_t kPairings = 6, kMaxPairVectors = kMaxVectors < 10 ? kMaxVectors : 10;

// Which of the six pairs a nibble of indices a + 4 b names: 01 02 03 12 13 23. Disordered ones name any.
constexpr std::uint8_t kPairing[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 2, 4, 5, 0};

// Four 8-bit activations of a token and group, low byte first, as a pair of 16 bits.
static inline std::uint32_t pair_of_bytes(std::uint32_t four, int a, int b) {
  const auto low = static_cast<std::uint32_t>(static_cast<std::int32_t>(four << (24 - 8 * a)) >> 24);
  const auto high = static_cast<std::uint32_t>(static_cast<std::int32_t>(four << (24 - 8 * b)) >> 24);
  return (low & 0xffffu) | high << 16;
}

// The tile's columns [k, k + cols) of `lanes` tokens.
static void pack_pairs(const std::int8_t* const* x, std::int64_t lanes, std::int64_t k, std::int64_t live,
                       std::int64_t groups, std::uint32_t* tile) {
  std::uint32_t four[kMaxPairVectors * kLanes];
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t col = k + 4 * g, count = live - col;
    for (std::int64_t i = 0; i < lanes; ++i) {
      std::uint32_t bytes = 0;
      if (count >= 4) {
        std::memcpy(&bytes, x[i] + col, 4);
      } else {
        for (std::int64_t c = 0; c < count; ++c)
          bytes |= std::uint32_t{static_cast<std::uint8_t>(x[i][col + c])} << (8 * c);
      }
      four[i] = bytes;
    }
    int pairing = 0;
    for (int a = 0; a < 3; ++a) {
      for (int b = a + 1; b < 4; ++b, ++pairing) {
        std::uint32_t* to = tile + (g * kPairings + pairing) * lanes;
        for (std::int64_t i = 0; i < lanes; ++i) to[i] = pair_of_bytes(four[i], a, b);
      }
    }
  }
}

[[maybe_unused]] static void pack_pairs(const BFloat16* const* x, std::int64_t lanes, std::int64_t k, std::int64_t live,
                                        std::int64_t groups, std::uint32_t* tile) {
  std::uint32_t column[4][kMaxPairVectors * kLanes];
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t c = 0; c < 4; ++c) {
      const std::int64_t col = k + 4 * g + c;
      for (std::int64_t i = 0; i < lanes; ++i) column[c][i] = col < live ? x[i][col].bits : 0;
    }
    int pairing = 0;
    for (int a = 0; a < 3; ++a) {
      for (int b = a + 1; b < 4; ++b, ++pairing) {
        std::uint32_t* to = tile + (g * kPairings + pairing) * lanes;
        for (std::int64_t i = 0; i < lanes; ++i) to[i] = column[a][i] | column[b][i] << 16;
      }
    }
  }
}

// Kept pairs as the products take them: bfloat16's lie as they are, bytes are widened to 16 bits.
[[maybe_unused]] static inline const void* kept_pairs(const BFloat16* kept, std::int64_t, std::uint32_t*) {
  return kept;
}
static inline const void* kept_pairs(const std::int8_t* kept, std::int64_t groups, std::uint32_t* wide) {
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int32_t a = kept[2 * g], b = kept[2 * g + 1];
    wide[g] = (static_cast<std::uint32_t>(a) & 0xffffu) | static_cast<std::uint32_t>(b) << 16;
  }
  return wide;
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
    row_times_pairs<D, V>(kept_pairs(rows.values, groups, wide), rows.indices, groups, tile, sums, first);
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

// x of D::Kept (int8 with x_scale), bias and y of float32.
template <typename D>
static std::uint64_t pairs_part(const Linear& a, const TilePlan& plan, std::int64_t ahead, Range row_range,
                                Range tile_range) {
  using W = typename D::Kept;
  const Rows<W> weight = rows_of<W>(a.weight);
  auto* tile =
      reinterpret_cast<std::uint32_t*>(scratch(Scratch::kTile, plan.cols / 4 * kPairings * plan.most * kLanes));
  float* sums = plan.sums();
  const W* x[kMaxPairVectors * kLanes];
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
      x[i] = static_cast<const W*>(a.x) + at * a.x_stride;
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
  if (own.vectors > kMaxPairVectors) own.vectors = kMaxPairVectors;
  const TilePlan plan(own, a.n, threads);
  const Split split(a.m, plan.tiles, threads);
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1) reduction(| : wrong)
  for (std::int64_t task = 0; task < split.tasks(); ++task) {
    wrong |= pairs_part<D>(a, plan, tuning.tile_prefetch, split.rows(task), split.tiles(task));
  }
  return wrong == 0;
}
