// The canonical compressed weight as the products read it: where it lies, as it lies.
#pragma once

#include "numbers-inl.h"

// Columns that are looked at together: 64 of them hold 32 kept values, 8 quads of 4, and 8 bytes of indices.
constexpr std::int64_t kBlockCols = 64;

// Some rows of a weight of type W, from some column on.
template <typename W>
struct Rows {
  const W* values;
  const std::uint8_t* indices;
  std::int64_t value_stride, index_stride;  // from row to row

  Rows from_row(std::int64_t row) const {
    return {values + row * value_stride, indices + row * index_stride, value_stride, index_stride};
  }
  Rows from_col(std::int64_t col) const { return {values + col / 2, indices + col / 8, value_stride, index_stride}; }
};

template <typename W>
static inline Rows<W> rows_of(const Weight& weight) {
  return {static_cast<const W*>(weight.values), weight.indices, weight.padded / 2, weight.padded / 8};
}

// The indices of `quads` quads (eight columns each, at most eight), low bits first.
static inline std::uint64_t load_bits(const std::uint8_t* indices, std::int64_t quads) {
  std::uint64_t bits = 0;
  if (quads == 8) {
    std::memcpy(&bits, indices, 8);
  } else {
    for (std::int64_t i = 0; i < quads; ++i) bits |= static_cast<std::uint64_t>(indices[i]) << (8 * i);
  }
  return bits;
}

// Not zero where the two indices of a group (first a, then b, two bits each) do not increase.
static inline std::uint64_t disorder(std::uint64_t bits) {
  constexpr std::uint64_t kEach = 0x1111111111111111u;
  const std::uint64_t a0 = bits, a1 = bits >> 1, b0 = bits >> 2, b1 = bits >> 3;
  return ~((b1 & ~a1) | (~(a1 ^ b1) & b0 & ~a0)) & kEach;
}

// The same of `count` bytes of indices. A product looks at every group once a call, just before it reads it:
// the compiler makes vectors of this, which leaves some percent of one token's time, and less of many.
static inline std::uint64_t disorder(const std::uint8_t* indices, std::int64_t count) {
  std::uint64_t wrong = 0;
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t bits;
    std::memcpy(&bits, indices + i, 8);
    wrong |= disorder(bits);
  }
  for (; i < count; ++i) wrong |= disorder(0x4444444444444400u | indices[i]);
  return wrong;
}
