// What the tests of the CPU kernels share: counted checks, guarded buffers, 2:4 weights, plain definitions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "error.h"
#include "sparse24.h"

using namespace sparse24;

inline int passed = 0, failed = 0;

inline void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

inline std::mt19937 rng(24);

inline std::int64_t pick(std::initializer_list<std::int64_t> choices) {
  return choices.begin()[std::uniform_int_distribution<std::size_t>(0, choices.size() - 1)(rng)];
}

inline float normal() { return std::normal_distribution<float>()(rng); }

inline std::vector<float> normals(std::int64_t count) {
  std::vector<float> out(static_cast<std::size_t>(count));
  std::generate(out.begin(), out.end(), normal);
  return out;
}

// A 2:4 weight [rows, cols]: at most two random columns of every four, sometimes fewer.
inline std::vector<float> sparse_weight(std::int64_t rows, std::int64_t cols) {
  std::vector<float> w(static_cast<std::size_t>(rows * cols), 0.0f);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t group = 0; group < cols; group += 4) {
      for (int kept = 0; kept < 2; ++kept) {
        const std::int64_t column = group + pick({0, 1, 2, 3});
        if (column < cols && pick({0, 1, 2, 3}) != 0) w[static_cast<std::size_t>(row * cols + column)] = normal();
      }
    }
  }
  return w;
}

// A buffer with guard bytes on both sides, 64-byte aligned, filled with NaN.
class Guarded {
 public:
  explicit Guarded(std::int64_t floats)
      : size_(floats), memory_(static_cast<std::size_t>(floats) + 2 * kGuard, std::numeric_limits<float>::quiet_NaN()) {
    for (std::size_t i = 0; i < kGuard; ++i) memory_[i] = memory_[memory_.size() - 1 - i] = kMark;
  }
  float* data() { return memory_.data() + kGuard; }
  bool intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != kMark || memory_[memory_.size() - 1 - i] != kMark) return false;
    }
    return true;
  }
  std::int64_t size() const { return size_; }

 private:
  static constexpr std::size_t kGuard = 32;
  static constexpr float kMark = 12345.0f;
  std::int64_t size_;
  std::vector<float> memory_;
};

// A weight in the canonical layout, in memory of its own size: reading beyond it is an error that a
// sanitizer sees.
struct Compressed {
  std::vector<std::byte> values;
  std::vector<std::uint8_t> indices;
  Weight weight;
};

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A float32 as the next one towards zero that has 16 bits less: exact in bf16, and in fp16 once cut to 10 bits.
inline float cut(float value, DType dtype) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return dtype == DType::kFloat32 ? value : from_bits(bits & (dtype == DType::kBFloat16 ? 0xffff0000u : 0xffffe000u));
}

inline std::uint16_t half_bits(float value, DType dtype) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (dtype == DType::kBFloat16) return static_cast<std::uint16_t>(bits >> 16);
  if (std::abs(value) < 0x1p-14f)
    return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | static_cast<std::uint32_t>(std::abs(value) * 0x1p24f));
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - 0x38000000u) >> 13);
}

// Cuts w to what dtype holds (fp16 has no numbers below 2^-24), and compresses it.
inline Compressed compressed(std::vector<float>& w, DType dtype, std::int64_t rows, std::int64_t cols) {
  const std::int64_t padded = round_up(cols, 8), bytes = dtype == DType::kFloat32 ? 4 : 2;
  for (float& value : w) value = cut(std::abs(value) < 0x1p-10f ? 0.0f : value, dtype);
  std::vector<std::uint16_t> halves(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) halves[i] = dtype == DType::kFloat32 ? 0 : half_bits(w[i], dtype);
  Compressed out{std::vector<std::byte>(static_cast<std::size_t>(rows * padded / 2 * bytes)),
                 std::vector<std::uint8_t>(static_cast<std::size_t>(rows * padded / 8)),
                 {}};
  const void* dense = dtype == DType::kFloat32 ? static_cast<const void*>(w.data()) : halves.data();
  compress(dense, dtype, rows, cols, cols, out.values.data(), out.indices.data());
  out.weight = {out.values.data(), out.indices.data(), dtype, rows, padded};
  return out;
}

inline DType any_dtype() {
  return pick({0, 1, 2}) == 0 ? DType::kFloat32 : pick({0, 1}) == 0 ? DType::kFloat16 : DType::kBFloat16;
}

// Constants of some machine: every one is legal, and none may change a result.
inline cpu::Tuning any_tuning() {
  const auto any = [](std::initializer_list<std::int64_t> some) { return static_cast<int>(pick(some)); };
  return {.row = "any",
          .few_tokens = any({0, 1, 4, 8}),
          .streams = any({1, 2, 4}),
          .prefetch_wide = any({0, 512}),
          .prefetch_narrow = any({0, 2048}),
          .vectors = any({1, 3, 9, 20}),
          .tile_cols = any({32, 64}),
          .tile_prefetch = any({0, 8}),
          .sums_bytes = pick({4096, 300 << 10}),
          .few_halves = any({0, 3, 16}),
          .pair_vectors = any({1, 4, 10}),
          .pair_cols = any({32, 64}),
          .packed_bytes = pick({1024, 1 << 20}),
          .stream_bytes = pick({0, 2 << 20})};
}

inline double activated(double v, Activation activation) {
  switch (activation) {
    case Activation::kRelu: return v > 0 ? v : 0;
    case Activation::kGelu: return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    case Activation::kGeluTanh: return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::kNone: break;
  }
  return v;
}

inline Activation any_activation() { return static_cast<Activation>(pick({0, 1, 2, 3})); }

inline std::int64_t out_size(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t pad,
                             std::int64_t dilation) {
  const std::int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}
