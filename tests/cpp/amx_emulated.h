// The AMX intrinsics that csrc/cpu/amx uses, and an AVX-512 one that no other file does, in plain C++: tiles of the
// calling thread. What faults on a machine ends the test here: a tile used without a configuration, a wrong palette
// or size, rows beyond a tile. Semantics from Intel's guide and the pseudocode of the tile instructions.
#pragma once

#include "avx512_emulated.h"

namespace emulated {

void tile_loadconfig(const void* config);
void tile_release();
void tile_zero(int tile);
void tile_loadd(int tile, const void* base, std::ptrdiff_t stride);
void tile_stored(int tile, void* base, std::ptrdiff_t stride);
void tile_dpbf16ps(int sums, int a, int b);
void tile_dpbssd(int sums, int a, int b);

// Threads whose tiles are configured and not released: none between products.
int tiles_in_use();

inline void stream_si512(void* to, I512 v) {
  if (reinterpret_cast<std::uintptr_t>(to) % 64 != 0) __builtin_trap();  // faults on a machine
  std::memcpy(to, v.lane, sizeof v.lane);
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig emulated::tile_loadconfig
#define _tile_release emulated::tile_release
#define _tile_zero emulated::tile_zero
#define _tile_loadd emulated::tile_loadd
#define _tile_stored emulated::tile_stored
#define _tile_dpbf16ps emulated::tile_dpbf16ps
#define _tile_dpbssd emulated::tile_dpbssd
#define _mm512_stream_si512 emulated::stream_si512
