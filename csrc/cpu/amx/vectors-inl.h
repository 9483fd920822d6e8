// Vectors of 64 bytes as the tiles want them: the compiler's own vector types, so that all but the expansion
// of kept values is plain code. (Arithmetic on fp32 lanes is the Vec's of ../lanes/avx512_vec-inl.h.)
#pragma once

using Words = std::uint32_t __attribute__((vector_size(64)));
using Floats = float __attribute__((vector_size(64)));
using Halves = std::uint16_t __attribute__((vector_size(64)));
using Bytes = std::uint8_t __attribute__((vector_size(64)));

template <typename To, typename From>
[[gnu::always_inline]] static inline To as_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

[[gnu::always_inline]] static inline Words load_words(const void* from) {
  Words to;
  std::memcpy(&to, from, sizeof to);
  return to;
}
[[gnu::always_inline]] static inline void store_words(void* to, Words from) { std::memcpy(to, &from, sizeof from); }

// Kept values to their places among zeros: 16 of 16 bits to 32 places, 8 of 32 bits to 16, 32 bytes to 64.
[[gnu::always_inline]] static inline Words expand_halves(const void* kept, std::uint32_t mask) {
  const __m256i values = _mm256_loadu_si256(static_cast<const __m256i*>(kept));
  return as_bits<Words>(_mm512_maskz_expand_epi16(mask, _mm512_castsi256_si512(values)));
}
[[gnu::always_inline]] static inline Floats expand_floats(const float* kept, std::uint32_t mask) {
  return as_bits<Floats>(
      _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), _mm512_castps256_ps512(_mm256_loadu_ps(kept))));
}
[[gnu::always_inline]] static inline Words expand_bytes(const void* kept, std::uint64_t mask) {
  const __m256i values = _mm256_loadu_si256(static_cast<const __m256i*>(kept));
  return as_bits<Words>(_mm512_maskz_expand_epi8(mask, _mm512_castsi256_si512(values)));
}

// The high 16 bits of 32 lanes, in order: `low` holds the first 16.
[[gnu::always_inline]] static inline Words high_halves(Words low, Words high) {
  return as_bits<Words>(__builtin_shufflevector(as_bits<Halves>(low), as_bits<Halves>(high), 1, 3, 5, 7, 9, 11, 13, 15,
                                                17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51,
                                                53, 55, 57, 59, 61, 63));
}

// To nearest even, as bf16 in the high 16 bits of a lane; NaN stays NaN.
[[gnu::always_inline]] static inline Words rounded(Floats x) {
  const Words bits = as_bits<Words>(x), nan = as_bits<Words>(x != x);
  return (((bits + (0x7fffu + (bits >> 16 & 1u))) & ~nan) | (bits & nan)) & 0xffff0000u;
}

// A float32 as the sum of up to three bf16, in the high 16 bits of a lane. Three are exact, 8 + 8 + 8 bits by
// truncation, which never overflows. Fewer are rounded: two leave 2^-16 of the number, and one 2^-8.
template <int kParts>
[[gnu::always_inline]] static inline void split(Floats x, Words (&parts)[kParts]) {
  for (int i = 0; i < kParts; ++i) {
    parts[i] = kParts == 3 ? as_bits<Words>(x) & 0xffff0000u : rounded(x);
    x -= as_bits<Floats>(parts[i]);
  }
}

// Transposes sixteen rows of sixteen 32-bit lanes.
[[gnu::always_inline]] static inline void transpose16(Words (&r)[16]) {
  Words s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // pairs of rows: lanes 0 1 of each part, and 2 3
    s[2 * i] =
        __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    s[2 * i + 1] =
        __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // fours of rows: r[4 i + j] holds lane j of each part
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Words a = s[4 * i + j], b = s[4 * i + 2 + j];
      r[4 * i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[4 * i + 2 * j + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // parts of 128 bits: eights of rows, then all
    const Words a = r[j], b = r[4 + j], c = r[8 + j], d = r[12 + j];
    const Words ab0 = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const Words ab1 = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const Words cd0 = __builtin_shufflevector(c, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const Words cd1 = __builtin_shufflevector(c, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    s[j] = __builtin_shufflevector(ab0, cd0, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    s[8 + j] = __builtin_shufflevector(ab0, cd0, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    s[4 + j] = __builtin_shufflevector(ab1, cd1, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    s[12 + j] = __builtin_shufflevector(ab1, cd1, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = s[i];
}
