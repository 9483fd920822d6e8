// The AMX intrinsics that csrc/cpu/amx uses, and the AVX-512 ones that no other file does, in plain C++: tiles of the
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

template <typename Element, int kCount>
I512 expand(std::uint64_t mask, I512 kept) {
  Element from[kCount], to[kCount];
  std::memcpy(from, &kept, sizeof from);
  for (int i = 0, next = 0; i < kCount; ++i) to[i] = mask >> i & 1 ? from[next++] : Element{0};
  return recast<I512>(to);
}
inline I512 castsi256_si512(__m256i low) {
  I512 out = set1_epi32(-1);  // what lies above is not defined
  std::memcpy(&out, &low, sizeof low);
  return out;
}
inline F512 maskz_expand_ps(Mask16 mask, F512 kept) {
  return recast<F512>(expand<std::uint32_t, 16>(mask, recast<I512>(kept)));
}
inline I512 maskz_expand_epi16(std::uint32_t mask, I512 kept) { return expand<std::uint16_t, 32>(mask, kept); }
inline I512 maskz_expand_epi8(std::uint64_t mask, I512 kept) { return expand<std::uint8_t, 64>(mask, kept); }
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
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_maskz_expand_ps emulated::maskz_expand_ps
#define _mm512_maskz_expand_epi16 emulated::maskz_expand_epi16
#define _mm512_maskz_expand_epi8 emulated::maskz_expand_epi8
#define _mm512_stream_si512 emulated::stream_si512
