// Products with a handful of tokens, on the compressed weight as it lies: what decoding runs.
//
// Time is the weight's bytes over the memory's bandwidth, so those are read once, sixteen of values at a time, and
// nothing is expanded. A thread owns such an item for kRows rows and every token. Of each group of four activations the
// two that the weight has are picked by one byte permutation, whose selector the group's four index bits give.
#pragma once

#include <cmath>

#include "access.cuh"
#include "kernels.h"

namespace sparse24::cuda {

// ---- tuning ----

template <int kTokens>
struct FewTokensTuning {
  // Rows of a thread: each reads the activations of its columns once for all of them. An activation comes from L1, at
  // 128 bytes a cycle; a row and token take 2 bytes of them for every byte of values, of which memory brings about 15
  // a cycle. So 4 rows serve 16 tokens, 2 rows 8.
  static constexpr int kRows = kTokens >= 8 ? 4 : 2;
  static_assert(kRows * kTokens <= 64, "sums stay in registers");
};

constexpr int kFewTokensWarps = 8;  // of a block; up to all of them split the columns of the same rows

// ---- types ----

struct Int8 {
  using Bits = std::uint8_t;
  static SPARSE24_BODY float to_float(Bits bits) { return static_cast<float>(static_cast<std::int8_t>(bits)); }
};

// A sum rounded to nearest even, as bits of the output's type.
SPARSE24_BODY std::uint32_t rounded(float value, Float32) { return float_to_bits(value); }

SPARSE24_BODY std::uint16_t rounded(float value, BFloat16) {
  const std::uint32_t bits = float_to_bits(value);
  if (magnitude(bits) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);  // NaN stays NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

SPARSE24_BODY std::uint16_t rounded(float value, Float16) {
  const std::uint32_t bits = float_to_bits(value), size = magnitude(bits), sign = bits >> 16 & 0x8000u;
  if (size > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (size >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above
  // Below 2^-14 the fraction's last bit is worth 2^-24: adding 2^-1 brings it to where fp32 has its own last bit.
  const std::uint32_t small = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
  return static_cast<std::uint16_t>(sign | (size < 0x38800000u ? small : normal));
}

// ---- picking activations ----

// Bytes of the eight in lo and hi, by the low three bits of each of the selector's four nibbles.
SPARSE24_BODY std::uint32_t permuted(std::uint32_t lo, std::uint32_t hi, std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(lo, hi, selector);
#else
  const std::uint64_t both = std::uint64_t{hi} << 32 | lo;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<std::uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return out;
#endif
}

struct Pair {
  float first, second;
};

// The activations of a group's kept columns, which `nibble` names, low bits first.
template <typename Float>
SPARSE24_BODY Pair picked(const std::uint16_t* four, unsigned nibble, Float) {
  std::uint32_t lo, hi;
  std::memcpy(&lo, four, sizeof lo);
  std::memcpy(&hi, four + 2, sizeof hi);
  // Column c is bytes 2c and 2c + 1.
  const std::uint32_t both = permuted(lo, hi, 0x1010u + (nibble & 3u) * 0x22u + (nibble >> 2) * 0x2200u);
  return {Float::to_float(static_cast<std::uint16_t>(both)), Float::to_float(static_cast<std::uint16_t>(both >> 16))};
}

SPARSE24_BODY float one_of_four(const std::uint32_t* four, unsigned column) {
  const std::uint32_t even = (column & 2u) != 0 ? four[2] : four[0], odd = (column & 2u) != 0 ? four[3] : four[1];
  return bits_to_float((column & 1u) != 0 ? odd : even);
}
SPARSE24_BODY Pair picked(const std::uint32_t* four, unsigned nibble, Float32) {
  return {one_of_four(four, nibble & 3u), one_of_four(four, nibble >> 2)};
}

// ---- the product ----

// Kept values of an item: 16 bytes of them. With many tokens 8 of int8, whose 32 activations and 16 weights a row would
// leave the registers.
template <typename W, int kTokens>
constexpr int kFewTokensKept =
    sizeof(typename W::Bits) == 1 && kTokens >= 8 ? 8 : kAccessBytes / static_cast<int>(sizeof(typename W::Bits));

// Adds what the item's columns give to the sums of rows [row, + kRows) and tokens [token, + kTokens). What is beyond
// the matrix or the tokens counts as zeros.
template <typename X, typename W, Access kAccess, int kRows, int kTokens>
SPARSE24_BODY void few_tokens_item(const FewTokens& a, std::int64_t row, std::int64_t token, std::int64_t item,
                                   float (&sums)[kRows][kTokens]) {
  using XBits = typename X::Bits;
  using WBits = typename W::Bits;
  constexpr int kKept = kFewTokensKept<W, kTokens>, kColumns = 2 * kKept;
  const std::int64_t first = item * kColumns;
  float weights[kRows][kKept];
  std::uint8_t bytes[kRows][kColumns / 8];
  SPARSE24_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t room = row + r < a.m ? a.padded - first : 0, at = room == 0 ? 0 : (row + r) * a.padded + first;
    WBits kept[kKept];
    load<kAccess>(static_cast<const WBits*>(a.values) + at / 2, room / 2, kept);
    load<kAccess>(a.indices + at / 8, room / 8, bytes[r]);
    SPARSE24_UNROLL
    for (int i = 0; i < kKept; ++i) weights[r][i] = W::to_float(kept[i]);
  }
  SPARSE24_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const bool there = token + t < a.n;
    XBits x[kColumns];
    load<kAccess>(static_cast<const XBits*>(a.x) + (there ? (token + t) * a.x_stride + first : 0),
                  there ? a.k - first : 0, x);
    SPARSE24_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SPARSE24_UNROLL
      for (int group = 0; group < kColumns / 4; ++group) {
        const unsigned nibble = bytes[r][group / 2] >> (4 * (group % 2)) & 15u;
        const Pair pair = picked(x + 4 * group, nibble, X{});
        sums[r][t] += weights[r][2 * group] * pair.first;
        sums[r][t] += weights[r][2 * group + 1] * pair.second;
      }
    }
  }
}

SPARSE24_BODY float activated(float value, Activation activation) {
  switch (activation) {
    case Activation::kNone: return value;
    case Activation::kRelu: return value < 0.0f ? 0.0f : value;  // NaN stays
    case Activation::kGelu: return 0.5f * value * (1.0f + erff(value * 0.70710678f));
    case Activation::kGeluTanh:
      return 0.5f * value * (1.0f + tanhf(0.79788456f * (value + 0.044715f * value * value * value)));
  }
  return value;
}

// Writes one output from its whole sum.
template <typename X>
SPARSE24_BODY void few_tokens_finish(const FewTokens& a, std::int64_t row, std::int64_t token, float sum) {
  using Bits = typename X::Bits;
  if (row >= a.m || token >= a.n) return;
  if (a.scale != nullptr) sum *= a.scale[row];
  if (a.bias != nullptr) sum += X::to_float(static_cast<const Bits*>(a.bias)[row]);
  static_cast<Bits*>(a.y)[token * a.m + row] = rounded(activated(sum, a.activation), X{});
}

}  // namespace sparse24::cuda
