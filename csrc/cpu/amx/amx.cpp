// AMX: tile products of bf16 and int8, and of float32 and fp16 as sums of bf16. A design of its own, for a tile is
// dense: the weight is expanded into L1 just before it is multiplied, and what 2:4 saves is half of its bytes; the
// products themselves run at the tiles' speed, far above that of any vector of floats. What is not products by tiles
// (masks, few tokens) is AVX-512's.
//
// Not measured on such a machine: its logic is tested on emulated instructions (tests/cpp/amx_emulated.h).

#include <immintrin.h>

#include <cstring>
#include <new>
#include <utility>

#include "../kernels.h"

namespace sparse24::cpu::amx {
namespace {

#include "../lanes/avx512_vec-inl.h"
#include "../lanes/epilogue-inl.h"
#include "../lanes/weight-inl.h"
#include "vectors-inl.h"

static void widen(const void* from, DType dtype, std::int64_t count, float* to) {
  avx512::kernels.widen(from, dtype, count, to);
}

#include "conv2d-inl.h"

const char* why_not() {
  const Features& f = machine().features;
  if (*avx512_vnni::kernels.why_not() != 0) return avx512_vnni::kernels.why_not();
  if (f.amx_tile && !(f.amx_bf16 && f.amx_int8)) return "the CPU's AMX has no bf16 or no int8";
  return amx_problem().c_str();
}

}  // namespace

const Kernels kernels = {
    "amx",
    why_not,
    [](const Mask24& args) { avx512::kernels.mask24_32(args); },
    [](const Mask24& args) { avx512::kernels.mask24_16(args); },
    [](const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, int threads) {
      avx512::kernels.transposable_mask(weight, dtype, rows, cols, mask, threads);
    },
    [](const MaxPlus& args) { avx512::kernels.max_plus(args); },
    [](const Linear& args, const Tuning& tuning) { return avx512::kernels.linear(args, tuning); },
    [](const Conv2d& args, const Tuning& tuning) { return avx512::kernels.conv2d(args, tuning); },
    widen,
    [](const float* from, DType dtype, std::int64_t count, void* to) {
      avx512::kernels.narrow(from, dtype, count, to);
    },
    [](const float* x, std::int64_t count, float scale, std::int8_t* to) {
      return avx512::kernels.quantize(x, count, scale, to);
    },
    [](const Linear& args, const Tuning& tuning) { return avx512_vnni::kernels.linear_int8(args, tuning); },
    [](const Linear& args, const Tuning& tuning) { return avx512_vnni::kernels.linear_bf16(args, tuning); },
    linear_tiles,
    conv2d_tiles};

}  // namespace sparse24::cpu::amx
