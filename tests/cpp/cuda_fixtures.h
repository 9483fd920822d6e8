// What the tests of the CUDA kernels share: counted checks, guarded buffers, numbers of every kind.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "sparse24.h"

namespace cuda_test {

using namespace sparse24;
using std::int64_t, std::uint8_t, std::uint16_t, std::uint32_t;

inline int passed = 0, failed = 0;

inline void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

inline std::mt19937 rng(24);

inline int64_t pick(std::initializer_list<int64_t> choices) {
  return choices.begin()[std::uniform_int_distribution<std::size_t>(0, choices.size() - 1)(rng)];
}

inline const char* const kNames[] = {"fp32", "fp16", "bf16", "int8", "e4m3", "e5m2", "int32"};
inline const char* name_of(DType dtype) { return kNames[static_cast<int>(dtype)]; }
constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kAll[] = {DType::kFloat32,    DType::kFloat16,    DType::kBFloat16, DType::kInt8,
                          DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt32};

template <typename F>
void with_bits(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32: return f(uint32_t{});
    case DType::kFloat16:
    case DType::kBFloat16: return f(uint16_t{});
    default: return f(uint8_t{});
  }
}

// Elements at a 64-byte boundary plus `shift` elements, filled with 0xA5, guard bytes on both sides.
template <typename T>
class Guarded {
 public:
  Guarded(int64_t count, int64_t shift) : count_(static_cast<std::size_t>(count)) {
    const std::size_t bytes = count_ * sizeof(T) + 3 * kGuard;
    memory_.assign(bytes, kFill);
    void* start = memory_.data() + kGuard;
    std::size_t space = bytes - kGuard;
    data_ = static_cast<T*>(std::align(kGuard / 2, 1, start, space)) + shift;
  }
  Guarded(const std::vector<T>& values, int64_t shift) : Guarded(static_cast<int64_t>(values.size()), shift) {
    std::copy(values.begin(), values.end(), data_);
  }
  T* data() { return data_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }
  bool intact() const {
    const uint8_t *begin = reinterpret_cast<const uint8_t*>(data_),
                  *end = reinterpret_cast<const uint8_t*>(data_ + count_);
    const auto filled = [](uint8_t byte) { return byte == kFill; };
    return std::all_of(memory_.data(), begin, filled) && std::all_of(end, memory_.data() + memory_.size(), filled);
  }

 private:
  static constexpr std::size_t kGuard = 128;
  static constexpr uint8_t kFill = 0xA5;
  std::size_t count_;
  std::vector<uint8_t> memory_;
  T* data_;
};

enum class Fill { kRandomBits, kTies, kSpecial, kNormal };
constexpr Fill kFills[] = {Fill::kRandomBits, Fill::kTies, Fill::kSpecial, Fill::kNormal};

// A number of this dtype near `value`, as bits: the high bits of fp32 for bf16, the exponent shifted for fp16.
template <typename Bits>
Bits bits_near(float value, DType dtype) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (dtype == DType::kBFloat16) return static_cast<Bits>(bits >> 16);
  if (dtype != DType::kFloat16) return static_cast<Bits>(bits);
  return static_cast<Bits>((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - (112u << 23)) >> 13 & 0x7fff));
}

template <typename Bits>
std::vector<Bits> filled(int64_t count, DType dtype, Fill fill) {
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits infinity = static_cast<Bits>(dtype == DType::kFloat32   ? 0x7f800000u
                                          : dtype == DType::kFloat16 ? 0x7c00u
                                                                     : 0x7f80u);
  const Bits special[] = {0,
                          kSign,
                          1,
                          2,
                          infinity,
                          static_cast<Bits>(infinity | kSign),
                          static_cast<Bits>(infinity + 1),
                          static_cast<Bits>(infinity - 1),
                          static_cast<Bits>(~Bits{0}),
                          bits_near<Bits>(1.0f, dtype)};
  std::vector<Bits> out(static_cast<std::size_t>(count));
  std::normal_distribution<float> normal;
  for (Bits& bits : out) {
    switch (fill) {
      case Fill::kRandomBits: bits = static_cast<Bits>(rng()); break;
      case Fill::kTies:
        bits = bits_near<Bits>(static_cast<float>(1 + rng() % 3) * (rng() % 2 ? 1.0f : -1.0f), dtype);
        break;
      case Fill::kSpecial: bits = special[rng() % std::size(special)]; break;
      case Fill::kNormal: bits = bits_near<Bits>(normal(rng), dtype); break;
    }
  }
  return out;
}

}  // namespace cuda_test
