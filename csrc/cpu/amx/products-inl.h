// A product by tiles: activations are packed a block of tokens at a time, which all threads share; then every thread
// takes strips of 32 output rows, expands 32 rows by some columns of the weight into L1, and multiplies them with
// all tokens of the block, two by two tiles at a time.
#pragma once

#include "expand-inl.h"
#include "pack-inl.h"
#include "tiles-inl.h"

// Where the activations of a product come from: rows of k, sixteen tokens at a time.
template <typename X>
struct Source {
  // The columns [k, k + count) of tokens [token, token + 16): where they begin, null beyond the last token. They may
  // be copied to `space` [16][count] first. Returns how many of the columns are there; the others are zeros.
  virtual std::int64_t rows(std::int64_t token, std::int64_t k, std::int64_t count, X* space,
                            const X* (&rows)[16]) const = 0;

 protected:
  ~Source() = default;
};

// Where the sums go: [2][2][16 output rows][16 tokens] of up to 32 rows and 32 tokens; int32 where they are int8's.
struct Sink {
  virtual void write(std::int64_t row, std::int64_t rows, std::int64_t token, std::int64_t tokens,
                     const float* sums) const = 0;

 protected:
  ~Sink() = default;
};

constexpr std::int64_t kStrip = 32;  // output rows, and tokens, of two by two tiles
constexpr std::int64_t kStripFloats = kStrip * kStrip;

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// How tokens and columns are cut, so that a block's packed activations stay in L2.
template <typename P>
struct TilesPlan {
  static constexpr std::int64_t kCols = kBlockSteps<P> * P::kStep;  // of a block of the weight
  std::int64_t cols;    // of a chunk: all of them if that leaves enough tokens
  std::int64_t tokens;  // of a block, a multiple of 32
  TilesPlan(std::int64_t n, std::int64_t padded, std::int64_t bytes) {
    constexpr std::int64_t kColBytes = P::kInput * kTileBytes / 16 / P::kStep;  // of one token
    const std::int64_t all = round_up(padded, kCols), most = P::kInput == 1 ? 32 * kCols : 512;
    cols = least(all, most);
    tokens = bytes / (cols * kColBytes) / kStrip * kStrip;
    if (tokens < 2 * kStrip) tokens = 2 * kStrip;
    tokens = least(tokens, round_up(n, kStrip));
  }
  std::int64_t steps() const { return cols / P::kStep; }
  std::int64_t packed_bytes() const { return tokens / 16 * steps() * P::kInput * kTileBytes; }
};

// The rows of a block that is multiplied next: every line of their weights and indices.
template <typename W>
static void prefetch_block(const Rows<W>& rows, std::int64_t begin, std::int64_t end, std::int64_t cols) {
  for (std::int64_t r = begin; r < end; ++r) {
    const auto* line = reinterpret_cast<const char*>(rows.values + r * rows.value_stride);
    for (std::int64_t at = 0; at < cols / 2 * static_cast<std::int64_t>(sizeof(W)); at += 64) prefetch(line + at);
    prefetch(rows.indices + r * rows.index_stride);
  }
}

// One block of the weight times all tokens of a block. sums [tokens/32][4 tiles].
template <typename P>
static void multiply_tokens(const std::byte* weights, std::int64_t rows, const std::byte* packed,
                            std::int64_t token_bytes, std::int64_t tokens, std::int64_t steps, float* sums,
                            bool first) {
  const bool two_rows = rows > 16, two_columns = tokens > 16;
  const auto run = two_rows ? (two_columns ? multiply_block<P, true, true> : multiply_block<P, true, false>)
                            : (two_columns ? multiply_block<P, false, true> : multiply_block<P, false, false>);
  run(weights, packed, packed + token_bytes, steps, sums, first);
}

template <typename P, bool kApart, typename W, typename X>
static bool run_tiles(const Rows<W>& weight, std::int64_t m, std::int64_t padded, std::int64_t n,
                      const Source<X>& source, const Sink& sink, int threads, std::int64_t bytes) {
  using Plan = TilesPlan<P>;
  const Plan plan(n, padded, bytes);
  const std::int64_t strips = (m + kStrip - 1) / kStrip, chunks = (padded + plan.cols - 1) / plan.cols;
  const std::int64_t token_bytes = plan.steps() * P::kInput * kTileBytes;  // of sixteen tokens
  const std::int64_t strip_floats = plan.tokens / kStrip * kStripFloats;
  auto* packed = reinterpret_cast<std::byte*>(scratch(Scratch::kInput, plan.packed_bytes() / 4));
  // Sums outlive a strip only where the columns come in chunks.
  float* all_sums = chunks > 1 ? scratch(Scratch::kSums, strips * strip_floats) : nullptr;
  constexpr std::int64_t kWeightFloats = kBlockSteps<P> * 2 * P::kWeight * kTileBytes / 4;
  std::uint64_t wrong = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : wrong)
  {
    const TileScope scope;
    float* own = scratch(Scratch::kTile, kWeightFloats + strip_floats);
    auto* tiles = reinterpret_cast<std::byte*>(own);
    for (std::int64_t t = 0; t < n; t += plan.tokens) {
      const std::int64_t tokens = least(n - t, plan.tokens);
      for (std::int64_t k = 0; k < padded; k += plan.cols) {
        const std::int64_t cols = least(padded - k, plan.cols);
#pragma omp for schedule(static)
        for (std::int64_t token = 0; token < tokens; token += 16) {
          alignas(64) X space[16 * Plan::kCols];
          const X* rows[16];
          for (std::int64_t at = 0; at < cols; at += Plan::kCols) {
            const std::int64_t count = least(cols - at, Plan::kCols);
            const std::int64_t live = source.rows(t + token, k + at, count, space, rows);
            pack_tokens<P, kApart>(rows, live, (count + P::kStep - 1) / P::kStep,
                                   packed + token / 16 * token_bytes + at / P::kStep * P::kInput * kTileBytes);
          }
        }
#pragma omp for schedule(dynamic, 1)
        for (std::int64_t strip = 0; strip < strips; ++strip) {
          const std::int64_t row = strip * kStrip, rows = least(m - row, kStrip);
          const Rows<W> strip_rows = weight.from_row(row);
          float* sums = all_sums != nullptr ? all_sums + strip * strip_floats : own + kWeightFloats;
          for (std::int64_t at = 0; at < cols; at += Plan::kCols) {
            const std::int64_t count = least(cols - at, Plan::kCols), steps = (count + P::kStep - 1) / P::kStep;
            const bool last = k + at + count == padded;
            const bool follows = at + count < cols;  // in this strip; else at the head of the next one
            const Rows<W> next =
                follows ? strip_rows.from_col(k + at + count) : weight.from_row(row + rows).from_col(k);
            const std::int64_t next_rows = follows ? rows : least(m - row - rows, kStrip);
            const std::int64_t next_cols = least(follows ? cols - at - count : cols, Plan::kCols);
            // While a block is multiplied the next one is fetched: at once for few tokens, for more a part with
            // each two tiles of them.
            const std::int64_t pairs = (tokens + kStrip - 1) / kStrip;
            if (pairs < 4) prefetch_block(next, 0, next_rows, next_cols);
            wrong |= expand_block<P>(strip_rows.from_col(k + at), rows, count, tiles);
            for (std::int64_t pair = 0; pair < pairs; ++pair) {
              if (pairs >= 4) {
                prefetch_block(next, next_rows * pair / pairs, next_rows * (pair + 1) / pairs, next_cols);
              }
              const std::int64_t token = pair * kStrip, some = least(tokens - token, kStrip);
              float* pair_sums = sums + pair * kStripFloats;
              multiply_tokens<P>(tiles, rows,
                                 packed + token / 16 * token_bytes + at / P::kStep * P::kInput * kTileBytes,
                                 token_bytes, some, steps, pair_sums, k + at == 0);
              if (last) sink.write(row, rows, t + token, some, pair_sums);
            }
          }
        }
      }
    }
    _mm_sfence();  // outputs that went past the caches
  }
  return wrong == 0;
}
