// AVX2 + FMA + F16C: eight fp32 lanes.

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::avx2 {
namespace {

using Vec = __m256;
constexpr std::int64_t kLanes = 8;

// Sums that the registers hold beside a weight and an address; ../machine.cpp says how many are used.
constexpr std::int64_t kMaxVectors = 13;
constexpr bool kExpands = false;
constexpr std::int64_t kExpandedTokens = 0;

static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
// Eight numbers of 16 bits, widened and narrowed.
static inline Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vec load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline Vec load(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(Float16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// To nearest, ties to even, by an integer addition that carries; NaN would carry too, and becomes 0x7fc0.
static inline void store(BFloat16* p, Vec v) {
  const __m256i bits = _mm256_castps_si256(v),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(even, _mm256_set1_epi32(0x7fc00000), nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
// NaN in v comes through: the second operand is returned when either is NaN.
static inline Vec clamp(Vec v, float low, float high) {
  return _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), v));
}
static inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec relu(Vec v) { return _mm256_max_ps(_mm256_setzero_ps(), v); }
// 2^n for integral n in [-126, 127].
static inline Vec pow2(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline Vec round(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// A quad is four floats in every 128-bit part; splat takes one of them to all lanes.
static inline Vec load_quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
static inline Vec splat(Vec quad, int j) {
  switch (j) {  // a constant where it is called
    case 0: return _mm256_permute_ps(quad, 0x00);
    case 1: return _mm256_permute_ps(quad, 0x55);
    case 2: return _mm256_permute_ps(quad, 0xAA);
    default: return _mm256_permute_ps(quad, 0xFF);
  }
}

// Part s of the vector: four floats of rows[4 s + J].
template <int J>
static inline Vec load_quads(const float* const* rows, std::int64_t offset) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[J] + offset)),
                              _mm_loadu_ps(rows[J + 4] + offset), 1);
}
static inline void store_quads(float* const* rows, std::int64_t offset, Vec v) {
  _mm_storeu_ps(rows[0] + offset, _mm256_castps256_ps128(v));
  _mm_storeu_ps(rows[4] + offset, _mm256_extractf128_ps(v, 1));
}
// Transposes 4x4 inside every 128-bit part.
static inline void transpose4(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab0 = _mm256_unpacklo_ps(a, b), ab1 = _mm256_unpackhi_ps(a, b);
  const Vec cd0 = _mm256_unpacklo_ps(c, d), cd1 = _mm256_unpackhi_ps(c, d);
  a = _mm256_shuffle_ps(ab0, cd0, 0x44);
  b = _mm256_shuffle_ps(ab0, cd0, 0xEE);
  c = _mm256_shuffle_ps(ab1, cd1, 0x44);
  d = _mm256_shuffle_ps(ab1, cd1, 0xEE);
}

// The indices of eight kept values, one in the two low bits of each lane (vpermilps reads no more).
using Indices = __m256i;
static inline Indices load_indices(const std::uint8_t* p) {
  short bits;
  std::memcpy(&bits, p, sizeof bits);
  return _mm256_srlv_epi32(_mm256_set1_epi16(bits), _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0));
}
// In every 128-bit part two lanes of `even` and two of `odd`, by index.
static inline Vec pick(Vec even, Vec odd, Indices index) {
  return _mm256_blend_ps(_mm256_permutevar_ps(even, index), _mm256_permutevar_ps(odd, index), 0xCC);
}
static inline float sum(Vec v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

static inline __m256i load_words(const std::int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
// Lanes of p whose mask word is -1, zero elsewhere; memory under other lanes is not touched.
static inline Vec load_masked(const float* p, const std::int32_t* lanes) {
  return _mm256_maskload_ps(p, load_words(lanes));
}
// p[offset] of every lane, zero where the offset is negative.
static inline Vec load_lanes(const float* p, const std::int32_t* offsets) {
  const __m256i at = load_words(offsets);
  const __m256i inside = _mm256_cmpgt_epi32(at, _mm256_set1_epi32(-1));
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, at, _mm256_castsi256_ps(inside), 4);
}

// Sums of pairs of 16-bit numbers (pairs-inl.h).
struct BytePairs {
  using Kept = std::int8_t;
  using X = std::int8_t;
  using Sums = __m256i;
  static Sums zero() { return _mm256_setzero_si256(); }
  static Sums load(const float* p) { return _mm256_castps_si256(_mm256_loadu_ps(p)); }
  static void store(float* p, Sums v) { _mm256_storeu_ps(p, _mm256_castsi256_ps(v)); }
  static Sums splat(std::uint32_t pair) { return _mm256_set1_epi32(static_cast<int>(pair)); }
  static Sums dot(Sums weight, const std::uint32_t* x, Sums sums) {
    const __m256i pairs = _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weight, pairs));
  }
  static Vec to_float(Sums v) { return _mm256_cvtepi32_ps(v); }
};

static inline Vec absolute(Vec v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
// min(v, high), and high for NaN.
static inline Vec cap(Vec v, float high) { return _mm256_min_ps(v, _mm256_set1_ps(high)); }
// Comparisons give all bits of a lane or none; choose takes `yes` where they are set.
static inline Vec above(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline Vec choose(Vec condition, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, condition); }
// Whether bit `bit` of the integer that v holds is set.
static inline Vec bit_set(Vec v, int bit) {
  const __m256i one = _mm256_set1_epi32(1 << bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_cvtps_epi32(v), one), one));
}

// 0 or 1 a lane of four vectors of comparisons, in lane order.
static inline void store_kept(std::uint8_t* out, __m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_and_si256(_mm256_permutevar8x32_epi32(bytes, order), _mm256_set1_epi8(1)));
}
static inline void store_bytes(std::uint8_t* out, const Vec (&kept)[4]) {
  store_kept(out, _mm256_castps_si256(kept[0]), _mm256_castps_si256(kept[1]), _mm256_castps_si256(kept[2]),
             _mm256_castps_si256(kept[3]));
}

struct Lanes32 {
  using Reg = __m256i;
  using Scalar = std::uint32_t;
  static constexpr std::int64_t kLanes = 8;
  static constexpr int kRegsPerMask = 4;
  static constexpr Scalar kMagnitude = 0x7fffffff;
  static Reg load(const Scalar* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(Scalar* p, Reg v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Reg all(int v) { return _mm256_set1_epi32(v); }
  static Reg magnitude(Reg v) { return _mm256_and_si256(v, all(kMagnitude)); }
  static Reg greater(Reg a, Reg b) { return _mm256_cmpgt_epi32(a, b); }
  static Reg add(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static Reg subtract(Reg a, Reg b) { return _mm256_sub_epi32(a, b); }
  static Reg both(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  template <int R>
  static Reg rotate(Reg v) {
    return _mm256_shuffle_epi32(v, R == 1 ? 0x39 : R == 2 ? 0x4E : 0x93);
  }
  template <int R>
  static Reg ties() {
    return _mm256_set_epi32(0, -(R <= 1), -(R <= 2), -1, 0, -(R <= 1), -(R <= 2), -1);
  }
  static void store_mask(std::uint8_t* out, const Reg (&kept)[4]) {
    store_kept(out, kept[0], kept[1], kept[2], kept[3]);
  }
  static void store_mask_part(std::uint8_t* out, Reg kept) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(kept, kept), _mm256_setzero_si256());
    const std::uint32_t low = static_cast<std::uint32_t>(_mm256_extract_epi32(bytes, 0)) & 0x01010101u;
    const std::uint32_t high = static_cast<std::uint32_t>(_mm256_extract_epi32(bytes, 4)) & 0x01010101u;
    std::memcpy(out, &low, 4);
    std::memcpy(out + 4, &high, 4);
  }
};

struct Lanes16 {
  using Reg = __m256i;
  using Scalar = std::uint16_t;
  static constexpr std::int64_t kLanes = 16;
  static constexpr int kRegsPerMask = 2;
  static constexpr Scalar kMagnitude = 0x7fff;
  static Reg load(const Scalar* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(Scalar* p, Reg v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Reg all(int v) { return _mm256_set1_epi16(static_cast<short>(v)); }
  static Reg magnitude(Reg v) { return _mm256_and_si256(v, all(kMagnitude)); }
  static Reg greater(Reg a, Reg b) { return _mm256_cmpgt_epi16(a, b); }
  static Reg add(Reg a, Reg b) { return _mm256_add_epi16(a, b); }
  static Reg subtract(Reg a, Reg b) { return _mm256_sub_epi16(a, b); }
  static Reg both(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  template <int R>
  static Reg rotate(Reg v) {
    constexpr int order = R == 1 ? 0x39 : R == 2 ? 0x4E : 0x93;
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, order), order);
  }
  template <int R>
  static Reg ties() {
    constexpr long long lane = 0xFFFF;
    return _mm256_set1_epi64x(lane | (R <= 2 ? lane << 16 : 0) | (R <= 1 ? lane << 32 : 0));
  }
  static void store_mask(std::uint8_t* out, const Reg (&kept)[2]) {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(kept[0], kept[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_and_si256(bytes, _mm256_set1_epi8(1)));
  }
  static void store_mask_part(std::uint8_t* out, Reg kept) {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(kept, kept), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_and_si128(_mm256_castsi256_si128(bytes), _mm_set1_epi8(1)));
  }
};

#include "../masks/mask-inl.h"
#include "../masks/transposable-inl.h"
#include "../prune/max_plus-inl.h"
#include "products-inl.h"

const char* why_not() { return machine().features.avx2 ? "" : "the CPU has no AVX2 with FMA and F16C"; }

}  // namespace

const Kernels kernels = {"avx2", why_not, mask24<Lanes32>, mask24<Lanes16>, transposable_tensor,     max_plus, linear,
                         conv2d, widen,   narrow,          quantize,        linear_pairs<BytePairs>, nullptr,  nullptr,
                         nullptr};

}  // namespace sparse24::cpu::avx2
