// Compressed weights to tiles: rows of the compressed layout, expanded into L1 just before they are multiplied.
//
// Sixteen rows by 32 columns are a tile of bf16. A row has 16 kept values there, which lie together, and four bytes
// of indices, two kept columns a nibble: a table turns each nibble into four bits of the mask that expands them.
#pragma once

#include "tiles-inl.h"

// The masks of `count` bytes of indices, four bits for every group of four: nibble a + 4 b to 1 << a | 1 << b.
// Not zero where indices do not increase.
static inline std::uint8_t masks_of(const std::uint8_t* indices, std::int64_t count, std::uint8_t* masks) {
  static constexpr std::uint8_t kMask[16] = {0, 0, 0, 0, 0x3, 0, 0, 0, 0x5, 0x6, 0, 0, 0x9, 0xa, 0xc, 0};
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMask));
  const __m128i low = _mm_set1_epi8(15);
  __m128i wrong = _mm_setzero_si128();
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices + i));
    const __m128i first = _mm_shuffle_epi8(table, _mm_and_si128(bytes, low));
    const __m128i second = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    const __m128i none = _mm_setzero_si128();
    wrong = _mm_or_si128(wrong, _mm_or_si128(_mm_cmpeq_epi8(first, none), _mm_cmpeq_epi8(second, none)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(masks + i), _mm_or_si128(first, _mm_slli_epi16(second, 4)));
  }
  bool bad = _mm_movemask_epi8(wrong) != 0;
  for (; i < count; ++i) {
    const std::uint8_t first = kMask[indices[i] & 15], second = kMask[indices[i] >> 4];
    bad |= first == 0 || second == 0;
    masks[i] = static_cast<std::uint8_t>(first | second << 4);
  }
  return bad;
}

template <typename T>
[[gnu::always_inline]] static inline T word_at(const std::uint8_t* masks) {
  T word;
  std::memcpy(&word, masks, sizeof word);
  return word;
}

// One row of a tile, of 32 columns (64 of int8 in a product of bytes), for each part: to[part * 2 KB]. Columns of
// widened weights are paired j with 16 + j, as pack-inl.h pairs those of their activations.
template <typename P>
[[gnu::always_inline]] static inline void expand_row(const BFloat16* kept, const std::uint8_t* masks, std::byte* to) {
  store_words(to, expand_halves(kept, word_at<std::uint32_t>(masks)));
}

template <int kParts>
[[gnu::always_inline]] static inline void store_parts(Floats low, Floats high, std::byte* to) {
  Words a[kParts], b[kParts];
  split(low, a);
  split(high, b);
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i) store_words(to + 2 * i * kTileBytes, a[i] >> 16 | b[i]);
}

template <typename P>
[[gnu::always_inline]] static inline void expand_row(const float* kept, const std::uint8_t* masks, std::byte* to) {
  const std::uint32_t mask = word_at<std::uint32_t>(masks);
  store_parts<P::kWeight>(expand_floats(kept, mask & 0xffff), expand_floats(kept + 8, mask >> 16), to);
}

template <typename P>
[[gnu::always_inline]] static inline void expand_row(const Float16* kept, const std::uint8_t* masks, std::byte* to) {
  float wide[16];
  store(wide, load(kept));
  expand_row<P>(wide, masks, to);
}

// Bytes stay bytes where activations are bytes, and are whole numbers that bf16 holds where they are not.
template <typename P>
[[gnu::always_inline]] static inline void expand_row(const std::int8_t* kept, const std::uint8_t* masks,
                                                     std::byte* to) {
  if constexpr (P::kInt8) {
    store_words(to, expand_bytes(kept, word_at<std::uint64_t>(masks)));
  } else {
    std::uint16_t whole[16];
    for (int i = 0; i < 16; ++i)
      whole[i] = static_cast<std::uint16_t>(float_to_bits(static_cast<float>(kept[i])) >> 16);
    store_words(to, expand_halves(whole, word_at<std::uint32_t>(masks)));
  }
}

// Columns that are expanded at a time: 16 KB of bf16 for 32 rows, 24 KB of fp32's three parts.
template <typename P>
constexpr std::int64_t kBlockSteps = P::kWeight == 1 ? 8 : 4;

// Up to 32 rows by `cols` columns (of the padded ones, at most kBlockSteps steps) to
// tiles [steps][part][2][1 KB]. Rows and columns that are not there are zeros (the
// second tile of a step is not touched where there are no more than 16 rows). Not zero: indices do not increase.
template <typename P, typename W>
static std::uint8_t expand_block(const Rows<W>& rows, std::int64_t count, std::int64_t cols, std::byte* tiles) {
  constexpr std::int64_t kStepBytes = 2 * P::kWeight * kTileBytes, kKept = P::kStep / 2;
  const std::int64_t whole = cols / P::kStep, steps = (cols + P::kStep - 1) / P::kStep;
  std::uint8_t masks[kBlockSteps<P> * P::kStep / 8 + 16] = {}, wrong = 0;
  for (std::int64_t r = 0; r < count; ++r) {
    const W* kept = rows.values + r * rows.value_stride;
    std::byte* to = tiles + r / 16 * kTileBytes + r % 16 * 64;
    wrong |= masks_of(rows.indices + r * rows.index_stride, cols / 8, masks);
    for (std::int64_t s = 0; s < whole; ++s) {
      expand_row<P>(kept + s * kKept, masks + s * (P::kStep / 8), to + s * kStepBytes);
    }
    if (whole < steps) {  // the last columns: what lies behind them is not read
      W last[kKept] = {};
      std::memcpy(last, kept + whole * kKept, static_cast<std::size_t>(cols % P::kStep / 2) * sizeof(W));
      std::uint8_t last_masks[8] = {};
      std::memcpy(last_masks, masks + whole * (P::kStep / 8), static_cast<std::size_t>(cols % P::kStep / 8));
      expand_row<P>(last, last_masks, to + whole * kStepBytes);
    }
  }
  for (std::int64_t r = count; r < (count > 16 ? 32 : 16); ++r) {
    for (std::int64_t i = 0; i < steps * P::kWeight; ++i) {
      store_words(tiles + 2 * i * kTileBytes + r / 16 * kTileBytes + r % 16 * 64, Words{});
    }
  }
  return wrong;
}
