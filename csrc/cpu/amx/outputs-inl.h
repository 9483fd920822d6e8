// Sums to outputs: scaled, with bias and activation, in the dtype asked for.
#pragma once

#include "products-inl.h"

// What becomes of a sum: (sum * row's scale * token's scale) + bias, activated. Null: none.
struct Finish {
  const float *scale, *x_scale, *bias;
  Activation activation;
  bool int8;  // sums are int32
};

// The `count` numbers from `from` on, others than those `fill`.
static inline Vec load_some(const float* from, std::int64_t count, float fill) {
  if (from == nullptr) return broadcast(fill);
  if (count >= 16) return load(from);
  float some[16];
  for (std::int64_t i = 0; i < 16; ++i) some[i] = i < count ? from[i] : fill;
  return load(some);
}

static inline Floats to_floats(Words sums, bool int8) {
  using Ints = std::int32_t __attribute__((vector_size(64)));
  return int8 ? __builtin_convertvector(as_bits<Ints>(sums), Floats) : as_bits<Floats>(sums);
}

// Whole 64-byte lines, past the caches: for outputs that nobody will find there anyway.
static inline void stream_line(const void* from, void* to) {
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
}

// y[token][row]: a linear layer, or channels_last.
template <typename Y>
struct TokenRows final : Sink {
  Finish finish;
  Y* y;
  std::int64_t stride;
  bool stream;  // y is large, and its lines are whole

  TokenRows(const Finish& f, Y* to, std::int64_t between, std::int64_t n, std::int64_t m, std::int64_t stream_bytes)
      : finish(f), y(to), stride(between) {
    constexpr std::int64_t kSize = sizeof(Y);
    stream = n * m * kSize > stream_bytes && m % kStrip == 0 && between * kSize % 64 == 0 &&
             reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
  }

  void write(std::int64_t row, std::int64_t rows, std::int64_t token, std::int64_t tokens,
             const float* sums) const override {
    Vec scale[2], bias[2];
    for (int half = 0; half < 2; ++half) {
      const std::int64_t at = row + 16 * half, count = rows - 16 * half;
      scale[half] = load_some(finish.scale == nullptr ? nullptr : finish.scale + at, count, 1);
      bias[half] = load_some(finish.bias == nullptr ? nullptr : finish.bias + at, count, 0);
    }
    for (std::int64_t t = 0; t < tokens; t += 16) {
      alignas(64) float lanes[16][kStrip];
      for (int half = 0; 16 * half < rows; ++half) {
        Words columns[16];
        const float* tile = sums + half * 512 + t / 16 * 256;
        for (int i = 0; i < 16; ++i) columns[i] = load_words(tile + 16 * i);
        transpose16(columns);
        for (int i = 0; i < 16; ++i)
          store_words(lanes[i] + 16 * half, as_bits<Words>(to_floats(columns[i], finish.int8)));
      }
      for (std::int64_t i = 0; i < least(tokens - t, 16); ++i) {
        alignas(64) Y line[kStrip];
        for (int half = 0; 16 * half < rows; ++half) {
          Vec v = load(lanes[i] + 16 * half);
          if (finish.scale != nullptr) v = mul(v, scale[half]);
          if (finish.x_scale != nullptr) v = mul(v, broadcast(finish.x_scale[token + t + i]));
          store(line + 16 * half, activate(add(v, bias[half]), finish.activation));
        }
        Y* to = y + (token + t + i) * stride + row;
        if (!stream) {
          std::memcpy(to, line, static_cast<std::size_t>(rows) * sizeof(Y));
        } else {
          for (std::size_t at = 0; at < kStrip; at += 64 / sizeof(Y)) stream_line(line + at, to + at);
        }
      }
    }
  }
};

// y[image][row][pixel]: a contiguous convolution. Tokens are pixels of all images.
template <typename Y>
struct Planes final : Sink {
  Finish finish;
  Y* y;
  std::int64_t channels, plane;

  Planes(const Finish& f, Y* to, std::int64_t out_channels, std::int64_t pixels)
      : finish(f), y(to), channels(out_channels), plane(pixels) {}

  void write(std::int64_t row, std::int64_t rows, std::int64_t token, std::int64_t tokens,
             const float* sums) const override {
    for (std::int64_t r = 0; r < rows; ++r) {
      const Vec bias = broadcast(finish.bias == nullptr ? 0 : finish.bias[row + r]);
      const Vec scale = broadcast(finish.scale == nullptr ? 1 : finish.scale[row + r]);
      for (std::int64_t t = 0; t < tokens; t += 16) {
        const std::int64_t count = least(tokens - t, 16);
        float sum[16];
        const float* tile = sums + r / 16 * 512 + t / 16 * 256 + r % 16 * 16;
        store_words(sum, as_bits<Words>(to_floats(load_words(tile), finish.int8)));
        Vec v = load(sum);
        if (finish.scale != nullptr) v = mul(v, scale);
        if (finish.x_scale != nullptr) v = mul(v, load_some(finish.x_scale + token + t, count, 1));
        Y line[16];
        store(line, activate(add(v, bias), finish.activation));
        for (std::int64_t i = 0; i < count;) {
          const std::int64_t image = (token + t + i) / plane, pixel = (token + t + i) % plane;
          const std::int64_t run = least(count - i, plane - pixel);
          std::memcpy(y + (image * channels + row + r) * plane + pixel, line + i,
                      static_cast<std::size_t>(run) * sizeof(Y));
          i += run;
        }
      }
    }
  }
};
