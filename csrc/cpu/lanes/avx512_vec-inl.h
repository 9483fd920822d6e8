// A Vec of sixteen fp32 lanes, for the files of AVX-512 and of AMX. Included inside their namespaces.
#pragma once

using Vec = __m512;
constexpr std::int64_t kLanes = 16;

// Sums to a weight; ../machine.cpp says how many are used.
constexpr std::int64_t kMaxVectors = 14;

// Tokens from which on their products see expanded weights (few_tokens-inl.h).
constexpr std::int64_t kExpandedTokens = 2;

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
// Sixteen numbers of 16 bits, widened and narrowed.
static inline __m256i load_halves(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline Vec from_bfloat16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline Vec load(const Float16* p) { return _mm512_cvtph_ps(load_halves(p)); }
static inline Vec load(const BFloat16* p) { return from_bfloat16(load_halves(p)); }
static inline Vec load(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(Float16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// To nearest, ties to even, by an integer addition that carries; NaN would carry too, and becomes 0x7fc0.
static inline void store(BFloat16* p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc00000)), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// NaN in v comes through: the second operand is returned when either is NaN.
static inline Vec clamp(Vec v, float low, float high) {
  return _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), v));
}
static inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec relu(Vec v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }
static inline Vec round(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
static inline Vec pow2(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

// Four neighbours, of which splat takes one to all lanes. Floats are broadcast from memory, one by one: a
// permute would share its port with the multiply-adds.
struct InMemory {
  const float* p;
};
static inline InMemory load_quad(const float* p) { return {p}; }
static inline Vec splat(InMemory quad, int j) { return broadcast(quad.p[j]); }
// Part s of the vector: four floats of rows[4 s + J].
template <int J>
static inline Vec load_quads(const float* const* rows, std::int64_t offset) {
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[J] + offset)),
                                          _mm_loadu_ps(rows[J + 4] + offset), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[J + 8] + offset)),
                                           _mm_loadu_ps(rows[J + 12] + offset), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
static inline void store_quads(float* const* rows, std::int64_t offset, Vec v) {
  _mm_storeu_ps(rows[0] + offset, _mm512_castps512_ps128(v));
  _mm_storeu_ps(rows[4] + offset, _mm512_extractf32x4_ps(v, 1));
  _mm_storeu_ps(rows[8] + offset, _mm512_extractf32x4_ps(v, 2));
  _mm_storeu_ps(rows[12] + offset, _mm512_extractf32x4_ps(v, 3));
}
// Transposes 4x4 inside every 128-bit part.
static inline void transpose4(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab0 = _mm512_unpacklo_ps(a, b), ab1 = _mm512_unpackhi_ps(a, b);
  const Vec cd0 = _mm512_unpacklo_ps(c, d), cd1 = _mm512_unpackhi_ps(c, d);
  a = _mm512_shuffle_ps(ab0, cd0, 0x44);
  b = _mm512_shuffle_ps(ab0, cd0, 0xEE);
  c = _mm512_shuffle_ps(ab1, cd1, 0x44);
  d = _mm512_shuffle_ps(ab1, cd1, 0xEE);
}

// The indices of sixteen kept values, one in the two low bits of each lane (vpermilps reads no more).
using Indices = __m512i;
static inline Indices load_indices(const std::uint8_t* p) {
  int bits;
  std::memcpy(&bits, p, sizeof bits);
  return _mm512_srlv_epi32(_mm512_set1_epi32(bits),
                           _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0));
}
// In every 128-bit part two lanes of `even` and two of `odd`, by index.
static inline Vec pick(Vec even, Vec odd, Indices index) {
  return _mm512_mask_permutevar_ps(_mm512_permutevar_ps(even, index), 0xCCCC, odd, index);
}

// Kept values to their places among zeros. The masks of 64 columns, low bits first: a table turns a nibble of
// indices a + 4 b into the four bits 1 << a | 1 << b.
constexpr bool kExpands = true;
static inline std::uint64_t expansion_masks(const std::uint8_t* indices) {
  const __m128i table = _mm_setr_epi8(0, 0, 0, 0, 0x3, 0, 0, 0, 0x5, 0x6, 0, 0, 0x9, 0xa, 0xc, 0);
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(indices)), low = _mm_set1_epi8(15);
  const __m128i first = _mm_shuffle_epi8(table, _mm_and_si128(bytes, low));
  const __m128i second = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_or_si128(first, _mm_slli_epi16(second, 4))));
}
// Eight kept values, by the sixteen low bits.
static inline Vec expand(__m256 kept, std::uint64_t mask) {
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), _mm512_castps256_ps512(kept));
}
static inline __m128i load_eight(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline Vec expand(const float* p, std::uint64_t mask) { return expand(_mm256_loadu_ps(p), mask); }
static inline Vec expand(const Float16* p, std::uint64_t mask) { return expand(_mm256_cvtph_ps(load_eight(p)), mask); }
static inline Vec expand(const BFloat16* p, std::uint64_t mask) {
  return expand(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_eight(p)), 16)), mask);
}
static inline Vec expand(const std::int8_t* p, std::uint64_t mask) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return expand(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), mask);
}
static inline float sum(Vec v) {
  __m128 four = _mm_add_ps(_mm_add_ps(_mm512_castps512_ps128(v), _mm512_extractf32x4_ps(v, 1)),
                           _mm_add_ps(_mm512_extractf32x4_ps(v, 2), _mm512_extractf32x4_ps(v, 3)));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Lanes of p whose mask word is -1, zero elsewhere; memory under other lanes is not touched.
static inline Vec load_masked(const float* p, const std::int32_t* lanes) {
  return _mm512_maskz_loadu_ps(_mm512_movepi32_mask(_mm512_loadu_si512(lanes)), p);
}
// p[offset] of every lane, zero where the offset is negative.
static inline Vec load_lanes(const float* p, const std::int32_t* offsets) {
  const __m512i at = _mm512_loadu_si512(offsets);
  const __mmask16 inside = _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512());
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, p, 4);
}
