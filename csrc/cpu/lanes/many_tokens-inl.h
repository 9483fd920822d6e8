// Products with many columns of activations, "tokens in lanes".
//
// A tile of activations is packed so that its rows are columns k of the weight:
//
//     tile [tile_cols k][V vectors of tokens]     V * kLanes tokens, small enough for L1
//
// and each output row is a sum of tile rows: for every kept weight w with index k,
//     sums[0..V) += w * tile[k][0..V)
// one broadcast and V multiply-adds that read L1. The zeros are never touched, which is where the
// factor of two comes from. The weight is read row by row where it lies; the row some way ahead is
// fetched meanwhile.
#pragma once

#include "epilogue-inl.h"
#include "tiles-inl.h"
#include "weight-inl.h"

constexpr std::int64_t kMaxTileCols = kBlockCols;

// N kept weights of R rows, a multiple of four, against the tile rows that they name. next[r] is where the
// first one's tile row begins, bits[r] holds the indices from there on; both move on.
//
// With one row the address of the next tile row is computed one weight ahead, so that its loads are ready
// when the multiply-adds get there: 0.78 of the multiply-add peak becomes 0.90. The empty asm keeps the
// compiler from moving that computation back. Several rows hide it behind each other, and need the registers.
template <int N, int V, int R>
[[gnu::always_inline]] static inline void multiply_add(const float* (&values)[R], const float*& tile,
                                                       std::uint64_t (&bits)[R], const float* (&next)[R],
                                                       Vec (&acc)[R][V]) {
  constexpr std::int64_t kRow = V * kLanes;
#pragma GCC unroll 16
  for (int slot = 0; slot < N; ++slot) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float* row = tile + (static_cast<std::int64_t>(bits[r] & 3) + slot / 2 * 4) * kRow;
      bits[r] >>= 2;
      if constexpr (R == 1) {
        row = next[r];
        next[r] = tile + (static_cast<std::int64_t>(bits[r] & 3) + (slot + 1) / 2 * 4) * kRow;
        asm volatile("" : "+r"(next[r]));
      }
      const Vec weight = splat(load_quad(values[r] + slot / 4 * 4), slot % 4);
#pragma GCC unroll 32
      for (int i = 0; i < V; ++i) acc[r][i] = fma(weight, load(row + i * kLanes), acc[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) values[r] += N;
  tile += 2 * N * kRow;
}

// R output rows against the tile: sums[R][V] (+)= kept weights times tile rows.
template <int V, int R>
[[gnu::always_inline]] static inline void rows_times_tile(const Rows<float>& rows, std::int64_t quads,
                                                          const float* tile, float* sums, bool first) {
  constexpr std::int64_t kRow = V * kLanes;
  Vec acc[R][V];
  std::uint64_t bits[R];
  const float* next[R];
  const float* values[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    values[r] = rows.values + r * rows.value_stride;
    bits[r] = load_bits(rows.indices + r * rows.index_stride, quads);
    next[r] = tile + static_cast<std::int64_t>(bits[r] & 3) * kRow;
    if (first) {
#pragma GCC unroll 32
      for (int i = 0; i < V; ++i) acc[r][i] = zero();
    } else {
#pragma GCC unroll 32
      for (int i = 0; i < V; ++i) acc[r][i] = load(sums + r * kRow + i * kLanes);
    }
  }
#pragma GCC unroll 1
  for (; quads >= 4; quads -= 4) multiply_add<16, V, R>(values, tile, bits, next, acc);
#pragma GCC unroll 1
  for (; quads > 0; --quads) multiply_add<4, V, R>(values, tile, bits, next, acc);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < V; ++i) store(sums + r * kRow + i * kLanes, acc[r][i]);
  }
}

// The rows `ahead` further on: their weights and indices in one tile's columns.
template <typename W>
static inline void prefetch_rows(const Rows<W>& rows, std::int64_t ahead, std::int64_t count) {
  Rows<W> far = rows.from_row(ahead);
  for (std::int64_t r = 0; r < count; ++r, far = far.from_row(1)) {
    prefetch(far.values);
    if constexpr (sizeof(W) == 4) prefetch(far.values + 16);
    prefetch(far.indices);
  }
}

// A run of output rows against one tile. A multiply-add takes four cycles and two start in each, so eight
// sums should be under way: narrow tiles take several rows at once (from five vectors on that measured no
// better).
template <int V>
static void rows_run(Rows<float> rows, std::int64_t count, std::int64_t quads, const float* tile, float* sums,
                     bool first, std::int64_t ahead) {
  constexpr int kRows = V <= 3 ? 4 : V == 4 ? 2 : 1;
  std::int64_t row = 0;
  for (; row + kRows <= count; row += kRows, rows = rows.from_row(kRows), sums += kRows * V * kLanes) {
    if (ahead != 0) prefetch_rows(rows, ahead, kRows);
    rows_times_tile<V, kRows>(rows, quads, tile, sums, first);
  }
  for (; row < count; ++row, rows = rows.from_row(1), sums += V * kLanes) {
    rows_times_tile<V, 1>(rows, quads, tile, sums, first);
  }
}

using RowsRun = void (*)(Rows<float>, std::int64_t, std::int64_t, const float*, float*, bool, std::int64_t);

template <int... V>
static RowsRun pick_of(std::int64_t vectors, std::integer_sequence<int, V...>) {
  static constexpr RowsRun kTable[] = {rows_run<V + 1>...};
  return kTable[vectors - 1];
}

static RowsRun pick_rows_run(std::int64_t vectors) {
  return pick_of(vectors, std::make_integer_sequence<int, kMaxVectors>());
}

// The same for weights of any type: those of 16 bits are widened a few rows at a time, into L1.
[[maybe_unused]] static void weight_times_tile(RowsRun run, const Rows<float>& rows, std::int64_t count,
                                               std::int64_t quads, const float* tile, std::int64_t, float* sums,
                                               bool first, std::int64_t ahead) {
  run(rows, count, quads, tile, sums, first, ahead);
}

template <typename W>
static void weight_times_tile(RowsRun run, Rows<W> rows, std::int64_t count, std::int64_t quads, const float* tile,
                              std::int64_t lanes, float* sums, bool first, std::int64_t) {
  constexpr std::int64_t kRows = 16, kKept = kBlockCols / 2;
  alignas(64) float wide[kRows * kKept];
  for (std::int64_t row = 0; row < count; row += kRows, rows = rows.from_row(kRows), sums += kRows * lanes) {
    const std::int64_t some = count - row < kRows ? count - row : kRows;
    prefetch_rows(rows, kRows, kRows);
    for (std::int64_t r = 0; r < some; ++r) {
      const W* from = rows.values + r * rows.value_stride;
      float* to = wide + r * kKept;
      if (quads == kBlockCols / 8) {
        for (std::int64_t i = 0; i < kKept; i += kLanes) store(to + i, load(from + i));
      } else {
        for (std::int64_t i = 0; i < 4 * quads; ++i) to[i] = to_float(from[i]);
      }
    }
    run({wide, rows.indices, kKept, rows.index_stride}, some, quads, tile, sums, first, 0);
  }
}

// tile [count][vectors * kLanes] from token rows: rows[t] + k. Columns from `cols` on are zero.
// Sixteen columns at a time: a cache line of a row is used up before the next row's comes.
static void pack_rows(const float* const* rows, std::int64_t vectors, std::int64_t k, std::int64_t cols,
                      std::int64_t count, float* tile) {
  const std::int64_t stride = vectors * kLanes;
  const std::int64_t present = cols - k < count ? cols - k : count;
  for (std::int64_t begin = 0; begin < count; begin += 16) {
    const std::int64_t end = begin + 16 < count ? begin + 16 : count;
    for (std::int64_t i = 0; i < vectors; ++i) {
      const float* const* tokens = rows + i * kLanes;
      float* out = tile + i * kLanes;
      std::int64_t c = begin;
      for (; c + 4 <= (present < end ? present : end); c += 4) {
        Vec v0 = load_quads<0>(tokens, k + c), v1 = load_quads<1>(tokens, k + c);
        Vec v2 = load_quads<2>(tokens, k + c), v3 = load_quads<3>(tokens, k + c);
        transpose4(v0, v1, v2, v3);
        store(out + (c + 0) * stride, v0);
        store(out + (c + 1) * stride, v1);
        store(out + (c + 2) * stride, v2);
        store(out + (c + 3) * stride, v3);
      }
      for (; c < end; ++c) {
        for (std::int64_t t = 0; t < kLanes; ++t) {  // as bytes: pairs-inl.h packs words that are no floats
          float one = 0;
          if (c < present) std::memcpy(&one, tokens[t] + k + c, sizeof one);
          std::memcpy(out + c * stride + t, &one, sizeof one);
        }
      }
    }
  }
}

// y[token][m] = activation(sums[m][token] + bias[m]) for rows [0, rows) and tokens [0, tokens).
// kLanes tokens go through all rows, sixteen at a time, a whole cache line of y: few pages and streams
// are open, and a line is complete before the next one of its set comes.
static void write_transposed(const float* sums, std::int64_t stride, std::int64_t rows, std::int64_t tokens,
                             const float* bias, Activation activation, float* const* y) {
  for (std::int64_t t = 0; t < tokens; t += kLanes) {
    const std::int64_t live = tokens - t < kLanes ? tokens - t : kLanes;
    for (std::int64_t m = 0; m < rows; m += 16) {
      for (std::int64_t m4 = m; m4 < rows && m4 < m + 16; m4 += 4) {
        Vec v[4];
        for (int j = 0; j < 4; ++j) {
          const std::int64_t row = m4 + j < rows ? m4 + j : rows - 1;
          v[j] = load(sums + row * stride + t);
          if (bias != nullptr) v[j] = add(v[j], broadcast(bias[row]));
          v[j] = activate(v[j], activation);
        }
        transpose4(v[0], v[1], v[2], v[3]);
        if (live == kLanes && m4 + 4 <= rows) {
          for (int j = 0; j < 4; ++j) store_quads(y + t + j, m4, v[j]);
        } else {
          alignas(64) float quads[4][kLanes];
          for (int j = 0; j < 4; ++j) store(quads[j], v[j]);
          for (std::int64_t token = 0; token < live; ++token) {
            for (std::int64_t i = 0; i < 4 && m4 + i < rows; ++i) {
              y[t + token][m4 + i] = quads[token % 4][token / 4 * 4 + i];
            }
          }
        }
      }
    }
  }
}

// sums [rows][lanes] times the scales of int8: of output rows from `row` on, and of tokens from `token` on.
static void scale_sums(float* sums, std::int64_t lanes, std::int64_t rows, std::int64_t tokens, const float* scale,
                       std::int64_t row, const float* x_scale, std::int64_t token) {
  if (scale == nullptr) return;
  for (std::int64_t r = 0; r < rows; ++r, sums += lanes) {
    const Vec of_row = broadcast(scale[row + r]);
    for (std::int64_t i = 0; i < lanes; i += kLanes) store(sums + i, mul(load(sums + i), of_row));
    for (std::int64_t i = 0; x_scale != nullptr && i < tokens; ++i) sums[i] *= x_scale[token + i];
  }
}

// Output rows times tiles of tokens. The first tile's task looks at the indices.
template <typename W>
static std::uint64_t linear_part(const Linear& a, const TilePlan& plan, std::int64_t ahead, Range row_range,
                                 Range tile_range) {
  const Rows<W> weight = rows_of<W>(a.weight);
  float *tile = plan.tile(), *sums = plan.sums();
  const float *x[kMaxVectors * kLanes], *bias = static_cast<const float*>(a.bias);
  float* y[kMaxVectors * kLanes];
  std::uint64_t wrong = 0;
  if (tile_range.begin == 0) {
    wrong = disorder(weight.from_row(row_range.begin).indices, (row_range.end - row_range.begin) * weight.index_stride);
  }
  for (std::int64_t t = tile_range.begin; t < tile_range.end; ++t) {
    const std::int64_t vectors = plan.first(t + 1) - plan.first(t);
    const std::int64_t token = plan.first(t) * kLanes;
    const std::int64_t tokens = a.n - token < vectors * kLanes ? a.n - token : vectors * kLanes;
    const RowsRun run = pick_rows_run(vectors);
    // Lanes beyond the last token repeat it; nothing of them is written.
    for (std::int64_t i = 0; i < vectors * kLanes; ++i)
      x[i] = static_cast<const float*>(a.x) + (token + (i < tokens ? i : tokens - 1)) * a.x_stride;
    for (std::int64_t top = row_range.begin; top < row_range.end; top += plan.rows) {
      const std::int64_t rows = row_range.end - top < plan.rows ? row_range.end - top : plan.rows;
      for (std::int64_t k = 0; k < a.k; k += plan.cols) {
        pack_rows(x, vectors, k, a.k, plan.cols, tile);
        const std::int64_t quads = (a.weight.padded - k < plan.cols ? a.weight.padded - k : plan.cols) / 8;
        weight_times_tile(run, weight.from_row(top).from_col(k), rows, quads, tile, vectors * kLanes, sums, k == 0,
                          ahead);
      }
      scale_sums(sums, vectors * kLanes, rows, tokens, a.weight.scale, top, a.x_scale, token);
      for (std::int64_t i = 0; i < tokens; ++i) y[i] = static_cast<float*>(a.y) + (token + i) * a.m + top;
      write_transposed(sums, vectors * kLanes, rows, tokens, bias == nullptr ? nullptr : bias + top, a.activation, y);
    }
  }
  return wrong;
}

template <typename W>
static bool linear_many(const Linear& a, const Tuning& tuning) {
  const int threads = paying_threads(a.threads, a.n * a.m * (a.k / 2));
  const TilePlan plan(tuning, a.n, threads);
  const Split split(a.m, plan.tiles, threads);
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1) reduction(| : wrong)
  for (std::int64_t task = 0; task < split.tasks(); ++task) {
    wrong |= linear_part<W>(a, plan, tuning.tile_prefetch, split.rows(task), split.tiles(task));
  }
  return wrong == 0;
}
