// The function table that every instruction set fills: one algorithm, one table per Vec.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sparse24.h"

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

struct Kernels {
  const char* name;
  bool (*runs_here)();
  std::int64_t panel_rows;           // rows of a panel block: the lanes of its Vec
  void (*mask24_32)(const Mask24&);  // weights of 32 bits
  void (*mask24_16)(const Mask24&);  // weights of 16 bits, fp16 and bf16 alike
  void (*transposable_mask)(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                            int threads);
  void (*pack)(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
               void* panels);
  void (*linear)(const Linear&);
  void (*conv2d)(const Conv2d&);
};

namespace scalar {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

// Columns of a panel block: 64 columns hold 32 kept weights, 8 quads of 4, 2 metadata words.
constexpr std::int64_t kBlockCols = 64;
constexpr std::int64_t kBlockKept = 32;
constexpr std::int64_t kBlockQuads = 8;

// Memory of the calling thread that grows and is reused: 64-byte aligned, contents undefined.
enum class Scratch { kTile, kSums, kInput, kCount };
float* scratch(Scratch which, std::int64_t floats);

// Threads to use for a region: the wish, or 1 in a forked child, where the OpenMP pool is gone.
int usable_threads(int wish);

}  // namespace sparse24::cpu
