// The products, once per instruction set: included inside its namespace after its Vec. (Masks are in
// mask-inl.h and transposable-inl.h, which AVX-512 leaves to AVX2.)
// Nothing here may call a std template or an inline function of another header: the linker keeps one
// copy of those, and it could be the one compiled with instructions that the machine does not have.

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

static inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float float16_to_float(std::uint32_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign != 0 ? -subnormal : subnormal;
}

static inline float to_float(const void* values, DType dtype, std::int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(values)[i];
  const std::uint32_t half = static_cast<const std::uint16_t*>(values)[i];
  return dtype == DType::kBFloat16 ? bits_to_float(half << 16) : float16_to_float(half);
}

// clang-format off: each builds on those before it
#include "epilogue-inl.h"
#include "gemm-inl.h"
#include "pack-inl.h"
#include "gemv-inl.h"
#include "conv-inl.h"
// clang-format on
