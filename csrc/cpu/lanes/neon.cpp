// AArch64 NEON: four fp32 lanes, thirty-two registers. No multiply-add reads memory, so the products
// are bound by loads.

#include <arm_neon.h>

#include <cstring>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::neon {
namespace {

using Vec = float32x4_t;
constexpr std::int64_t kLanes = 4;

// Twenty sums leave registers for loads in flight.
constexpr std::int64_t kMaxVectors = 20;
constexpr bool kExpands = false;
constexpr std::int64_t kExpandedTokens = 0;

static inline Vec broadcast(float x) { return vdupq_n_f32(x); }
static inline Vec zero() { return broadcast(0.0f); }
static inline Vec load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, Vec v) { vst1q_f32(p, v); }
// Four numbers of 16 bits, widened and narrowed.
static inline Vec load(const Float16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
}
static inline Vec load(const BFloat16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
}
static inline Vec load(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
static inline void store(Float16* p, Vec v) {
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
// To nearest, ties to even, by an integer addition that carries; NaN would carry too, and becomes 0x7fc0.
static inline void store(BFloat16* p, Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t even = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t number = vceqq_f32(v, v);
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(vbslq_u32(number, even, vdupq_n_u32(0x7fc00000)), 16));
}
static inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
static inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
static inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
static inline Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
// NaN comes through.
static inline Vec clamp(Vec v, float low, float high) {
  return vminq_f32(broadcast(high), vmaxq_f32(broadcast(low), v));
}
static inline Vec larger(Vec a, Vec b) { return vmaxq_f32(a, b); }
static inline Vec relu(Vec v) { return vmaxq_f32(zero(), v); }
static inline Vec round(Vec v) { return vrndnq_f32(v); }
// 2^n for integral n in [-126, 127].
static inline Vec pow2(Vec n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

// A quad is four floats; splat takes one of them to all lanes (the multiply-add takes it by lane).
static inline Vec load_quad(const float* p) { return load(p); }
static inline Vec splat(Vec quad, int j) {
  switch (j) {  // a constant where it is called
    case 0: return vdupq_laneq_f32(quad, 0);
    case 1: return vdupq_laneq_f32(quad, 1);
    case 2: return vdupq_laneq_f32(quad, 2);
    default: return vdupq_laneq_f32(quad, 3);
  }
}
// Four floats of rows[J].
template <int J>
static inline Vec load_quads(const float* const* rows, std::int64_t offset) {
  return load(rows[J] + offset);
}
static inline void store_quads(float* const* rows, std::int64_t offset, Vec v) { store(rows[0] + offset, v); }
static inline void transpose4(Vec& a, Vec& b, Vec& c, Vec& d) {
  const auto even = [](Vec x, Vec y) { return vreinterpretq_f64_f32(vtrn1q_f32(x, y)); };
  const auto odd = [](Vec x, Vec y) { return vreinterpretq_f64_f32(vtrn2q_f32(x, y)); };
  const float64x2_t ab0 = even(a, b), ab1 = odd(a, b), cd0 = even(c, d), cd1 = odd(c, d);
  a = vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0));
  b = vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1));
  c = vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0));
  d = vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1));
}

// The indices of four kept values, as the bytes that a table look-up takes from `even` (lanes 0 and 1) and
// `odd` (lanes 2 and 3).
using Indices = uint8x16_t;
static inline Indices load_indices(const std::uint8_t* p) {
  const int32x4_t shifts = {0, -2, -4, -6};
  const uint32x4_t first = {0x03020100, 0x03020100, 0x13121110, 0x13121110};
  const uint32x4_t index = vandq_u32(vshlq_u32(vdupq_n_u32(*p), shifts), vdupq_n_u32(3));
  return vreinterpretq_u8_u32(vmlaq_u32(first, index, vdupq_n_u32(0x04040404)));
}
static inline Vec pick(Vec even, Vec odd, Indices index) {
  const uint8x16x2_t both = {{vreinterpretq_u8_f32(even), vreinterpretq_u8_f32(odd)}};
  return vreinterpretq_f32_u8(vqtbl2q_u8(both, index));
}
static inline float sum(Vec v) { return vaddvq_f32(v); }

// Lanes of p whose mask word is -1, zero elsewhere; memory under other lanes is not touched.
static inline Vec load_masked(const float* p, const std::int32_t* lanes) {
  float out[4];
  for (int i = 0; i < 4; ++i) out[i] = lanes[i] != 0 ? p[i] : 0.0f;
  return load(out);
}
// p[offset] of every lane, zero where the offset is negative.
static inline Vec load_lanes(const float* p, const std::int32_t* offsets) {
  float out[4];
  for (int i = 0; i < 4; ++i) out[i] = offsets[i] >= 0 ? p[offsets[i]] : 0.0f;
  return load(out);
}

static inline Vec absolute(Vec v) { return vabsq_f32(v); }
// min(v, high), and high for NaN: a comparison, for FMINNM keeps signalling NaNs.
static inline Vec cap(Vec v, float high) { return vbslq_f32(vcltq_f32(v, broadcast(high)), v, broadcast(high)); }
// Comparisons give all bits of a lane or none; choose takes `yes` where they are set.
static inline Vec above(Vec a, Vec b) { return vreinterpretq_f32_u32(vcgtq_f32(a, b)); }
static inline Vec choose(Vec condition, Vec yes, Vec no) {
  return vbslq_f32(vreinterpretq_u32_f32(condition), yes, no);
}
// Whether bit `bit` of the integer that v holds is set.
static inline Vec bit_set(Vec v, int bit) {
  return vreinterpretq_f32_u32(vtstq_s32(vcvtq_s32_f32(v), vdupq_n_s32(1 << bit)));
}

// 0 or 1 a lane of four vectors of comparisons, in lane order.
static inline void store_kept(std::uint8_t* out, int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  const int16x8_t ab = vcombine_s16(vmovn_s32(a), vmovn_s32(b)), cd = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
  const int8x16_t bytes = vcombine_s8(vmovn_s16(ab), vmovn_s16(cd));
  vst1q_u8(out, vandq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_u8(1)));
}
static inline void store_bytes(std::uint8_t* out, const Vec (&kept)[4]) {
  store_kept(out, vreinterpretq_s32_f32(kept[0]), vreinterpretq_s32_f32(kept[1]), vreinterpretq_s32_f32(kept[2]),
             vreinterpretq_s32_f32(kept[3]));
}

struct Lanes32 {
  using Reg = int32x4_t;
  using Scalar = std::uint32_t;
  static constexpr std::int64_t kLanes = 4;
  static constexpr int kRegsPerMask = 4;
  static constexpr Scalar kMagnitude = 0x7fffffff;
  static Reg load(const Scalar* p) { return vreinterpretq_s32_u32(vld1q_u32(p)); }
  static void store(Scalar* p, Reg v) { vst1q_u32(p, vreinterpretq_u32_s32(v)); }
  static Reg all(int v) { return vdupq_n_s32(v); }
  static Reg magnitude(Reg v) { return vandq_s32(v, all(kMagnitude)); }
  static Reg greater(Reg a, Reg b) { return vreinterpretq_s32_u32(vcgtq_s32(a, b)); }
  static Reg add(Reg a, Reg b) { return vaddq_s32(a, b); }
  static Reg subtract(Reg a, Reg b) { return vsubq_s32(a, b); }
  static Reg both(Reg a, Reg b) { return vandq_s32(a, b); }
  template <int R>
  static Reg rotate(Reg v) {
    return vextq_s32(v, v, R);
  }
  template <int R>
  static Reg ties() {
    return Reg{-1, -(R <= 2), -(R <= 1), 0};
  }
  static void store_mask(std::uint8_t* out, const Reg (&kept)[4]) {
    store_kept(out, kept[0], kept[1], kept[2], kept[3]);
  }
  static void store_mask_part(std::uint8_t* out, Reg kept) {
    for (int i = 0; i < 4; ++i) out[i] = kept[i] != 0;
  }
};

struct Lanes16 {
  using Reg = int16x8_t;
  using Scalar = std::uint16_t;
  static constexpr std::int64_t kLanes = 8;
  static constexpr int kRegsPerMask = 2;
  static constexpr Scalar kMagnitude = 0x7fff;
  static Reg load(const Scalar* p) { return vreinterpretq_s16_u16(vld1q_u16(p)); }
  static void store(Scalar* p, Reg v) { vst1q_u16(p, vreinterpretq_u16_s16(v)); }
  static Reg all(int v) { return vdupq_n_s16(static_cast<std::int16_t>(v)); }
  static Reg magnitude(Reg v) { return vandq_s16(v, all(kMagnitude)); }
  static Reg greater(Reg a, Reg b) { return vreinterpretq_s16_u16(vcgtq_s16(a, b)); }
  static Reg add(Reg a, Reg b) { return vaddq_s16(a, b); }
  static Reg subtract(Reg a, Reg b) { return vsubq_s16(a, b); }
  static Reg both(Reg a, Reg b) { return vandq_s16(a, b); }
  template <int R>
  static Reg rotate(Reg v) {  // bytes 2R of every eight
    constexpr auto at = [](int i) { return static_cast<std::uint8_t>(i / 8 * 8 + (i % 8 + 2 * R) % 8); };
    const uint8x16_t order = {at(0), at(1), at(2),  at(3),  at(4),  at(5),  at(6),  at(7),
                              at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15)};
    return vreinterpretq_s16_u8(vqtbl1q_u8(vreinterpretq_u8_s16(v), order));
  }
  template <int R>
  static Reg ties() {
    return Reg{-1, -(R <= 2), -(R <= 1), 0, -1, -(R <= 2), -(R <= 1), 0};
  }
  static void store_mask(std::uint8_t* out, const Reg (&kept)[2]) {
    const int8x16_t bytes = vcombine_s8(vmovn_s16(kept[0]), vmovn_s16(kept[1]));
    vst1q_u8(out, vandq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_u8(1)));
  }
  static void store_mask_part(std::uint8_t* out, Reg kept) {
    vst1_u8(out, vand_u8(vreinterpret_u8_s8(vmovn_s16(kept)), vdup_n_u8(1)));
  }
};

#include "../masks/mask-inl.h"
#include "../masks/transposable-inl.h"
#include "../prune/max_plus-inl.h"
// Sums of pairs of 16-bit numbers (pairs-inl.h).
struct BytePairs {
  using Kept = std::int8_t;
  using X = std::int8_t;
  using Sums = int32x4_t;
  static Sums zero() { return vdupq_n_s32(0); }
  static Sums load(const float* p) { return vreinterpretq_s32_f32(vld1q_f32(p)); }
  static void store(float* p, Sums v) { vst1q_f32(p, vreinterpretq_f32_s32(v)); }
  static int16x8_t splat(std::uint32_t pair) { return vreinterpretq_s16_u32(vdupq_n_u32(pair)); }
  static Sums dot(int16x8_t weight, const std::uint32_t* x, Sums sums) {
    const int16x8_t pairs = vreinterpretq_s16_u32(vld1q_u32(x));
    const int32x4_t low = vmull_s16(vget_low_s16(weight), vget_low_s16(pairs)), high = vmull_high_s16(weight, pairs);
    return vaddq_s32(sums, vpaddq_s32(low, high));
  }
  static Vec to_float(Sums v) { return vcvtq_f32_s32(v); }
};

#include "products-inl.h"

const char* why_not() { return ""; }

}  // namespace

const Kernels kernels = {"neon", why_not, mask24<Lanes32>, mask24<Lanes16>, transposable_tensor,     max_plus, linear,
                         conv2d, widen,   narrow,          quantize,        linear_pairs<BytePairs>, nullptr,  nullptr,
                         nullptr};

}  // namespace sparse24::cpu::neon
