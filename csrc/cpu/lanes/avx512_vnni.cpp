// AVX-512 with VNNI, BF16 and VBMI2 (Sapphire Rapids, Zen 4 and later): products of pairs in one instruction,
// half of what a dense product takes. Everything else is AVX-512's.

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::avx512_vnni {
namespace {

#include "avx512_vec-inl.h"
using HalfVec = __m512i;
static inline HalfVec load_halves32(const BFloat16* p) { return _mm512_loadu_si512(p); }
static inline HalfVec expand_halves(const BFloat16* kept, std::uint64_t mask) {
  const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kept));
  return _mm512_maskz_expand_epi16(static_cast<__mmask32>(mask), _mm512_castsi256_si512(values));
}
static inline Vec dot_halves(Vec sums, HalfVec weight, HalfVec x) {
  return _mm512_dpbf16_ps(sums, (__m512bh)weight, (__m512bh)x);
}

#include "few_halves-inl.h"
#include "pairs-inl.h"

struct BytePairs {
  using Kept = std::int8_t;
  using X = std::int8_t;
  using Sums = __m512i;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums load(const float* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, Sums v) { _mm512_storeu_si512(p, v); }
  static __m512i splat(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static Sums dot(__m512i weight, const std::uint32_t* x, Sums sums) {
    return _mm512_dpwssd_epi32(sums, weight, _mm512_loadu_si512(x));
  }
  static Vec to_float(Sums v) { return _mm512_cvtepi32_ps(v); }
};

// Subnormal factors and sums count as zero here.
struct HalfPairs {
  using Kept = BFloat16;
  using X = BFloat16;
  using Sums = Vec;
  static Sums zero() { return avx512_vnni::zero(); }
  static Sums load(const float* p) { return avx512_vnni::load(p); }
  static void store(float* p, Sums v) { avx512_vnni::store(p, v); }
  static __m512i splat(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static Sums dot(__m512i weight, const std::uint32_t* x, Sums sums) {
    return _mm512_dpbf16_ps(sums, (__m512bh)weight, (__m512bh)_mm512_loadu_si512(x));
  }
  static Vec to_float(Sums v) { return v; }
};

// An int8 weight, whose numbers bfloat16 holds exactly, and x of bfloat16.
struct BytesByHalves : HalfPairs {
  using Kept = std::int8_t;
  static void to_halves(const std::int8_t* kept, std::int64_t count, std::uint32_t* to) {
    for (std::int64_t i = 0; i < count; i += 16) {
      __m128i bytes = _mm_setzero_si128();
      std::memcpy(&bytes, kept + i, static_cast<std::size_t>(count - i < 16 ? count - i : 16));
      const Vec wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
      const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(wide), 16);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2), _mm512_cvtepi32_epi16(high));
    }
  }
};

const char* why_not() {
  const Features& f = machine().features;
  return f.avx512 && f.avx512_vnni && f.avx512_bf16 && f.avx512_vbmi2 ? ""
                                                                      : "the CPU has no AVX-512 VNNI, BF16 and VBMI2";
}

// Few tokens by expanded rows, many by tiles of pairs.
bool linear_halves(const Linear& a, const Tuning& tuning) {
  if (a.n == 0 || a.m == 0) return true;
  if (a.weight.dtype == DType::kInt8) return linear_pairs<BytesByHalves>(a, tuning);
  return a.n <= tuning.few_halves && a.n <= kMostHalfTokens ? linear_few_halves(a, tuning)
                                                            : linear_pairs<HalfPairs>(a, tuning);
}

}  // namespace

const Kernels kernels = {
    "avx512_vnni",
    why_not,
    [](const Mask24& args) { avx512::kernels.mask24_32(args); },
    [](const Mask24& args) { avx512::kernels.mask24_16(args); },
    [](const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, int threads) {
      avx512::kernels.transposable_mask(weight, dtype, rows, cols, mask, threads);
    },
    [](const MaxPlus& args) { avx512::kernels.max_plus(args); },
    [](const Linear& args, const Tuning& tuning) { return avx512::kernels.linear(args, tuning); },
    [](const Conv2d& args, const Tuning& tuning) { return avx512::kernels.conv2d(args, tuning); },
    [](const void* from, DType dtype, std::int64_t count, float* to) { avx512::kernels.widen(from, dtype, count, to); },
    [](const float* from, DType dtype, std::int64_t count, void* to) {
      avx512::kernels.narrow(from, dtype, count, to);
    },
    [](const float* x, std::int64_t count, float scale, std::int8_t* to) {
      return avx512::kernels.quantize(x, count, scale, to);
    },
    linear_pairs<BytePairs>,
    linear_halves,
    nullptr,
    nullptr};

}  // namespace sparse24::cpu::avx512_vnni
