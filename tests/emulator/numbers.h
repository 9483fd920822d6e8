// The number formats of the operands, to float and back, rounding to nearest even.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "state.h"

namespace emulator {

template <typename T>
T read(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A float with `exponent` and `fraction` bits and the usual bias, widened.
inline float widen(std::uint32_t raw, int exponent, int fraction) {
  const std::uint32_t sign = raw >> (exponent + fraction) & 1, mantissa = raw & ((1u << fraction) - 1);
  const std::uint32_t power = raw >> fraction & ((1u << exponent) - 1);
  const int bias = (1 << (exponent - 1)) - 1;
  float magnitude;
  if (power == (1u << exponent) - 1) {
    magnitude = mantissa ? std::nanf("") : INFINITY;
  } else if (power == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), 1 - bias - fraction);
  } else {
    const std::uint32_t rebiased = power + 127 - static_cast<std::uint32_t>(bias);
    magnitude = std::bit_cast<float>(rebiased << 23 | mantissa << (23 - fraction));
  }
  return sign ? -magnitude : magnitude;
}

inline float from_fp16(std::uint16_t raw) { return widen(raw, 5, 10); }
inline float from_bf16(std::uint16_t raw) { return std::bit_cast<float>(static_cast<std::uint32_t>(raw) << 16); }
inline float from_e5m2(std::uint8_t raw) { return widen(raw, 5, 2); }
// No infinity; all exponent and fraction bits set is NaN, so the largest is 448.
inline float from_e4m3(std::uint8_t raw) {
  if ((raw & 0x7f) == 0x7f) return std::nanf("");
  const int power = raw >> 3 & 15, mantissa = raw & 7;
  const float magnitude =
      power ? std::ldexp(static_cast<float>(8 + mantissa), power - 10) : std::ldexp(static_cast<float>(mantissa), -9);
  return raw & 0x80 ? -magnitude : magnitude;
}

// The bits of a finite magnitude rounded to `fraction` bits, not limited above: exponent and fraction fields joined.
inline std::uint32_t narrow_magnitude(float magnitude, int exponent, int fraction) {
  const int lowest = 2 - (1 << (exponent - 1));  // the power of two of the subnormals' unit, plus fraction
  const int power = magnitude > 0 ? std::max(std::ilogb(magnitude), lowest) : lowest;
  const float steps = std::nearbyint(std::ldexp(magnitude, fraction - power));  // below 2^(fraction+1) unless carried
  // Adding the fields lets a carry of the rounding run into the exponent.
  return static_cast<std::uint32_t>(static_cast<int>(steps) + ((power - lowest) << fraction));
}

inline std::uint16_t to_fp16(float value) {
  const std::uint32_t raw = std::bit_cast<std::uint32_t>(value), magnitude = raw & 0x7fffffff;
  const auto sign = static_cast<std::uint16_t>(raw >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7fff;
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 65536 and above
  std::uint32_t half;
  if (magnitude >= 0x38800000) {  // normal
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  } else {
    half = narrow_magnitude(std::bit_cast<float>(magnitude), 5, 10);
  }
  return static_cast<std::uint16_t>(sign | half);
}

inline std::uint16_t to_bf16(float value) {
  const std::uint32_t raw = std::bit_cast<std::uint32_t>(value);
  if ((raw & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(raw >> 16 | 0x7fff);
  return static_cast<std::uint16_t>((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
}

// Saturating, as the conversion instructions of the GPU do (documented): NaN stays NaN.
inline std::uint8_t to_fp8(float value, int exponent, int fraction, std::uint32_t largest) {
  const auto sign = static_cast<std::uint8_t>(std::signbit(value) ? 0x80 : 0);
  if (std::isnan(value)) return sign | 0x7f;
  const float magnitude = std::min(std::fabs(value), 1e6f);
  return static_cast<std::uint8_t>(sign | std::min(narrow_magnitude(magnitude, exponent, fraction), largest));
}
inline std::uint8_t to_e4m3(float value) { return to_fp8(value, 4, 3, 0x7e); }
inline std::uint8_t to_e5m2(float value) { return to_fp8(value, 5, 2, 0x7b); }

// measured: rounds to nearest even and saturates; assumed: NaN becomes 0.
template <typename Integer>
Integer to_integer(float value) {
  if (std::isnan(value)) return 0;
  const double low = std::numeric_limits<Integer>::min(), high = std::numeric_limits<Integer>::max();
  return static_cast<Integer>(std::clamp(std::nearbyint(static_cast<double>(value)), low, high));
}

// measured: half a unit of TF32 is added to the bits, and the low 13 dropped, so ties go away from zero. The blob
// holds the sum; the product drops the bits. Infinities and NaN are left alone (assumed).
inline std::uint32_t tf32_half_up(std::uint32_t raw) { return (~raw & 0x7f800000) ? raw + 0x1000 : raw; }
inline float tf32_truncate(std::uint32_t raw) {
  return std::bit_cast<float>((~raw & 0x7f800000) ? raw & 0xffffe000 : raw);
}

inline float load(const void* at, DataType type) {
  switch (type) {
    case kReal32F: return read<float>(at);
    case kReal32I: return static_cast<float>(read<std::int32_t>(at));
    case kReal16F: return from_fp16(read<std::uint16_t>(at));
    case kReal16BF: return from_bf16(read<std::uint16_t>(at));
    case kReal8I: return read<std::int8_t>(at);
    case kReal8FE4M3: return from_e4m3(read<std::uint8_t>(at));
    case kReal8FE5M2: return from_e5m2(read<std::uint8_t>(at));
    case kReal4FE2M1: break;
  }
  return std::nanf("");
}

// measured on sm_120, for the dense operand alone: ties go to even.
inline std::uint32_t tf32_half_even(std::uint32_t raw) {
  return (~raw & 0x7f800000) ? raw + 0xfff + (raw >> 13 & 1) : raw;
}

enum class Tf32 { kAway, kEven, kNo };

// As the dense operand of a product: fp32 is rounded to TF32.
inline float load_operand(const void* at, DataType type, Tf32 ties) {
  if (type != kReal32F || ties == Tf32::kNo) return load(at, type);
  const auto raw = read<std::uint32_t>(at);
  return tf32_truncate(ties == Tf32::kEven ? tf32_half_even(raw) : tf32_half_up(raw));
}

template <typename T>
void write(void* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

inline void store(void* at, DataType type, float value) {
  switch (type) {
    case kReal32F: return write(at, value);
    case kReal32I: return write(at, to_integer<std::int32_t>(value));
    case kReal16F: return write(at, to_fp16(value));
    case kReal16BF: return write(at, to_bf16(value));
    case kReal8I: return write(at, to_integer<std::int8_t>(value));
    case kReal8FE4M3: return write(at, to_e4m3(value));
    case kReal8FE5M2: return write(at, to_e5m2(value));
    case kReal4FE2M1: return;
  }
}

}  // namespace emulator
