// Eight tiles a thread, and what the tile instructions do to them.

#include "amx_emulated.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace emulated {
namespace {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Config {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct Tiles {
  bool configured = false;
  Config config{};
  std::uint8_t data[kTiles][kMostRows][kMostBytes] = {};
};
thread_local Tiles tiles;
std::atomic<int> in_use{0};

[[noreturn]] void fault(const char* what) {
  std::printf("FAILED amx: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

void check(int tile) {
  if (!tiles.configured) fault("a tile is used before its configuration is loaded");
  if (tile < 0 || tile >= kTiles) fault("no such tile");
  if (tiles.config.rows[tile] == 0 || tiles.config.row_bytes[tile] == 0) fault("a tile of no rows or columns");
}

// A product of C [rows, columns] with A [rows, depth] and B [depth, columns], in lanes of 32 bits.
void check_shapes(int c, int a, int b) {
  check(c), check(a), check(b);
  const Config& k = tiles.config;
  if (c == a || c == b || a == b) fault("a product needs three different tiles");
  if (k.rows[c] != k.rows[a] || k.row_bytes[c] != k.row_bytes[b] || k.row_bytes[a] != 4 * k.rows[b])
    fault("the shapes of a product do not fit");
}

template <typename T>
T lane(int tile, int row, int column) {
  T value;
  std::memcpy(&value, tiles.data[tile][row] + 4 * column, sizeof value);
  return value;
}

}  // namespace

void tile_loadconfig(const void* from) {
  Config config;
  std::memcpy(&config, from, sizeof config);
  if (config.palette != 1) fault("the palette must be 1");
  if (config.start_row != 0) fault("start_row must be 0");
  for (const std::uint8_t byte : config.reserved) {
    if (byte != 0) fault("reserved bytes must be 0");
  }
  for (int i = 0; i < 16; ++i) {
    if (i >= kTiles && (config.rows[i] != 0 || config.row_bytes[i] != 0)) fault("there are eight tiles");
    if (config.rows[i] > kMostRows || config.row_bytes[i] > kMostBytes || config.row_bytes[i] % 4 != 0)
      fault("a tile has at most 16 rows of 64 bytes");
  }
  if (!tiles.configured) ++in_use;
  tiles = Tiles{true, config, {}};
}

void tile_release() {
  if (tiles.configured) --in_use;
  tiles.configured = false;
}

int tiles_in_use() { return in_use; }

void tile_zero(int tile) {
  check(tile);
  std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

void tile_loadd(int tile, const void* base, std::ptrdiff_t stride) {
  tile_zero(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row) {
    std::memcpy(tiles.data[tile][row], static_cast<const char*>(base) + row * stride, tiles.config.row_bytes[tile]);
  }
}

void tile_stored(int tile, void* base, std::ptrdiff_t stride) {
  check(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, tiles.data[tile][row], tiles.config.row_bytes[tile]);
  }
}

// Even and odd columns are summed up apart, from zero, then together, then onto the tile; subnormals are zeros.
void tile_dpbf16ps(int c, int a, int b) {
  check_shapes(c, a, b);
  for (int m = 0; m < tiles.config.rows[c]; ++m) {
    for (int n = 0; n < tiles.config.row_bytes[c] / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < tiles.config.rows[b]; ++k) {
        const auto left = lane<std::int32_t>(a, m, k), right = lane<std::int32_t>(b, k, n);
        even = flushed(std::fma(bf16_of(left, 0), bf16_of(right, 0), even));
        odd = flushed(std::fma(bf16_of(left, 1), bf16_of(right, 1), odd));
      }
      const float sum = flushed(flushed(lane<float>(c, m, n)) + flushed(even + odd));
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

void tile_dpbssd(int c, int a, int b) {
  check_shapes(c, a, b);
  for (int m = 0; m < tiles.config.rows[c]; ++m) {
    for (int n = 0; n < tiles.config.row_bytes[c] / 4; ++n) {
      auto sum = lane<std::uint32_t>(c, m, n);
      for (int k = 0; k < tiles.config.rows[b]; ++k) {
        for (int i = 0; i < 4; ++i) {
          const auto left = static_cast<std::int8_t>(tiles.data[a][m][4 * k + i]);
          const auto right = static_cast<std::int8_t>(tiles.data[b][k][4 * n + i]);
          sum += static_cast<std::uint32_t>(left * right);
        }
      }
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace emulated
