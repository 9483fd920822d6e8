// Tile registers: 0 to 3 hold sums, 4 and 5 weights, 6 and 7 activations, all of 16 rows of 64 bytes.
//
// Weights are the rows of a product and tokens its columns: a tile of weights is 16 output features by 32 k (64
// of int8) as the compressed layout has them, a tile of activations is 16 pairs (int8: fours) of k by 16 tokens.
// So weights need no order of their own and expand where they lie; activations and sums are transposed instead,
// which many features, and many k, share.
#pragma once

constexpr std::int64_t kTileBytes = 1024;

// Configures the tiles of this thread, and gives them back: a process that leaves them in use pays for them at
// every switch of threads.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// The product of two tiles of weights (or one) and two of activations (or one), added to the sums.
template <bool kInt8, bool kTwoRows, bool kTwoColumns>
[[gnu::always_inline]] static inline void multiply() {
  if constexpr (kInt8) {
    _tile_dpbssd(0, 4, 6);
    if constexpr (kTwoColumns) _tile_dpbssd(1, 4, 7);
    if constexpr (kTwoRows) _tile_dpbssd(2, 5, 6);
    if constexpr (kTwoRows && kTwoColumns) _tile_dpbssd(3, 5, 7);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
}

// How numbers become tiles: a weight as W bf16 parts, an activation as X, of whose products w * x those with
// w + x <= kLast are formed: the others are below the precision asked for.
template <int W, int X, int kLast, bool kBytes = false>
struct Parts {
  static constexpr int kWeight = W, kInput = X, kLevel = kLast;
  static constexpr bool kInt8 = kBytes;
  static constexpr std::int64_t kStep = kBytes ? 64 : 32;  // columns of a tile
};

// Weights of part w are at w * 2 KB of a step (two tiles), activations of part x at x * 1 KB. From the smallest
// products up, and where the weights of the last one serve again, they are not loaded again.
template <typename P, bool kTwoRows, bool kTwoColumns, int x, int w, int kLoaded>
[[gnu::always_inline]] static inline void multiply_part(const std::byte* weights) {
  if constexpr (w != kLoaded) {
    _tile_loadd(4, weights + 2 * w * kTileBytes, 64);
    if constexpr (kTwoRows) _tile_loadd(5, weights + (2 * w + 1) * kTileBytes, 64);
  }
  multiply<P::kInt8, kTwoRows, kTwoColumns>();
}

template <typename P, bool kTwoRows, bool kTwoColumns, int x, int kLoaded>
[[gnu::always_inline]] static inline void multiply_parts(const std::byte* weights, const std::byte* left,
                                                         const std::byte* right) {
  constexpr int kLast = P::kLevel - x < P::kWeight - 1 ? P::kLevel - x : P::kWeight - 1;  // of the weight's parts
  _tile_loadd(6, left + x * kTileBytes, 64);
  if constexpr (kTwoColumns) _tile_loadd(7, right + x * kTileBytes, 64);
  // The loaded part first, then the others from the last one down.
  constexpr int kFirst = kLoaded >= 0 && kLoaded <= kLast ? kLoaded : kLast;
  multiply_part<P, kTwoRows, kTwoColumns, x, kFirst, kLoaded>(weights);
  constexpr int kSecond = kFirst == kLast ? kLast - 1 : kLast,
                kThird = kSecond - 1 == kFirst ? kSecond - 2 : kSecond - 1;
  constexpr bool kHasSecond = kLast >= 1, kHasThird = kLast >= 2;
  if constexpr (kHasSecond) multiply_part<P, kTwoRows, kTwoColumns, x, kSecond, kFirst>(weights);
  if constexpr (kHasThird) multiply_part<P, kTwoRows, kTwoColumns, x, kThird, kSecond>(weights);
  constexpr int kNow = kHasThird ? kThird : kHasSecond ? kSecond : kFirst;
  if constexpr (x > 0) multiply_parts<P, kTwoRows, kTwoColumns, x - 1, kNow>(weights, left, right);
}

// `steps` steps of k for up to two by two tiles of sums [2][2][16 features][16 tokens], from zero on if `first`.
// weights [steps][part][2][1 KB], left and right: the activations of two tiles of tokens, [steps][part][1 KB].
template <typename P, bool kTwoRows, bool kTwoColumns>
static void multiply_block(const std::byte* weights, const std::byte* left, const std::byte* right, std::int64_t steps,
                           float* sums, bool first) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (kTwoColumns) _tile_loadd(1, sums + 256, 64);
    if constexpr (kTwoRows) _tile_loadd(2, sums + 512, 64);
    if constexpr (kTwoRows && kTwoColumns) _tile_loadd(3, sums + 768, 64);
  }
  constexpr int kFrom = P::kInput - 1 < P::kLevel ? P::kInput - 1 : P::kLevel;
  for (std::int64_t s = 0; s < steps; ++s) {
    multiply_parts<P, kTwoRows, kTwoColumns, kFrom, -1>(weights, left, right);
    weights += 2 * P::kWeight * kTileBytes;
    left += P::kInput * kTileBytes, right += P::kInput * kTileBytes;
  }
  _tile_stored(0, sums, 64);
  if constexpr (kTwoColumns) _tile_stored(1, sums + 256, 64);
  if constexpr (kTwoRows) _tile_stored(2, sums + 512, 64);
  if constexpr (kTwoRows && kTwoColumns) _tile_stored(3, sums + 768, 64);
}
