// Plain C++, four fp32 lanes: runs everywhere, and shows what each operation of a Vec means.

#include <cmath>
#include <cstring>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::scalar {
namespace {

constexpr std::int64_t kLanes = 4;
constexpr std::int64_t kMaxVectors = 8;
constexpr bool kExpands = false;
constexpr std::int64_t kExpandedTokens = 0;

struct Vec {
  float lane[4];
};

#include "numbers-inl.h"

template <typename F>
static inline Vec each(F f) {
  return Vec{{f(0), f(1), f(2), f(3)}};
}

static inline Vec broadcast(float x) { return Vec{{x, x, x, x}}; }
static inline Vec zero() { return broadcast(0.0f); }
static inline Vec load(const float* p) { return Vec{{p[0], p[1], p[2], p[3]}}; }
static inline void store(float* p, Vec v) { std::memcpy(p, v.lane, sizeof v.lane); }
static inline Vec load(const Float16* p) {
  return each([&](int i) { return to_float(p[i]); });
}
static inline Vec load(const BFloat16* p) {
  return each([&](int i) { return to_float(p[i]); });
}
static inline Vec load(const std::int8_t* p) {
  return each([&](int i) { return to_float(p[i]); });
}
// To nearest, ties to even; NaN stays NaN.
static inline std::uint16_t bfloat16_bits(float x) {
  const std::uint32_t bits = float_to_bits(x);
  return static_cast<std::uint16_t>(x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
static inline std::uint16_t float16_bits(float x) {
  const std::uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (size >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and more round to Inf
  if (size < 0x38800000u) {  // a subnormal: the sum's low bits are its units of 2^-24
    return static_cast<std::uint16_t>(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u));
  }
  return static_cast<std::uint16_t>(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13));
}
static inline void store(Float16* p, Vec v) {
  for (int i = 0; i < 4; ++i) p[i].bits = float16_bits(v.lane[i]);
}
static inline void store(BFloat16* p, Vec v) {
  for (int i = 0; i < 4; ++i) p[i].bits = bfloat16_bits(v.lane[i]);
}
static inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
static inline Vec mul(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
static inline Vec div(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
static inline Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }  // libm's fma is a slow call
// NaN comes through.
static inline Vec clamp(Vec v, float low, float high) {
  return each([&](int i) { return v.lane[i] < low ? low : v.lane[i] > high ? high : v.lane[i]; });
}
static inline Vec larger(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
static inline Vec relu(Vec v) {
  return each([&](int i) { return v.lane[i] < 0.0f ? 0.0f : v.lane[i]; });
}
static inline Vec round(Vec v) {
  return each([&](int i) { return __builtin_rintf(v.lane[i]); });
}
// 2^n for integral n in [-126, 127]; NaN gives any value.
static inline Vec pow2(Vec n) {
  return each([&](int i) {
    const std::uint32_t bits =
        (n.lane[i] == n.lane[i] ? static_cast<std::uint32_t>(static_cast<int>(n.lane[i]) + 127) : 0u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
  });
}

// A quad is four floats in every 128-bit part; splat takes one of them to all lanes.
static inline Vec load_quad(const float* p) { return load(p); }
static inline Vec splat(Vec quad, int j) { return broadcast(quad.lane[j]); }
// Part s of the vector: four floats of rows[4 s + J].
template <int J>
static inline Vec load_quads(const float* const* rows, std::int64_t offset) {
  return load(rows[J] + offset);
}
static inline void store_quads(float* const* rows, std::int64_t offset, Vec v) { store(rows[0] + offset, v); }
// Transposes 4x4 inside every 128-bit part.
static inline void transpose4(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec rows[4] = {a, b, c, d};
  const auto column = [&](int j) { return each([&](int i) { return rows[i].lane[j]; }); };
  a = column(0);
  b = column(1);
  c = column(2);
  d = column(3);
}

// The indices of four kept values. pick takes two lanes of `even` and two of `odd`, by index.
struct Indices {
  int lane[4];
};
static inline Indices load_indices(const std::uint8_t* p) {
  return Indices{{*p & 3, *p >> 2 & 3, *p >> 4 & 3, *p >> 6}};
}
static inline Vec pick(Vec even, Vec odd, Indices index) {
  return each([&](int i) { return (i < 2 ? even : odd).lane[index.lane[i]]; });
}
static inline float sum(Vec v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }

// Lanes of p whose mask word is -1, zero elsewhere; memory under other lanes is not touched.
static inline Vec load_masked(const float* p, const std::int32_t* lanes) {
  return each([&](int i) { return lanes[i] != 0 ? p[i] : 0.0f; });
}
// p[offset] of every lane, zero where the offset is negative.
static inline Vec load_lanes(const float* p, const std::int32_t* offsets) {
  return each([&](int i) { return offsets[i] >= 0 ? p[offsets[i]] : 0.0f; });
}

static inline Vec absolute(Vec v) {
  return each([&](int i) { return __builtin_fabsf(v.lane[i]); });
}
// min(v, high), and high for NaN.
static inline Vec cap(Vec v, float high) {
  return each([&](int i) { return v.lane[i] < high ? v.lane[i] : high; });
}
// Comparisons give 1 or 0; choose takes `yes` where they hold.
static inline Vec above(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? 1.0f : 0.0f; });
}
static inline Vec choose(Vec condition, Vec yes, Vec no) {
  return each([&](int i) { return condition.lane[i] != 0.0f ? yes.lane[i] : no.lane[i]; });
}
// Whether bit `bit` of the integer that v holds is set.
static inline Vec bit_set(Vec v, int bit) {
  return each([&](int i) { return static_cast<float>(static_cast<int>(v.lane[i]) >> bit & 1); });
}
static inline void store_bytes(std::uint8_t* out, const Vec (&kept)[4]) {
  for (int i = 0; i < 16; ++i) out[i] = kept[i / 4].lane[i % 4] != 0.0f;
}

// Integer lanes of one width, a group of four.
template <typename Bits, typename Signed>
struct Lanes {
  struct Reg {
    Signed lane[4];
  };
  using Scalar = Bits;
  static constexpr std::int64_t kLanes = 4;
  static constexpr int kRegsPerMask = 1;
  static constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  template <typename F>
  static Reg each(F f) {
    return Reg{
        {static_cast<Signed>(f(0)), static_cast<Signed>(f(1)), static_cast<Signed>(f(2)), static_cast<Signed>(f(3))}};
  }
  static Reg load(const Bits* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(Bits* p, Reg v) { std::memcpy(p, v.lane, sizeof v.lane); }
  static Reg all(int v) {
    return each([&](int) { return v; });
  }
  static Reg magnitude(Reg v) {
    return each([&](int i) { return v.lane[i] & kMagnitude; });
  }
  static Reg greater(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? -1 : 0; });
  }
  static Reg add(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Reg subtract(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Reg both(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] & b.lane[i]; });
  }
  template <int R>
  static Reg rotate(Reg v) {
    return each([&](int i) { return v.lane[(i + R) & 3]; });
  }
  template <int R>
  static Reg ties() {
    return each([](int i) { return i + R < 4 ? -1 : 0; });
  }
  static void store_mask_part(std::uint8_t* out, Reg kept) {
    for (int i = 0; i < 4; ++i) out[i] = kept.lane[i] != 0;
  }
  static void store_mask(std::uint8_t* out, const Reg (&kept)[1]) { store_mask_part(out, kept[0]); }
};
using Lanes32 = Lanes<std::uint32_t, std::int32_t>;
using Lanes16 = Lanes<std::uint16_t, std::int16_t>;

// Sums of pairs of 16-bit numbers (pairs-inl.h).
struct BytePairs {
  using Kept = std::int8_t;
  using X = std::int8_t;
  struct Sums {
    std::int32_t lane[kLanes];
  };
  static Sums zero() { return {}; }
  static Sums load(const float* p) {
    Sums v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, const Sums& v) { std::memcpy(p, &v, sizeof v); }
  static std::uint32_t splat(std::uint32_t pair) { return pair; }
  static Sums dot(std::uint32_t weight, const std::uint32_t* x, Sums sums) {
    const auto low = [](std::uint32_t pair) {
      return static_cast<std::int32_t>(static_cast<std::int16_t>(pair & 0xffff));
    };
    const auto high = [](std::uint32_t pair) {
      return static_cast<std::int32_t>(static_cast<std::int16_t>(pair >> 16));
    };
    for (int i = 0; i < kLanes; ++i) sums.lane[i] += low(weight) * low(x[i]) + high(weight) * high(x[i]);
    return sums;
  }
  static Vec to_float(const Sums& v) {
    return each([&](int i) { return static_cast<float>(v.lane[i]); });
  }
};

#include "../masks/mask-inl.h"
#include "../masks/transposable-inl.h"
#include "../prune/max_plus-inl.h"
#include "products-inl.h"

const char* why_not() { return ""; }

}  // namespace

const Kernels kernels = {
    "scalar", why_not, mask24<Lanes32>, mask24<Lanes16>, transposable_tensor,     max_plus, linear,
    conv2d,   widen,   narrow,          quantize,        linear_pairs<BytePairs>, nullptr,  nullptr,
    nullptr};

}  // namespace sparse24::cpu::scalar
