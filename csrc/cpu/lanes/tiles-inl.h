// How a product with many tokens is cut into tiles, and the tiles and rows into tasks for threads.
#pragma once

// How n tokens are cut into tiles of nearly equal numbers of vectors: 16 vectors go 8 + 8, not 14 + 2.
// Where a few tiles go round the threads, there are as many for each.
struct TilePlan {
  std::int64_t most;  // vectors of a tile
  std::int64_t cols;  // columns of a tile
  std::int64_t rows;  // whose sums are kept while the tiles of all K pass by: they stay in L2
  std::int64_t vectors, tiles;
  TilePlan(const Tuning& tuning, std::int64_t n, std::int64_t threads)
      : most(tuning.vectors < kMaxVectors ? tuning.vectors : kMaxVectors),
        cols(tuning.tile_cols),
        rows(tuning.sums_bytes / (most * kLanes * 4) / 16 * 16),
        vectors((n + kLanes - 1) / kLanes),
        tiles((vectors + most - 1) / most) {
    if (rows < 16) rows = 16;
    if (tiles >= threads && tiles < 8 * threads && round_up(tiles, threads) <= vectors)
      tiles = round_up(tiles, threads);
  }
  float* tile() const { return scratch(Scratch::kTile, cols * most * kLanes); }
  float* sums() const { return scratch(Scratch::kSums, rows * most * kLanes); }
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

// Threads that pay for a product of so many multiply-adds: waking one costs about as much as 200,000.
static inline int paying_threads(int wish, std::int64_t multiply_adds) {
  const int usable = usable_threads(wish);
  const std::int64_t paying = multiply_adds / 200000 + 1;
  return paying < usable ? static_cast<int>(paying) : usable;
}
