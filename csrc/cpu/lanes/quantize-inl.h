// float32 to int8, to nearest, ties to even, -127 to 127. Plain loops, of which the compiler makes vectors.
#pragma once

// x / scale as int8, where scale is given, else the largest magnitude over 127. Returns the scale: 0 where all are
// zeros, NaN (and zeros in `to`) where something is not finite.
static float quantize(const float* x, std::int64_t count, float scale, std::int8_t* to) {
  std::uint32_t largest = 0;  // magnitudes compare as integers
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = float_to_bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const bool finite = largest < 0x7f800000u, given = scale > 0;
  const float absmax = bits_to_float(largest);
  const float inverse = given ? 1.0f / scale : 127.0f / absmax;  // as on a GPU (cuda/quantize.cuh)
  if (!given) scale = absmax / 127.0f;
  // Not finite, all zeros, or below 127 * 2^-126, whose inverse is no normal number.
  if (!finite || !(inverse < bits_to_float(0x7f800000u)) || (!given && absmax < bits_to_float(0x03fe0000u))) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = 0;
    return finite ? 0.0f : bits_to_float(0x7fc00000u);
  }
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers, rounded to nearest even
  for (std::int64_t i = 0; i < count; ++i) {
    float v = x[i] * inverse;
    v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
    const float shifted = v + kRound;
    to[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(float_to_bits(shifted) - float_to_bits(kRound)));
  }
  return scale;
}
