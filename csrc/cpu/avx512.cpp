// AVX-512 (F, BW, VL, DQ): sixteen fp32 lanes. Masks are bound by memory and stay with AVX2's.
// Checked by compiling and by the tests where such a machine runs them; its figures are not known.

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "kernels.h"

namespace sparse24::cpu::avx512 {
namespace {

using Vec = __m512;
constexpr std::int64_t kLanes = 16;

// The load ratio of AVX2 (fourteen sums to a weight) and a tile of 28 KB: half the columns.
constexpr std::int64_t kMaxVectors = 14;
constexpr std::int64_t kTileCols = 32;
constexpr std::int64_t kMaxFewTokens = 10;

static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// NaN in v comes through: the second operand is returned when either is NaN.
static inline Vec clamp(Vec v, float low, float high) {
  return _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), v));
}
static inline Vec relu(Vec v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }
static inline Vec round(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
static inline Vec pow2(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

// A quad is four floats in every 128-bit part; splat takes one of them to all lanes.
static inline Vec load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
static inline Vec splat(Vec quad, int j) {
  switch (j) {  // a constant where it is called
    case 0: return _mm512_permute_ps(quad, 0x00);
    case 1: return _mm512_permute_ps(quad, 0x55);
    case 2: return _mm512_permute_ps(quad, 0xAA);
    default: return _mm512_permute_ps(quad, 0xFF);
  }
}
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

// Metadata of kLanes rows, a 32-bit word each. quad_index brings the byte of one quad to the low
// end; select takes, per lane, the entry of its 128-bit quad that slot S of the byte names
// (vpermilps reads the two low bits of a lane).
using Words = __m512i;
static inline Words load_words(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
static inline Words quad_index(Words words, int quad) { return _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * quad)); }
template <int S>
static inline Vec select(Vec quad, Words index) {
  return _mm512_permutevar_ps(quad, _mm512_srli_epi32(index, 2 * S));
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

#include "kernels-inl.h"

bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const Kernels kernels = {"avx512",
                         runs_here,
                         kLanes,
                         [](const Mask24& args) { avx2::kernels.mask24_32(args); },
                         [](const Mask24& args) { avx2::kernels.mask24_16(args); },
                         [](const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                            int threads) { avx2::kernels.transposable_mask(weight, dtype, rows, cols, mask, threads); },
                         pack_panels,
                         linear_panels,
                         conv2d_panels};

}  // namespace sparse24::cpu::avx512
