// The canonical compressed layout (csrc/sparse24.h), written and read.
#pragma once

#include "access.cuh"

namespace sparse24::cuda {

struct Compress {
  const void* dense;
  std::int64_t rows, cols, row_stride;
  std::int64_t padded;  // cols rounded up to 8
  void* values;
  std::uint8_t* indices;
  std::int64_t* first_crowded;
};

// Columns of one thread: 16 bytes of values, a whole number of index bytes.
template <typename Bits>
constexpr int kFormatColumns = 2 * kAccessBytes / static_cast<int>(sizeof(Bits));

// Whether -0 counts as zero. int8 has none: 0x80 is -128.
enum class Zeros { kSigned, kPlain };

// Writes the two kept values of a group and returns their columns as four bits; *nonzeros gets the count of the
// group's non-zeros. Of more than two the first two are kept.
template <typename Bits, Zeros kZeros>
SPARSE24_BODY unsigned compress_group(const Bits* four, Bits* kept_values, int* nonzeros) {
  bool nonzero[4];
  int count = 0;
  for (int i = 0; i < 4; ++i) {
    nonzero[i] = (kZeros == Zeros::kSigned ? magnitude(four[i]) : four[i]) != 0;
    count += nonzero[i];
  }
  int zero_slots = count < 2 ? 2 - count : 0, kept = 0;
  unsigned columns = 0;
  kept_values[0] = kept_values[1] = 0;
  for (int i = 0; i < 4; ++i) {
    const bool filled = !nonzero[i] && zero_slots > 0;  // a zero slot, at the lowest free column
    zero_slots -= filled;
    if (!(nonzero[i] || filled) || kept == 2) continue;
    const Bits value = filled ? Bits{0} : four[i];
    if (kept == 0) kept_values[0] = value;
    if (kept == 1) kept_values[1] = value;
    columns |= static_cast<unsigned>(i) << (2 * kept);
    ++kept;
  }
  *nonzeros = count;
  return columns;
}

// The crowded group of lowest index, as a.first_crowded counts, or -1.
template <typename Bits, Zeros kZeros, Access kAccess>
SPARSE24_BODY std::int64_t compress_item(const Compress& a, std::int64_t row, std::int64_t item) {
  constexpr int kCount = kFormatColumns<Bits>;
  const std::int64_t first = item * kCount, room = a.padded - first;
  Bits four[kCount], kept[kCount / 2];
  std::uint8_t bytes[kCount / 8] = {};
  load<kAccess>(static_cast<const Bits*>(a.dense) + row * a.row_stride + first, a.cols - first, four);
  std::int64_t crowded = -1;
  for (int group = kCount / 4 - 1; group >= 0; --group) {
    int nonzeros;
    const unsigned columns = compress_group<Bits, kZeros>(four + 4 * group, kept + 2 * group, &nonzeros);
    bytes[group / 2] |= static_cast<std::uint8_t>(columns << (4 * (group % 2)));
    if (nonzeros > 2) crowded = row * (a.padded / 4) + first / 4 + group;
  }
  store<kAccess>(static_cast<Bits*>(a.values) + (row * a.padded + first) / 2, room / 2, kept);
  store<kAccess>(a.indices + (row * a.padded + first) / 8, room / 8, bytes);
  return crowded;
}

struct Expand {
  const void* values;
  const std::uint8_t* indices;
  std::int64_t rows, padded;
  void* dense;
  std::int64_t dense_rows, dense_cols;
};

template <typename Bits, Access kAccess>
SPARSE24_BODY void expand_item(const Expand& a, std::int64_t row, std::int64_t item) {
  constexpr int kCount = kFormatColumns<Bits>;
  const std::int64_t first = item * kCount, room = row < a.rows && first < a.padded ? a.padded - first : 0;
  const std::int64_t at = room == 0 ? 0 : row * a.padded + first;
  Bits kept[kCount / 2], dense[kCount];
  std::uint8_t bytes[kCount / 8];
  load<kAccess>(static_cast<const Bits*>(a.values) + at / 2, room / 2, kept);
  load<kAccess>(a.indices + at / 8, room / 8, bytes);
  for (int column = 0; column < kCount; ++column) {
    const int group = column / 4, nibble = bytes[group / 2] >> (4 * (group % 2)) & 15;
    const int here = column % 4;
    // The second last, as in sparse24::expand: it wins where a damaged index names one column twice.
    dense[column] = (nibble >> 2) == here ? kept[2 * group + 1] : (nibble & 3) == here ? kept[2 * group] : Bits{0};
  }
  store<kAccess>(static_cast<Bits*>(a.dense) + row * a.dense_cols + first, a.dense_cols - first, dense);
}

}  // namespace sparse24::cuda
