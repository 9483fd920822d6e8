// Rows of activations to int8 with a scale each.
#pragma once

#include <cmath>

#include "access.cuh"

namespace sparse24::cuda {

struct Quantize {
  const void* x;
  std::int64_t n, k, row_stride;
  std::int8_t* out;
  std::int64_t k_padded;
  float* scale;
};

// Elements of one thread at a time: 16 bytes of x.
template <typename Float>
constexpr int kQuantizeCount = kAccessBytes / static_cast<int>(sizeof(typename Float::Bits));

// 127 * 2^-126: from here on scale and its inverse are normal numbers.
constexpr float kLeastAbsmax = 127 * 0x1p-126f;

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

template <typename Float>
SPARSE24_BODY RowScale row_scale(unsigned absmax_bits) {
  if (absmax_bits >= Float::kInfinity) return {0.0f, bits_to_float(0x7fc00000)};
  const float absmax = Float::to_float(static_cast<typename Float::Bits>(absmax_bits));
  if (absmax < kLeastAbsmax) return {0.0f, 1.0f};
  return {127.0f / absmax, absmax / 127.0f};
}

template <typename Float, Access kAccess>
SPARSE24_BODY void quantize_item(const Quantize& a, std::int64_t row, std::int64_t item, float inverse) {
  constexpr int kCount = kQuantizeCount<Float>;
  typename Float::Bits bits[kCount];
  std::int8_t out[kCount];
  load<kAccess>(static_cast<const typename Float::Bits*>(a.x) + row * a.row_stride + item * kCount, a.k - item * kCount,
                bits);
  for (int i = 0; i < kCount; ++i) {
    // At most 127 * (1 + 2^-23) in size, so rounding stays in range; NaN only where a row holds NaN or Inf.
    const float scaled = Float::to_float(bits[i]) * inverse;
    out[i] = scaled == scaled ? static_cast<std::int8_t>(rintf(scaled)) : std::int8_t{0};
  }
  store<kAccess>(a.out + row * a.k_padded + item * kCount, a.k_padded - item * kCount, out);
}

}  // namespace sparse24::cuda
