// Products with many columns of activations, "tokens in lanes". Included once per instruction set,
// inside its namespace, after its Vec.
//
// A tile of activations is packed so that its rows are columns k of the weight:
//
//     tile [kTileCols k][V vectors of tokens]     V * kLanes tokens, small enough for L1
//
// and each output row is a sum of tile rows: for every kept weight w with index k,
//     sums[0..V) += w * tile[k][0..V)
// one broadcast and V multiply-adds that read L1. The zeros are never touched, which is where the
// factor of two comes from. A panel block covers kBlockCols columns, kTileCols of them at a time.

constexpr std::int64_t kTileQuads = kTileCols / 8;
constexpr std::int64_t kTileParts = kBlockCols / kTileCols;
constexpr std::int64_t kBlockBytes = kLanes * (kBlockKept * 4 + 8);
static_assert(kBlockCols % kTileCols == 0 && kTileQuads % 4 == 0, "a tile takes whole metadata words");

// Rows of a panel whose sums are kept while the tiles of all K pass by: a row of sums is as long as a
// tile's, and together they take 300 KB of L2.
constexpr std::int64_t kSumRows = (300 << 10) / (kMaxVectors * kLanes * 4) / 16 * 16;

// Where the quads of row r lie in a block: rows r, r+4, r+8.. share a vector, so that decode can
// transpose 4x4 inside 128-bit lanes while it reads the block from front to back.
static inline std::int64_t row_position(std::int64_t row) { return (row & 3) * (kLanes / 4) + (row >> 2); }

// R output rows against the tile: sums[R][V] (+)= kept weights times tile rows. `values` is the first
// row's first quad: quads are 4 kLanes apart, the rows of one group of four kLanes; `words` is its
// metadata, words are kLanes apart, rows one.
//
// The address of the next tile row is computed one weight ahead, so that its loads are ready when
// the multiply-adds get there: 0.78 of the multiply-add peak becomes 0.90. The empty asm keeps the
// compiler from moving that computation back.
template <int V, int R, bool kFirst>
static inline void rows_times_tile(const float* values, const std::uint32_t* words, const float* tile, float* sums) {
  constexpr std::int64_t kRow = V * kLanes;
  Vec acc[R][V];
  std::uint64_t bits[R];
  const float* next[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < V; ++i) acc[r][i] = kFirst ? zero() : load(sums + r * kRow + i * kLanes);
    bits[r] = words[r];
    if constexpr (kTileQuads == 8) bits[r] |= static_cast<std::uint64_t>(words[r + kLanes]) << 32;
    next[r] = tile + static_cast<std::int64_t>(bits[r] & 3) * kRow;
  }
#pragma GCC unroll 1
  for (std::int64_t word = 0; word < kTileQuads / 4; ++word) {
#pragma GCC unroll 16
    for (int slot = 0; slot < 16; ++slot) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const float* row = next[r];
        bits[r] >>= 2;
        next[r] = tile + (static_cast<std::int64_t>(bits[r] & 3) + (slot + 1) / 2 * 4) * kRow;
        asm volatile("" : "+r"(next[r]));
        const Vec weight = splat(load_quad(values + r * kLanes + slot / 4 * 4 * kLanes), slot % 4);
#pragma GCC unroll 32
        for (int i = 0; i < V; ++i) acc[r][i] = fma(weight, load(row + i * kLanes), acc[r][i]);
      }
    }
    values += 16 * kLanes;
    tile += 32 * kRow;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < V; ++i) store(sums + r * kRow + i * kLanes, acc[r][i]);
  }
}

// All rows [0, rows) of a run of panel blocks (rows a multiple of kLanes) against one tile. A multiply-
// add takes four cycles and two start in each, so eight sums should be under way: narrow tiles take
// several rows at once (from five vectors on that measured no better).
template <int V>
static void panel_times_tile(const std::byte* block, std::int64_t part, const float* tile, float* sums,
                             std::int64_t rows, bool first) {
  constexpr int kRows = V <= 3 ? 4 : V == 4 ? 2 : 1;
  for (std::int64_t top = 0; top < rows; top += kLanes, block += kBlockBytes) {
    const float* values = reinterpret_cast<const float*>(block) + part * kTileQuads * 4 * kLanes;
    const std::uint32_t* words =
        reinterpret_cast<const std::uint32_t*>(block + kLanes * kBlockKept * 4) + part * (kTileQuads / 4) * kLanes;
    for (std::int64_t row = 0; row < kLanes; row += kRows, sums += kRows * V * kLanes) {
      for (std::int64_t line = row * 2; line < (row + kRows) * 2; ++line) {  // the block below: weights stream by
        prefetch(block + kBlockBytes + line * (kBlockBytes / kLanes / 2));
      }
      if (first) {
        rows_times_tile<V, kRows, true>(values + 4 * row_position(row), words + row, tile, sums);
      } else {
        rows_times_tile<V, kRows, false>(values + 4 * row_position(row), words + row, tile, sums);
      }
    }
  }
}

using PanelTimesTile = void (*)(const std::byte*, std::int64_t, const float*, float*, std::int64_t, bool);

template <int... V>
static PanelTimesTile pick_panel_times_tile(std::int64_t vectors, std::integer_sequence<int, V...>) {
  static constexpr PanelTimesTile kTable[] = {panel_times_tile<V + 1>...};
  return kTable[vectors - 1];
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
        for (std::int64_t t = 0; t < kLanes; ++t) out[c * stride + t] = c < present ? tokens[t][k + c] : 0.0f;
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

// How n tokens are cut into tiles of nearly equal numbers of vectors: 16 vectors go 8 + 8, not 14 + 2.
// Where a few tiles go round the threads, there are as many for each.
struct TilePlan {
  std::int64_t vectors, tiles;
  TilePlan(std::int64_t n, std::int64_t threads)
      : vectors((n + kLanes - 1) / kLanes), tiles((vectors + kMaxVectors - 1) / kMaxVectors) {
    if (tiles >= threads && tiles < 8 * threads) tiles = round_up(tiles, threads);
  }
  std::int64_t first(std::int64_t tile) const { return tile * vectors / tiles; }
};

struct Range {
  std::int64_t begin, end;
};

// Work cut into tasks: a tile each, for all rows, where there is one for every thread; otherwise by
// output rows, where every task packs the same tiles again.
class Split {
 public:
  Split(std::int64_t rows, std::int64_t tiles, std::int64_t threads) : rows_(rows), tiles_(tiles) {
    const std::int64_t blocks = (rows + kLanes - 1) / kLanes;
    by_rows_ = tiles < threads;
    tasks_ = !by_rows_ ? tiles : blocks < threads ? blocks : threads;
  }
  std::int64_t tasks() const { return tasks_; }
  Range rows(std::int64_t task) const {
    if (!by_rows_) return {0, rows_};
    const std::int64_t blocks = (rows_ + kLanes - 1) / kLanes;
    const std::int64_t end = blocks * (task + 1) / tasks_ * kLanes;
    return {blocks * task / tasks_ * kLanes, end < rows_ ? end : rows_};
  }
  Range tiles(std::int64_t task) const {
    if (by_rows_) return {0, tiles_};
    return {task, task + 1};
  }

 private:
  std::int64_t rows_, tiles_, tasks_;
  bool by_rows_;
};

// Output rows (from a multiple of kLanes on) times tiles of tokens.
static void linear_part(const Linear& a, const TilePlan& plan, Range row_range, Range tile_range) {
  const std::int64_t panel_rows = round_up(a.m, kLanes);
  float* tile = scratch(Scratch::kTile, kTileCols * kMaxVectors * kLanes);
  float* sums = scratch(Scratch::kSums, kSumRows * kMaxVectors * kLanes);
  const float* x[kMaxVectors * kLanes];
  float* y[kMaxVectors * kLanes];
  for (std::int64_t t = tile_range.begin; t < tile_range.end; ++t) {
    const std::int64_t vectors = plan.first(t + 1) - plan.first(t);
    const std::int64_t token = plan.first(t) * kLanes;
    const std::int64_t tokens = a.n - token < vectors * kLanes ? a.n - token : vectors * kLanes;
    const PanelTimesTile run = pick_panel_times_tile(vectors, std::make_integer_sequence<int, kMaxVectors>());
    // Lanes beyond the last token repeat it; nothing of them is written.
    for (std::int64_t i = 0; i < vectors * kLanes; ++i)
      x[i] = a.x + (token + (i < tokens ? i : tokens - 1)) * a.x_stride;
    for (std::int64_t top = row_range.begin; top < row_range.end; top += kSumRows) {
      const std::int64_t rows = row_range.end - top < kSumRows ? row_range.end - top : kSumRows;
      for (std::int64_t k = 0; k < a.k; k += kTileCols) {
        pack_rows(x, vectors, k, a.k, kTileCols, tile);
        const std::byte* block =
            static_cast<const std::byte*>(a.panels) + (k / kBlockCols * panel_rows + top) / kLanes * kBlockBytes;
        run(block, k / kTileCols % kTileParts, tile, sums, round_up(rows, kLanes), k == 0);
      }
      for (std::int64_t i = 0; i < tokens; ++i) y[i] = a.y + (token + i) * a.m + top;
      write_transposed(sums, vectors * kLanes, rows, tokens, a.bias == nullptr ? nullptr : a.bias + top, a.activation,
                       y);
    }
  }
}

static void linear_many(const Linear& a) {
  const int threads = usable_threads(a.threads);
  const TilePlan plan(a.n, threads);
  const Split split(a.m, plan.tiles, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (std::int64_t task = 0; task < split.tasks(); ++task) {
    linear_part(a, plan, split.rows(task), split.tiles(task));
  }
}
