// A linear layer by tiles: the types of its operands, and the precision asked for.
#pragma once

#include "outputs-inl.h"

template <typename X>
struct TokensOf final : Source<X> {
  const X* x;
  std::int64_t n, k, stride;
  TokensOf(const Linear& a) : x(static_cast<const X*>(a.x)), n(a.n), k(a.k), stride(a.x_stride) {}
  std::int64_t rows(std::int64_t token, std::int64_t col, std::int64_t, X*, const X* (&out)[16]) const override {
    for (std::int64_t i = 0; i < 16; ++i) out[i] = token + i < n ? x + (token + i) * stride + col : nullptr;
    return k - col;
  }
};

// Threads that pay: waking one costs about as much as 4 M multiply-adds of tiles, or reading 64 KB of weights.
static inline int tile_threads(int wish, std::int64_t n, const Weight& weight) {
  const int usable = usable_threads(wish);
  const std::int64_t paying = weight.rows * weight.padded * (n < 64 ? 64 : n) / (4 << 20) + 1;
  return paying < usable ? static_cast<int>(paying) : usable;
}

// A bias as float32: its own memory, or a copy.
class WideBias {
 public:
  WideBias(const void* bias, DType dtype, std::int64_t count) {
    if (bias == nullptr) return;
    if (dtype == DType::kFloat32) {
      data_ = static_cast<const float*>(bias);
      return;
    }
    float* wide = scratch(Scratch::kWideInput, count);
    widen(bias, dtype, count, wide);
    data_ = wide;
  }
  const float* data() const { return data_; }

 private:
  const float* data_ = nullptr;
};

// Calls use.template operator()<Parts, kApart, W, X>() for the types of weight and input and the precision:
// kHighest keeps all products above float32's own error, kHigh those above 2^-16, kMedium the first.
template <typename Use>
static bool by_types(DType weight, DType input, Precision precision, const Use& use) {
  if (input == DType::kInt8) return use.template operator()<Parts<1, 1, 0, true>, false, std::int8_t, std::int8_t>();
  const auto wide = [&]<int kWeight, bool kApart, typename W>() {
    switch (precision) {
      case Precision::kHighest: return use.template operator()<Parts<kWeight, 3, 2>, kApart, W, float>();
      case Precision::kHigh:
        return use.template operator()<Parts<(kWeight < 2 ? kWeight : 2), 2, 1>, kApart, W, float>();
      default: return use.template operator()<Parts<1, 1, 0>, kApart, W, float>();
    }
  };
  switch (weight) {
    case DType::kBFloat16:
      if (input == weight) return use.template operator()<Parts<1, 1, 0>, false, BFloat16, BFloat16>();
      return wide.template operator()<1, false, BFloat16>();
    case DType::kFloat16:
      if (input == weight) return use.template operator()<Parts<2, 2, 1>, true, Float16, Float16>();
      return wide.template operator()<2, true, Float16>();
    case DType::kInt8:
      if (input == DType::kBFloat16) return use.template operator()<Parts<1, 1, 0>, false, std::int8_t, BFloat16>();
      if (input == DType::kFloat16) return use.template operator()<Parts<1, 2, 1>, false, std::int8_t, Float16>();
      return wide.template operator()<1, false, std::int8_t>();
    default: return wide.template operator()<3, true, float>();
  }
}

// Calls use(sink) with where outputs of `dtype` go, made by make.template operator()<Y>().
template <typename Make, typename Use>
static bool by_output(DType dtype, const Make& make, const Use& use) {
  switch (dtype) {
    case DType::kFloat16: return use(make.template operator()<Float16>());
    case DType::kBFloat16: return use(make.template operator()<BFloat16>());
    default: return use(make.template operator()<float>());
  }
}

static bool linear_tiles(const Linear& a, const Tuning& tuning) {
  if (a.n == 0 || a.m == 0) return true;
  const bool int8 = a.x_scale != nullptr;
  const WideBias bias(a.bias, a.dtype, a.m);
  const Finish finish{a.weight.scale, a.x_scale, bias.data(), a.activation, int8};
  const int threads = tile_threads(a.threads, a.n, a.weight);
  const auto make = [&]<typename Y>() {
    return TokenRows<Y>(finish, static_cast<Y*>(a.y), a.m, a.n, a.m, tuning.stream_bytes);
  };
  return by_output(a.dtype, make, [&](const Sink& sink) {
    return by_types(a.weight.dtype, int8 ? DType::kInt8 : a.dtype, a.precision,
                    [&]<typename P, bool kApart, typename W, typename X>() {
                      return run_tiles<P, kApart>(rows_of<W>(a.weight), a.m, a.weight.padded, a.n, TokensOf<X>(a), sink,
                                                  threads, tuning.packed_bytes);
                    });
  });
}
