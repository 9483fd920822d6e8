// The canonical compressed layout, in plain scalar code: the definition of correct.

#include <bit>
#include <cstring>
#include <type_traits>

#include "error.h"
#include "sparse24.h"

namespace sparse24 {
namespace {

// Bits of a weight without its sign for floats: zero exactly when the weight is +0 or -0.
template <typename Bits, bool kFloating>
constexpr Bits magnitude(Bits bits) {
  return kFloating ? static_cast<Bits>(bits & (static_cast<Bits>(~Bits{0}) >> 1)) : bits;
}

// The non-zeros of a group, as bits.
template <typename Bits, bool kFloating>
unsigned nonzeros(const Bits* weights, std::int64_t count) {
  unsigned found = 0;
  for (int i = 0; i < 4 && i < count; ++i) {
    if (magnitude<Bits, kFloating>(weights[i]) != 0) found |= 1u << i;
  }
  return found;
}

template <typename Bits, bool kFloating>
std::int64_t find_crowded_in(const Bits* dense, std::int64_t rows, std::int64_t cols, std::int64_t row_stride) {
  const std::int64_t groups = round_up(cols, 8) / 4;
  for (std::int64_t row = 0; row < rows; ++row) {
    const Bits* weights = dense + row * row_stride;
    for (std::int64_t group = 0; 4 * group < cols; ++group) {
      if (std::popcount(nonzeros<Bits, kFloating>(weights + 4 * group, cols - 4 * group)) > 2)
        return row * groups + group;
    }
  }
  return -1;
}

template <typename Bits, bool kFloating>
void compress_as(const Bits* dense, std::int64_t rows, std::int64_t cols, std::int64_t row_stride, Bits* values,
                 std::uint8_t* indices) {
  const std::int64_t padded = round_up(cols, 8);
  std::memset(indices, 0, static_cast<std::size_t>(rows * padded / 8));
  for (std::int64_t row = 0; row < rows; ++row) {
    const Bits* weights = dense + row * row_stride;
    for (std::int64_t group = 0; group < padded / 4; ++group) {
      const Bits* four = weights + 4 * group;
      const unsigned nonzero = nonzeros<Bits, kFloating>(four, cols - 4 * group);
      if (std::popcount(nonzero) > 2) {
        throw InvalidArgument(message("not 2:4: row ", row, ", group ", group, " (columns ", 4 * group, " to ",
                                      4 * group + 3, ") holds ", std::popcount(nonzero),
                                      " non-zero weights; prune to at most 2 of every 4 first"));
      }
      unsigned kept = nonzero;
      for (int i = 0; std::popcount(kept) < 2; ++i) kept |= 1u << i;  // zero slots
      const int first = std::countr_zero(kept);
      const int second = std::countr_zero(kept & (kept - 1));
      values[row * padded / 2 + 2 * group] = (nonzero >> first & 1) ? four[first] : Bits{0};
      values[row * padded / 2 + 2 * group + 1] = (nonzero >> second & 1) ? four[second] : Bits{0};
      indices[row * padded / 8 + group / 2] |= static_cast<std::uint8_t>((first | second << 2) << (4 * (group % 2)));
    }
  }
}

template <typename Bits>
void expand_as(const Bits* values, const std::uint8_t* indices, std::int64_t rows, std::int64_t padded, Bits* dense) {
  check_indices(indices, rows, padded);
  std::memset(dense, 0, static_cast<std::size_t>(rows * padded) * sizeof(Bits));
  for (std::int64_t kept = 0; kept < rows * padded / 2; ++kept) {
    const int index = indices[kept / 4] >> (2 * (kept % 4)) & 3;
    dense[kept / 2 * 4 + index] = values[kept];
  }
}

}  // namespace

void check_indices(const std::uint8_t* indices, std::int64_t rows, std::int64_t padded) {
  for (std::int64_t i = 0; i < rows * padded / 8; ++i) {
    const unsigned byte = indices[i];
    const bool low = (byte & 3) < (byte >> 2 & 3);
    const bool high = (byte >> 4 & 3) < (byte >> 6);
    if (low && high) continue;
    const std::int64_t row = i / (padded / 8);
    const std::int64_t group = 2 * (i % (padded / 8)) + (low ? 1 : 0);
    throw InvalidArgument(message("damaged indices: row ", row, ", group ", group, " (columns ", 4 * group, " to ",
                                  4 * group + 3, ") does not name two increasing columns (byte ", byte,
                                  "); the checkpoint was not written by compress"));
  }
}

namespace {

// Calls `as` with the bits of a dtype, and whether its sign does not count in them.
template <typename As>
auto with_bits(DType dtype, As as) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16: return as.template operator()<std::uint16_t, true>();
    case DType::kInt32: return as.template operator()<std::uint32_t, false>();
    case DType::kInt8: return as.template operator()<std::uint8_t, false>();
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2: return as.template operator()<std::uint8_t, true>();
    case DType::kFloat32: break;
  }
  return as.template operator()<std::uint32_t, true>();
}

}  // namespace

void compress(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
              void* values, std::uint8_t* indices) {
  with_bits(dtype, [&]<typename Bits, bool kFloating>() {
    compress_as<Bits, kFloating>(static_cast<const Bits*>(dense), rows, cols, row_stride, static_cast<Bits*>(values),
                                 indices);
  });
}

std::int64_t find_crowded(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols,
                          std::int64_t row_stride) {
  return with_bits(dtype, [&]<typename Bits, bool kFloating>() {
    return find_crowded_in<Bits, kFloating>(static_cast<const Bits*>(dense), rows, cols, row_stride);
  });
}

void expand(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
            void* dense) {
  with_bits(dtype, [&]<typename Bits, bool>() {
    expand_as(static_cast<const Bits*>(values), indices, rows, padded, static_cast<Bits*>(dense));
  });
}

}  // namespace sparse24
