// The best of the 90 4x4 patterns with two kept in every row and every column.
//
// A row keeps one of 6 pairs of columns. Of the two upper rows only the column counts matter to the two
// lower ones, and there are 19 such counts, each reached by 1, 2 or 6 choices of two pairs. So the best
// pattern is the best over 19 counts of (best upper half with these counts) + (best lower half with 2 minus
// these counts). The order of pairs, halves and counts, the strict comparisons and the order of the sums are
// those of the CPU kernels, so ties and rounding come out the same.
#pragma once

#include <utility>

#include "access.cuh"

namespace sparse24::cuda {

// Pairs of columns as bits, ascending: 01, 02, 12, 03, 13, 23.
constexpr int kPairBits[6] = {0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100};
constexpr int kCounts = 19;
constexpr int kTwoEach = 80;  // 2222 in base 3

// How often two pairs keep each column, base 3, a digit a column. A half is 6 * first pair + second pair.
constexpr int column_counts(int half) {
  int counts = 0;
  for (int column = 3; column >= 0; --column) {
    counts = 3 * counts + (kPairBits[half / 6] >> column & 1) + (kPairBits[half % 6] >> column & 1);
  }
  return counts;
}

// The counts in the order in which the 36 halves first reach them.
constexpr int counts_at(int index) {
  int known = -1;
  for (int half = 0; half < 36; ++half) {
    bool seen = false;
    for (int before = 0; before < half; ++before) seen = seen || column_counts(before) == column_counts(half);
    if (!seen && ++known == index) return column_counts(half);
  }
  return -1;
}
static_assert(counts_at(kCounts - 1) >= 0 && counts_at(kCounts) == -1);

// The nth half with these counts, or -1.
constexpr int half_with(int counts, int nth) {
  for (int half = 0; half < 36; ++half) {
    if (column_counts(half) == counts && nth-- == 0) return half;
  }
  return -1;
}

// Constants, for device code may use the value of one but not call a host function for it.
template <int kIndex>
constexpr int kCountsAt = counts_at(kIndex);
template <int kHalfCounts, int kNth>
constexpr int kHalfWith = half_with(kHalfCounts, kNth);
template <int kHalf>
constexpr unsigned kHalfBits = kPairBits[kHalf / 6] | kPairBits[kHalf % 6] << 4;

struct Half {
  float sum;
  unsigned bits;  // eight: the two rows
};

template <int kHalf>
SPARSE24_BODY Half make_half(const float (&row0)[6], const float (&row1)[6]) {
  return {row0[kHalf / 6] + row1[kHalf % 6], kHalfBits<kHalf>};
}

// The best half with these counts, the first of equals.
template <int kHalfCounts, int kNth = 0>
SPARSE24_BODY Half best_half(const float (&row0)[6], const float (&row1)[6]) {
  const Half half = make_half<kHalfWith<kHalfCounts, kNth>>(row0, row1);
  if constexpr (kHalfWith<kHalfCounts, kNth + 1> >= 0) {
    const Half later = best_half<kHalfCounts, kNth + 1>(row0, row1);
    return later.sum > half.sum ? later : half;
  } else {
    return half;
  }
}

template <int... kIndex>
SPARSE24_BODY unsigned best_pattern(const float (&pairs)[4][6], std::integer_sequence<int, kIndex...>) {
  float best = -1;  // sums are not negative
  unsigned pattern = 0;
  const auto consider = [&](Half upper, Half lower) {
    const float sum = upper.sum + lower.sum;
    if (!(sum > best)) return;
    best = sum;
    pattern = upper.bits | lower.bits << 8;
  };
  (consider(best_half<kCountsAt<kIndex>>(pairs[0], pairs[1]),
            best_half<kTwoEach - kCountsAt<kIndex>>(pairs[2], pairs[3])),
   ...);
  return pattern;
}

// Bit 4 * row + column of the result: kept.
SPARSE24_BODY unsigned best_tile(const float (&magnitudes)[4][4]) {
  float pairs[4][6];
  for (int row = 0; row < 4; ++row) {
    pairs[row][0] = magnitudes[row][0] + magnitudes[row][1];
    pairs[row][1] = magnitudes[row][0] + magnitudes[row][2];
    pairs[row][2] = magnitudes[row][1] + magnitudes[row][2];
    pairs[row][3] = magnitudes[row][0] + magnitudes[row][3];
    pairs[row][4] = magnitudes[row][1] + magnitudes[row][3];
    pairs[row][5] = magnitudes[row][2] + magnitudes[row][3];
  }
  return best_pattern(pairs, std::make_integer_sequence<int, kCounts>{});
}

// |w|, with NaN and all above 1e30 counted as 1e30: the sums of a tile stay finite and comparable.
template <typename Float>
SPARSE24_BODY float finite_magnitude(typename Float::Bits bits) {
  const float size = Float::to_float(magnitude(bits));
  return size < 1e30f ? size : 1e30f;
}

struct Transposable {
  const void* weight;
  std::int64_t rows, cols;
  std::uint8_t* mask;
};

// Columns of one thread: 16 bytes of each of four rows, one tile or two.
template <typename Float>
constexpr int kTileColumns = kAccessBytes / static_cast<int>(sizeof(typename Float::Bits));

template <typename Float, Access kAccess>
SPARSE24_BODY void transposable_item(const Transposable& a, std::int64_t tile_row, std::int64_t item) {
  constexpr int kCount = kTileColumns<Float>;
  const std::int64_t first = item * kCount, live = a.cols - first;
  typename Float::Bits bits[4][kCount];
  std::uint8_t mask[4][kCount];
  for (int row = 0; row < 4; ++row) {
    load<kAccess>(static_cast<const typename Float::Bits*>(a.weight) + (4 * tile_row + row) * a.cols + first, live,
                  bits[row]);
  }
  for (int left = 0; left < kCount; left += 4) {
    float magnitudes[4][4];
    for (int i = 0; i < 16; ++i) {
      magnitudes[i / 4][i % 4] = finite_magnitude<Float>(bits[i / 4][left + i % 4]);
    }
    const unsigned kept = best_tile(magnitudes);
    for (int i = 0; i < 16; ++i) mask[i / 4][left + i % 4] = static_cast<std::uint8_t>(kept >> i & 1);
  }
  for (int row = 0; row < 4; ++row) store<kAccess>(a.mask + (4 * tile_row + row) * a.cols + first, live, mask[row]);
}

}  // namespace sparse24::cuda
