// The AVX-512 intrinsics that the files of csrc/cpu/lanes and csrc/cpu/amx use, in plain C++, so that their logic is
// tested on machines without them. Forced in front of these files by -include; semantics from Intel's guide.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

struct F512 {
  alignas(64) float lane[16];
};
struct I512 {
  alignas(64) std::int32_t lane[16];
};
using Mask16 = std::uint16_t;

template <typename T, typename F>
T each(F f) {
  T out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
  return out;
}
template <typename To, typename From>
To recast(const From& from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline F512 set1_ps(float x) {
  return each<F512>([&](int) { return x; });
}
inline F512 setzero_ps() { return set1_ps(0.0f); }
inline F512 loadu_ps(const float* p) {
  return each<F512>([&](int i) { return p[i]; });
}
inline void storeu_ps(float* p, F512 v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline F512 fmadd_ps(F512 a, F512 b, F512 c) {
  return each<F512>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
inline F512 add_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F512 mul_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F512 div_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return a.lane[i] / b.lane[i]; });
}
// The second operand is returned when either is NaN.
inline F512 min_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F512 max_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F512 roundscale_ps(F512 v, int) {
  return each<F512>([&](int i) { return std::nearbyint(v.lane[i]); });
}
inline I512 cvtps_epi32(F512 v) {
  return each<I512>(
      [&](int i) { return std::isnan(v.lane[i]) ? INT32_MIN : static_cast<std::int32_t>(std::nearbyint(v.lane[i])); });
}
inline I512 set1_epi32(int x) {
  return each<I512>([&](int) { return x; });
}
inline I512 setzero_si512() { return set1_epi32(0); }
inline I512 add_epi32(I512 a, I512 b) {
  return each<I512>([&](int i) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) + static_cast<std::uint32_t>(b.lane[i]));
  });
}
inline I512 slli_epi32(I512 a, unsigned n) {
  return each<I512>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) << n); });
}
inline I512 srli_epi32(I512 a, unsigned n) {
  return each<I512>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) >> n); });
}
inline I512 srlv_epi32(I512 a, I512 n) {
  return each<I512>(
      [&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) >> n.lane[i]); });
}
inline F512 castsi512_ps(I512 v) { return recast<F512>(v); }
inline I512 castps_si512(F512 v) { return recast<I512>(v); }
inline I512 and_si512(I512 a, I512 b) {
  return each<I512>([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline I512 set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d, int c,
                      int b, int a) {
  return I512{{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}};
}
inline I512 cvtepu16_epi32(__m256i halves) {
  std::uint16_t h[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(h), halves);
  return each<I512>([&](int i) { return h[i]; });
}
inline __m256i cvtepi32_epi16(I512 v) {
  std::uint16_t h[16];
  for (int i = 0; i < 16; ++i) h[i] = static_cast<std::uint16_t>(v.lane[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(h));
}
// By the eight-lane instructions, which machines with F16C have.
inline F512 cvtph_ps(__m256i halves) {
  F512 out;
  _mm256_storeu_ps(out.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
  _mm256_storeu_ps(out.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
  return out;
}
inline __m256i cvtps_ph(F512 v, int) {
  const __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(v.lane), _MM_FROUND_TO_NEAREST_INT);
  const __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(v.lane + 8), _MM_FROUND_TO_NEAREST_INT);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
// Only the comparison for NaN is used.
inline Mask16 cmp_ps_mask(F512 a, F512 b, int) {
  Mask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask = static_cast<Mask16>(mask | (std::isnan(a.lane[i]) || std::isnan(b.lane[i])) << i);
  return mask;
}
inline I512 mask_mov_epi32(I512 other, Mask16 mask, I512 v) {
  return each<I512>([&](int i) { return mask >> i & 1 ? v.lane[i] : other.lane[i]; });
}
inline F512 permute_ps(F512 v, int control) {
  return each<F512>([&](int i) { return v.lane[i / 4 * 4 + (control >> (2 * (i % 4)) & 3)]; });
}
inline F512 permutevar_ps(F512 v, I512 control) {
  return each<F512>([&](int i) { return v.lane[i / 4 * 4 + (control.lane[i] & 3)]; });
}
inline F512 mask_permutevar_ps(F512 other, Mask16 mask, F512 v, I512 control) {
  const F512 permuted = permutevar_ps(v, control);
  return each<F512>([&](int i) { return mask >> i & 1 ? permuted.lane[i] : other.lane[i]; });
}
inline F512 unpacklo_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return (i % 2 ? b : a).lane[i / 4 * 4 + i % 4 / 2]; });
}
inline F512 unpackhi_ps(F512 a, F512 b) {
  return each<F512>([&](int i) { return (i % 2 ? b : a).lane[i / 4 * 4 + 2 + i % 4 / 2]; });
}
inline F512 shuffle_ps(F512 a, F512 b, int control) {
  return each<F512>([&](int i) { return (i % 4 < 2 ? a : b).lane[i / 4 * 4 + (control >> (2 * (i % 4)) & 3)]; });
}
inline F512 castps256_ps512(__m256 low) {
  F512 out = setzero_ps();
  _mm256_storeu_ps(out.lane, low);
  return out;
}
inline F512 insertf32x8(F512 v, __m256 part, int at) {
  _mm256_storeu_ps(v.lane + 8 * at, part);
  return v;
}
inline __m128 castps512_ps128(F512 v) { return _mm_loadu_ps(v.lane); }
inline __m128 extractf32x4_ps(F512 v, int at) { return _mm_loadu_ps(v.lane + 4 * at); }
inline I512 loadu_si512(const void* p) {
  I512 out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
inline Mask16 movepi32_mask(I512 v) {
  Mask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask = static_cast<Mask16>(mask | (v.lane[i] < 0) << i);
  return mask;
}
inline Mask16 cmpge_epi32_mask(I512 a, I512 b) {
  Mask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask = static_cast<Mask16>(mask | (a.lane[i] >= b.lane[i]) << i);
  return mask;
}
inline F512 maskz_loadu_ps(Mask16 mask, const float* p) {
  return each<F512>([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
inline F512 mask_i32gather_ps(F512 other, Mask16 mask, I512 at, const float* p, int) {
  return each<F512>([&](int i) { return mask >> i & 1 ? p[at.lane[i]] : other.lane[i]; });
}
inline void storeu_si512(void* p, I512 v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline F512 cvtepi32_ps(I512 v) {
  return each<F512>([&](int i) { return static_cast<float>(v.lane[i]); });
}
inline I512 cvtepi8_epi32(__m128i bytes) {
  std::int8_t b[16];
  std::memcpy(b, &bytes, sizeof b);
  return each<I512>([&](int i) { return b[i]; });
}
inline std::int32_t dot_int16(std::int32_t a, std::int32_t b) {
  const auto part = [](std::int32_t v, int at) { return static_cast<std::int16_t>(v >> (16 * at)); };
  return part(a, 0) * part(b, 0) + part(a, 1) * part(b, 1);
}
inline I512 madd_epi16(I512 a, I512 b) {
  return each<I512>([&](int i) { return dot_int16(a.lane[i], b.lane[i]); });
}
inline I512 dpwssd_epi32(I512 sums, I512 a, I512 b) { return add_epi32(sums, madd_epi16(a, b)); }
// bf16 from the low (0) or high (1) half of a lane; the unit takes subnormals for zeros, of factors and of sums.
inline float flushed(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }
inline float bf16_of(std::int32_t pair, int at) {
  const std::uint32_t bits = static_cast<std::uint32_t>(pair) >> (16 * at) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return flushed(v);
}
inline F512 dpbf16_ps(F512 sums, I512 a, I512 b) {
  return each<F512>([&](int i) {
    const float high = flushed(std::fma(bf16_of(a.lane[i], 1), bf16_of(b.lane[i], 1), flushed(sums.lane[i])));
    return flushed(std::fma(bf16_of(a.lane[i], 0), bf16_of(b.lane[i], 0), high));
  });
}
// Kept elements to the places that a mask names, zeros elsewhere.
template <typename Element, int kCount>
I512 expand(std::uint64_t mask, I512 kept) {
  Element from[kCount], to[kCount];
  std::memcpy(from, &kept, sizeof from);
  for (int i = 0, next = 0; i < kCount; ++i) to[i] = mask >> i & 1 ? from[next++] : Element{0};
  return recast<I512>(to);
}
inline I512 castsi256_si512(__m256i low) {
  I512 out = set1_epi32(-1);  // what lies above is not defined
  std::memcpy(&out, &low, sizeof low);
  return out;
}
inline F512 maskz_expand_ps(Mask16 mask, F512 kept) {
  return recast<F512>(expand<std::uint32_t, 16>(mask, recast<I512>(kept)));
}
inline I512 maskz_expand_epi16(std::uint32_t mask, I512 kept) { return expand<std::uint16_t, 32>(mask, kept); }
inline I512 maskz_expand_epi8(std::uint64_t mask, I512 kept) { return expand<std::uint8_t, 64>(mask, kept); }

}  // namespace emulated

#define __mmask32 std::uint32_t
#define __mmask64 std::uint64_t
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_maskz_expand_ps emulated::maskz_expand_ps
#define _mm512_maskz_expand_epi16 emulated::maskz_expand_epi16
#define _mm512_maskz_expand_epi8 emulated::maskz_expand_epi8
#define __m512bh emulated::I512
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_dpwssd_epi32 emulated::dpwssd_epi32
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define __m512 emulated::F512
#define __m512i emulated::I512
#define __mmask16 emulated::Mask16
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_add_ps emulated::add_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_div_ps emulated::div_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_max_ps emulated::max_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps emulated::roundscale_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_add_epi32 emulated::add_epi32
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated::slli_epi32
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_srlv_epi32 emulated::srlv_epi32
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_and_si512 emulated::and_si512
#define _mm512_set_epi32 emulated::set_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtph_ps emulated::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated::cvtps_ph
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#define _mm512_mask_mov_epi32 emulated::mask_mov_epi32
#define _mm512_mask_permutevar_ps emulated::mask_permutevar_ps
#undef _mm512_permute_ps
#define _mm512_permute_ps emulated::permute_ps
#define _mm512_permutevar_ps emulated::permutevar_ps
#define _mm512_unpacklo_ps emulated::unpacklo_ps
#define _mm512_unpackhi_ps emulated::unpackhi_ps
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps emulated::shuffle_ps
#define _mm512_castps256_ps512 emulated::castps256_ps512
#undef _mm512_insertf32x8
#define _mm512_insertf32x8 emulated::insertf32x8
#define _mm512_castps512_ps128 emulated::castps512_ps128
#undef _mm512_extractf32x4_ps
#define _mm512_extractf32x4_ps emulated::extractf32x4_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_movepi32_mask emulated::movepi32_mask
#define _mm512_cmpge_epi32_mask emulated::cmpge_epi32_mask
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#undef _mm512_mask_i32gather_ps
#define _mm512_mask_i32gather_ps emulated::mask_i32gather_ps
