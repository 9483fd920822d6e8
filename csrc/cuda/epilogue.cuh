// What follows a product of 8-bit operands, in one pass: scales, bias, activation, rounding.
#pragma once

#include "few_tokens.cuh"

namespace sparse24::cuda {

struct Int32 {
  using Bits = std::uint32_t;
  static SPARSE24_BODY float to_float(Bits bits) { return static_cast<float>(static_cast<std::int32_t>(bits)); }
};

// To nearest even, saturated; NaN is 0.
SPARSE24_BODY std::uint8_t rounded(float value, Int8) {
  const float whole = rintf(value);
  const float most = whole > 127.0f ? 127.0f : whole, number = most < -128.0f ? -128.0f : most;
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(number == number ? number : 0.0f));
}

// Outputs of one thread: 16 bytes of the product.
constexpr int kEpilogueCount = 4;

template <typename In, typename Out, Access kAccess>
SPARSE24_BODY void epilogue_item(const Epilogue& a, std::int64_t row, std::int64_t item) {
  const std::int64_t first = item * kEpilogueCount, live = a.m - first, at = row * a.m + first;
  typename In::Bits sums[kEpilogueCount];
  typename Out::Bits out[kEpilogueCount];
  float scales[kEpilogueCount] = {}, biases[kEpilogueCount] = {};
  load<kAccess>(static_cast<const typename In::Bits*>(a.product) + at, live, sums);
  if (a.row_scale != nullptr) load<Access::kElements>(a.row_scale + first, live, scales);
  if (a.bias != nullptr) load<Access::kElements>(a.bias + first, live, biases);
  const float by = a.token_scale != nullptr ? a.token_scale[row] : 1.0f;
  SPARSE24_UNROLL
  for (int i = 0; i < kEpilogueCount; ++i) {
    float value = In::to_float(sums[i]) * by;
    if (a.row_scale != nullptr) value *= scales[i];
    out[i] = rounded(activated(value + biases[i], a.activation), Out{});
  }
  store<kAccess>(static_cast<typename Out::Bits*>(a.out) + at, live, out);
}

}  // namespace sparse24::cuda
