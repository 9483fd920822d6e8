// The function table that every instruction set fills: one algorithm, one table per Vec.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sparse24.h"
#include "machine.h"

namespace sparse24::cpu {

// A mask or prune call over [outer, length, inner], 2:4 along the middle axis. weight is written
// only when prune is set; mask may be null only then.
struct Mask24 {
  void* weight;
  std::int64_t outer, length, inner;
  std::uint8_t* mask;
  bool prune;
  int threads;
};

// out[s, t] = sum over r of max(a[s][r], b[t, r]), for s and t below count. (prune/max_plus-inl.h)
struct MaxPlus {
  const float* const* a;  // rows of `stride` floats
  const float* b;         // [count, stride]
  std::int64_t count;
  std::int64_t stride;  // a multiple of 16
  float* out;           // [count, count]
  int threads;
};

struct Kernels {
  const char* name;
  const char* (*why_not)();          // why it cannot run here; empty: it can
  void (*mask24_32)(const Mask24&);  // weights of 32 bits
  void (*mask24_16)(const Mask24&);  // weights of 16 bits, fp16 and bf16 alike
  void (*transposable_mask)(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                            int threads);
  void (*max_plus)(const MaxPlus&);
  // The products, of float32 x, bias and y and any weight. False: the indices of a group do not increase,
  // and y holds no result.
  bool (*linear)(const Linear&, const Tuning&);
  bool (*conv2d)(const Conv2d&, const Tuning&);
  // fp16, bf16 or int8 to float32; to fp16 or bf16, rounding to nearest even.
  void (*widen)(const void* from, DType dtype, std::int64_t count, float* to);
  void (*narrow)(const float* from, DType dtype, std::int64_t count, void* to);
  // float32 to int8 (lanes/quantize-inl.h). Returns the scale.
  float (*quantize)(const float* x, std::int64_t count, float scale, std::int8_t* to);
  // Many tokens of int8 x with scales, and an int8 weight; float32 bias and y.
  bool (*linear_int8)(const Linear&, const Tuning&);
  // The same of bf16 x and a weight of bf16, or of int8 (many tokens); null: widened to float32 it is as fast here.
  bool (*linear_bf16)(const Linear&, const Tuning&);
  // Products by tiles, whatever x, bias and y are; null: there are none.
  bool (*linear_tiles)(const Linear&, const Tuning&);
  bool (*conv2d_tiles)(const Conv2d&, const Tuning&);
};

// The kernels of this process: the best that the machine runs, or SPARSE24_CPU_ISA. (dispatch.cpp)
const Kernels& kernels();

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_vnni {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

// Weights of 16 bits, as types: kernels are written once for all weights and choose their loads by them.
struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// Memory of the calling thread that grows and is reused: 64-byte aligned, contents undefined.
enum class Scratch { kTile, kSums, kInput, kWideInput, kWideOutput, kRow, kCount };
float* scratch(Scratch which, std::int64_t floats);

// Threads to use for a region: the wish, or 1 in a forked child, where the OpenMP pool is gone.
int usable_threads(int wish);

}  // namespace sparse24::cpu
