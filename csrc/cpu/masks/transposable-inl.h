// The best transposable 2:4 mask of 4x4 tiles: two kept in every row and every column. Included once
// per instruction set, inside its namespace. kLanes tiles at a time, a tile in each lane.
//
// A row keeps one of 6 pairs of columns. Of the two upper rows only the column counts matter to the
// two lower ones, and there are 19 such counts: 6 from equal pairs (2200 and its like), 12 from pairs
// that share a column (2110), each reached in 2 ways, and 1 from disjoint pairs (1111), reached in 6.
// So the best of the 90 patterns is the best over 19 counts of
//     best upper half with these counts + best lower half with 2 minus these counts.
// Ties go to the first in the order of the tables below, on every instruction set alike; sums are
// (upper row 0 + upper row 1) + (lower row 0 + lower row 1), each row lower column + higher column.

#pragma once

#include "../lanes/numbers-inl.h"

struct Half {
  int count;          // which of the 19 column counts
  int first, second;  // pairs of the two rows
};

// Pairs of columns as bits, in ascending order.
constexpr int kPairs[6] = {0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100};
constexpr int kPairColumns[6][2] = {{0, 1}, {0, 2}, {1, 2}, {0, 3}, {1, 3}, {2, 3}};

constexpr int column_counts(int first, int second) {  // base 3, a digit a column
  int counts = 0;
  for (int column = 3; column >= 0; --column) {
    counts = 3 * counts + (kPairs[first] >> column & 1) + (kPairs[second] >> column & 1);
  }
  return counts;
}

struct HalfTable {
  Half halves[36] = {};
  int opposite[19] = {};  // the count that completes this one to two a column
  constexpr HalfTable() {
    int counts[19] = {}, known = 0;
    for (int i = 0; i < 36; ++i) {
      const int of = column_counts(i / 6, i % 6);
      int at = 0;
      while (at < known && counts[at] != of) ++at;
      if (at == known) counts[known++] = of;
      halves[i] = Half{at, i / 6, i % 6};
    }
    for (int a = 0; a < 19; ++a) {
      for (int b = 0; b < 19; ++b) {
        if (counts[a] + counts[b] == 80) opposite[a] = b;  // 2222 in base 3
      }
    }
  }
};
constexpr HalfTable kHalves;

// Best half a count: its sum, and its eight bits as a float's integer value.
static inline void best_halves(const Vec (&row0)[6], const Vec (&row1)[6], Vec (&best)[19], Vec (&bits)[19]) {
  bool seen[19] = {};
#pragma GCC unroll 36
  for (int i = 0; i < 36; ++i) {
    const Half half = kHalves.halves[i];
    const Vec sum = add(row0[half.first], row1[half.second]);
    const Vec pattern = broadcast(static_cast<float>(kPairs[half.first] | kPairs[half.second] << 4));
    if (!seen[half.count]) {
      seen[half.count] = true;
      best[half.count] = sum;
      bits[half.count] = pattern;
    } else {
      const Vec better = above(sum, best[half.count]);
      best[half.count] = choose(better, sum, best[half.count]);
      bits[half.count] = choose(better, pattern, bits[half.count]);
    }
  }
}

// magnitudes[row][column] of kLanes tiles -> kept[row][column], all bits set or none.
static inline void best_tiles(const Vec (&magnitudes)[4][4], Vec (&kept)[4][4]) {
  Vec pairs[4][6];
  for (int row = 0; row < 4; ++row) {
    for (int p = 0; p < 6; ++p) {
      pairs[row][p] = add(magnitudes[row][kPairColumns[p][0]], magnitudes[row][kPairColumns[p][1]]);
    }
  }
  Vec upper[19], lower[19], upper_bits[19], lower_bits[19];
  best_halves(pairs[0], pairs[1], upper, upper_bits);
  best_halves(pairs[2], pairs[3], lower, lower_bits);
  Vec best = add(upper[0], lower[kHalves.opposite[0]]);
  Vec top = upper_bits[0], bottom = lower_bits[kHalves.opposite[0]];
#pragma GCC unroll 19
  for (int c = 1; c < 19; ++c) {
    const int o = kHalves.opposite[c];
    const Vec sum = add(upper[c], lower[o]);
    const Vec better = above(sum, best);
    best = choose(better, sum, best);
    top = choose(better, upper_bits[c], top);
    bottom = choose(better, lower_bits[o], bottom);
  }
  for (int row = 0; row < 4; ++row) {
    for (int column = 0; column < 4; ++column) {
      kept[row][column] = bit_set(row < 2 ? top : bottom, row % 2 * 4 + column);
    }
  }
}

// |w|, with NaN and all above 1e30 counted as 1e30: the sums of a tile stay finite and comparable.
static inline Vec finite_magnitude(Vec v) { return cap(absolute(v), 1e30f); }

// Columns [0, 4 * tiles) of four rows. `load_four` gives four weights of row r at a column.
template <typename LoadRow>
static inline void transposable_tiles(LoadRow load_row, std::int64_t tiles, std::int64_t stride, std::uint8_t* mask) {
  for (std::int64_t tile = 0; tile < tiles; tile += kLanes) {
    const std::int64_t live = tiles - tile < kLanes ? tiles - tile : kLanes;
    Vec magnitudes[4][4], kept[4][4];
    for (int row = 0; row < 4; ++row) {
      alignas(64) float weights[4 * kLanes] = {};
      load_row(row, 4 * tile, 4 * live, weights);
      for (int i = 0; i < 4; ++i) magnitudes[row][i] = finite_magnitude(load(weights + i * kLanes));
      transpose4(magnitudes[row][0], magnitudes[row][1], magnitudes[row][2], magnitudes[row][3]);
    }
    best_tiles(magnitudes, kept);
    for (int row = 0; row < 4; ++row) {
      transpose4(kept[row][0], kept[row][1], kept[row][2], kept[row][3]);
      std::uint8_t bytes[4 * kLanes];
      store_bytes(bytes, kept[row]);
      std::memcpy(mask + row * stride + 4 * tile, bytes, static_cast<std::size_t>(4 * live));
    }
  }
}

static void transposable_tensor(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols,
                                std::uint8_t* mask, int threads) {
#pragma omp parallel for schedule(static) num_threads(usable_threads(threads)) if (rows * cols >= 16384)
  for (std::int64_t top = 0; top < rows; top += 4) {
    const auto load_row = [&](int row, std::int64_t column, std::int64_t count, float* out) {
      const std::int64_t begin = (top + row) * cols + column;
      if (dtype == DType::kFloat32) {
        std::memcpy(out, static_cast<const float*>(weight) + begin, static_cast<std::size_t>(count) * sizeof(float));
      } else {
        for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(weight, dtype, begin + i);
      }
    };
    transposable_tiles(load_row, cols / 4, cols, mask + top * cols);
  }
}
