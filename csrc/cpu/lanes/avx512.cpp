// AVX-512 (F, BW, VL, DQ): sixteen fp32 lanes. Masks are bound by memory and stay with AVX2's.
// Checked by compiling and by the tests where such a machine runs them; its figures are not known.

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::avx512 {
namespace {

#include "avx512_vec-inl.h"
// Sums of pairs of 16-bit numbers (pairs-inl.h).
struct BytePairs {
  using Kept = std::int8_t;
  using X = std::int8_t;
  using Sums = __m512i;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums load(const float* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, Sums v) { _mm512_storeu_si512(p, v); }
  static Sums splat(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static Sums dot(Sums weight, const std::uint32_t* x, Sums sums) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(weight, _mm512_loadu_si512(x)));
  }
  static Vec to_float(Sums v) { return _mm512_cvtepi32_ps(v); }
};

#include "../prune/max_plus-inl.h"
#include "products-inl.h"

const char* why_not() {
  return machine().features.avx512 ? "" : "the CPU or the system has no AVX-512 F, BW, VL and DQ";
}

}  // namespace

const Kernels kernels = {"avx512",
                         why_not,
                         [](const Mask24& args) { avx2::kernels.mask24_32(args); },
                         [](const Mask24& args) { avx2::kernels.mask24_16(args); },
                         [](const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                            int threads) { avx2::kernels.transposable_mask(weight, dtype, rows, cols, mask, threads); },
                         max_plus,
                         linear,
                         conv2d,
                         widen,
                         narrow,
                         quantize,
                         linear_pairs<BytePairs>,
                         nullptr,
                         nullptr,
                         nullptr};

}  // namespace sparse24::cpu::avx512
