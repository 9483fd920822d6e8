// Activations to tiles: sixteen tokens by 32 k (64 of int8) become 16 rows of pairs (fours) of k, a token a lane.
#pragma once

#include "tiles-inl.h"

// One token's columns of a tile, of which `live` are there, as rows of 64 bytes, one a part. Columns are paired
// j with 16 + j where the weights are widened (kApart), else with their neighbours.
template <int kParts, bool kApart>
[[gnu::always_inline]] static inline void parts_of(Floats low, Floats high, Words (&parts)[kParts]) {
  Words a[kParts], b[kParts];
  split(low, a);
  split(high, b);
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i) parts[i] = kApart ? a[i] >> 16 | b[i] : high_halves(a[i], b[i]);
}

template <typename P, bool kApart>
[[gnu::always_inline]] static inline void read_row(const float* x, Words (&parts)[P::kInput]) {
  parts_of<P::kInput, kApart>(as_bits<Floats>(load_words(x)), as_bits<Floats>(load_words(x + 16)), parts);
}

template <typename P, bool kApart>
[[gnu::always_inline]] static inline void read_row(const Float16* x, Words (&parts)[P::kInput]) {
  float low[16], high[16];
  store(low, load(x));
  store(high, load(x + 16));
  parts_of<P::kInput, kApart>(as_bits<Floats>(load_words(low)), as_bits<Floats>(load_words(high)), parts);
}

template <typename P, bool>
[[gnu::always_inline]] static inline void read_row(const BFloat16* x, Words (&parts)[P::kInput]) {
  static_assert(P::kInput == 1);
  parts[0] = load_words(x);
}

template <typename P, bool>
[[gnu::always_inline]] static inline void read_row(const std::int8_t* x, Words (&parts)[P::kInput]) {
  static_assert(P::kInput == 1);
  parts[0] = load_words(x);
}

// rows[i]: where token i's columns begin, of which `live` are there; null: no such token.
// tiles [steps][part][1 KB]
template <typename P, bool kApart, typename X>
static void pack_tokens(const X* const* rows, std::int64_t live, std::int64_t steps, std::byte* tiles) {
  for (std::int64_t s = 0; s < steps; ++s, tiles += P::kInput * kTileBytes) {
    const std::int64_t at = s * P::kStep, count = live - at < P::kStep ? live - at : P::kStep;
    Words lanes[P::kInput][16];
    for (int i = 0; i < 16; ++i) {
      Words parts[P::kInput] = {};
      if (rows[i] != nullptr && count == P::kStep) {
        read_row<P, kApart>(rows[i] + at, parts);
      } else if (rows[i] != nullptr && count > 0) {
        X some[P::kStep] = {};
        std::memcpy(some, rows[i] + at, static_cast<std::size_t>(count) * sizeof(X));
        read_row<P, kApart>(some, parts);
      }
#pragma GCC unroll 3
      for (int p = 0; p < P::kInput; ++p) lanes[p][i] = parts[p];
    }
#pragma GCC unroll 3
    for (int p = 0; p < P::kInput; ++p) {
      transpose16(lanes[p]);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) store_words(tiles + p * kTileBytes + 64 * i, lanes[p][i]);
    }
  }
}
