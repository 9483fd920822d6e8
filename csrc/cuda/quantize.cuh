// Rows of activations to int8 or float8_e4m3fn with a scale each.
#pragma once

#include <cmath>

#include "access.cuh"

namespace sparse24::cuda {

struct Quantize {
  const void* x;
  std::int64_t n, k, row_stride;
  std::uint8_t* out;
  std::int64_t k_padded;
  const float* given;  // null, or one scale for all rows where it is not 0
  float* scale;
};

// What a row becomes: the largest number, and a number of at most that, give or take a rounding, as a code.
struct ToInt8 {
  static constexpr float kLargest = 127;
  static SPARSE24_BODY std::uint8_t code(float value) {
    return static_cast<std::uint8_t>(static_cast<std::int8_t>(rintf(value)));
  }
};

struct ToE4M3 {
  static constexpr float kLargest = 448;
  // To nearest even, by adding half of what is cut off to the bits; below 2^-6 codes are multiples of 2^-9.
  static SPARSE24_BODY std::uint8_t code(float value) {
    const std::uint32_t bits = float_to_bits(value), sign = bits >> 31 << 7, size = bits & 0x7fffffffu;
    if (size < 0x3c800000u) {
      const float multiple = rintf(bits_to_float(size) * 512.0f);
      return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(multiple));
    }
    const std::uint32_t rounded = (size + 0x7ffffu + (size >> 20 & 1)) >> 20, code = rounded - (120u << 3);
    return static_cast<std::uint8_t>(sign | (code < 0x7e ? code : 0x7e));  // 0x7f is NaN
  }
};

// Elements of one thread at a time: 16 bytes of x.
template <typename Float>
constexpr int kQuantizeCount = kAccessBytes / static_cast<int>(sizeof(typename Float::Bits));

// The largest magnitude of one thread's elements, as bits.
template <typename Float, Access kAccess>
SPARSE24_BODY unsigned absmax_item(const Quantize& a, std::int64_t row, std::int64_t item) {
  constexpr int kCount = kQuantizeCount<Float>;
  typename Float::Bits bits[kCount];
  load<kAccess>(static_cast<const typename Float::Bits*>(a.x) + row * a.row_stride + item * kCount, a.k - item * kCount,
                bits);
  unsigned largest = 0;
  for (int i = 0; i < kCount; ++i) {
    const unsigned size = magnitude(bits[i]);
    largest = size > largest ? size : largest;
  }
  return largest;
}

// What a row's elements are multiplied by, and what undoes it.
struct RowScale {
  float inverse, scale;
};

template <typename Float, typename To>
SPARSE24_BODY RowScale row_scale(unsigned absmax_bits, float given) {
  if (absmax_bits >= Float::kInfinity) return {0.0f, bits_to_float(0x7fc00000)};
  if (given != 0.0f) return {1.0f / given, given};
  const float absmax = Float::to_float(static_cast<typename Float::Bits>(absmax_bits));
  if (absmax < To::kLargest * 0x1p-126f) return {0.0f, 1.0f};  // the scale would be no normal number
  return {To::kLargest / absmax, absmax / To::kLargest};
}

template <typename Float, typename To, Access kAccess>
SPARSE24_BODY void quantize_item(const Quantize& a, std::int64_t row, std::int64_t item, float inverse) {
  constexpr int kCount = kQuantizeCount<Float>;
  typename Float::Bits bits[kCount];
  std::uint8_t out[kCount];
  load<kAccess>(static_cast<const typename Float::Bits*>(a.x) + row * a.row_stride + item * kCount, a.k - item * kCount,
                bits);
  for (int i = 0; i < kCount; ++i) {
    // Beyond the largest only where the scale was given; NaN only where a row holds NaN or Inf.
    const float scaled = Float::to_float(bits[i]) * inverse;
    const float most = scaled > To::kLargest ? To::kLargest : scaled < -To::kLargest ? -To::kLargest : scaled;
    out[i] = most == most ? To::code(most) : std::uint8_t{0};
  }
  store<kAccess>(a.out + row * a.k_padded + item * kCount, a.k_padded - item * kCount, out);
}

}  // namespace sparse24::cuda
