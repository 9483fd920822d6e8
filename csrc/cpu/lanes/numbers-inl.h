// Numbers of 16 bits in plain code, and the instruction that fetches a line ahead.
#pragma once

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

static inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float to_float(Float16 half) {
  const std::uint32_t sign = (half.bits & 0x8000u) << 16, exponent = half.bits >> 10 & 31,
                      fraction = half.bits & 0x3ffu;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign != 0 ? -subnormal : subnormal;
}

static inline float to_float(BFloat16 half) { return bits_to_float(std::uint32_t{half.bits} << 16); }

static inline float to_float(std::int8_t whole) { return static_cast<float>(whole); }

static inline float to_float(const void* values, DType dtype, std::int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(values)[i];
  const auto bits = static_cast<const std::uint16_t*>(values)[i];
  return dtype == DType::kBFloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}
