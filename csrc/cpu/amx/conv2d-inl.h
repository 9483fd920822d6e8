// Convolution by tiles: the products of a linear layer, whose tokens are output pixels and whose columns are
// (tap, channel); only where activations come from differs.
#pragma once

#include "linear-inl.h"

struct Window {
  const Conv2d& a;
  std::int64_t out_h, out_w, pixels, channels, padded_channels, k, rows;
  explicit Window(const Conv2d& args)
      : a(args),
        out_h((args.height + 2 * args.pad_h - args.dilation_h * (args.kernel_h - 1) - 1) / args.stride_h + 1),
        out_w((args.width + 2 * args.pad_w - args.dilation_w * (args.kernel_w - 1) - 1) / args.stride_w + 1),
        pixels(args.batch * out_h * out_w),
        channels(args.in_channels / args.groups),
        padded_channels(round_up(channels, 4)),
        k(args.kernel_h * args.kernel_w * padded_channels),
        rows(args.out_channels / args.groups) {}
};

// Implicit im2col of a channels_last input: rows of channels, tap by tap, copied together.
template <typename X>
struct PixelsOf final : Source<X> {
  const Window& w;
  const X* x;
  std::int64_t group;
  PixelsOf(const Window& window, const X* from, std::int64_t g) : w(window), x(from), group(g) {}

  std::int64_t rows(std::int64_t token, std::int64_t k, std::int64_t count, X* space,
                    const X* (&out)[16]) const override {
    std::int64_t image = token / (w.out_h * w.out_w), oy = token / w.out_w % w.out_h, ox = token % w.out_w;
    for (std::int64_t i = 0; i < 16; ++i) {
      X* row = space + i * count;
      out[i] = token + i < w.pixels ? row : nullptr;
      if (out[i] == nullptr) continue;
      const std::int64_t y = oy * w.a.stride_h - w.a.pad_h, x_at = ox * w.a.stride_w - w.a.pad_w;
      for (std::int64_t at = 0; at < count;) {
        const std::int64_t tap = (k + at) / w.padded_channels, channel = (k + at) % w.padded_channels;
        const std::int64_t run = least(w.padded_channels - channel, count - at);
        const std::int64_t live =
            tap < w.a.kernel_h * w.a.kernel_w ? copy(image, y, x_at, tap, channel, run, row + at) : 0;
        std::memset(row + at + live, 0, static_cast<std::size_t>(run - live) * sizeof(X));
        at += run;
      }
      if (++ox == w.out_w) {
        ox = 0;
        if (++oy == w.out_h) oy = 0, ++image;
      }
    }
    return count;
  }

 private:
  // Up to `run` channels of one tap's pixel; none in the padding.
  std::int64_t copy(std::int64_t image, std::int64_t y, std::int64_t x_at, std::int64_t tap, std::int64_t channel,
                    std::int64_t run, X* to) const {
    y += tap / w.a.kernel_w * w.a.dilation_h, x_at += tap % w.a.kernel_w * w.a.dilation_w;
    if (y < 0 || y >= w.a.height || x_at < 0 || x_at >= w.a.width || channel >= w.channels) return 0;
    const std::int64_t live = least(w.channels - channel, run);
    std::memcpy(to, x + ((image * w.a.height + y) * w.a.width + x_at) * w.a.in_channels + group * w.channels + channel,
                static_cast<std::size_t>(live) * sizeof(X));
    return live;
  }
};

// A contiguous input as channels_last: [batch, C, H W] to [batch, H W, C], in squares that stay in L1.
template <typename X>
static void to_channels_last(const Conv2d& a, int threads, const X* from, X* to) {
  constexpr std::int64_t kSquare = 32;
  const std::int64_t plane = a.height * a.width, channels = a.in_channels;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t image = 0; image < a.batch; ++image) {
    for (std::int64_t pixel = 0; pixel < plane; pixel += kSquare) {
      const std::int64_t pixels = least(plane - pixel, kSquare);
      const X* in = from + image * channels * plane + pixel;
      X* out = to + (image * plane + pixel) * channels;
      for (std::int64_t c = 0; c < channels; c += kSquare) {
        const std::int64_t some = least(channels - c, kSquare);
        for (std::int64_t p = 0; p < pixels; ++p) {
          for (std::int64_t i = 0; i < some; ++i) out[p * channels + c + i] = in[(c + i) * plane + p];
        }
      }
    }
  }
}

// Memory of one call: 64-byte aligned.
template <typename X>
class Own {
 public:
  explicit Own(std::int64_t count)
      : data_(count == 0 ? nullptr
                         : static_cast<X*>(
                               ::operator new(static_cast<std::size_t>(count) * sizeof(X), std::align_val_t{64}))) {}
  ~Own() { ::operator delete(data_, std::align_val_t{64}); }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;
  X* data() const { return data_; }

 private:
  X* data_;
};

static bool conv2d_tiles(const Conv2d& a, const Tuning& tuning) {
  const Window w(a);
  if (w.pixels == 0 || w.rows == 0) return true;
  const bool int8 = a.x_scale != nullptr, planes = a.format == MemoryFormat::kContiguous;
  const WideBias bias(a.bias, a.dtype, a.out_channels);
  const int threads = tile_threads(a.threads, w.pixels, a.weight);
  return by_types(a.weight.dtype, int8 ? DType::kInt8 : a.dtype, a.precision,
                  [&]<typename P, bool kApart, typename W, typename X>() {
                    const auto* x = static_cast<const X*>(a.x);
                    const Own<X> turned(planes ? a.batch * a.in_channels * a.height * a.width : 0);
                    if (planes) to_channels_last(a, threads, x, turned.data());
                    bool in_order = true;
                    for (std::int64_t g = 0; g < a.groups; ++g) {
                      const std::int64_t first = g * w.rows;
                      const Finish finish{a.weight.scale == nullptr ? nullptr : a.weight.scale + first, a.x_scale,
                                          bias.data() == nullptr ? nullptr : bias.data() + first, a.activation, int8};
                      const PixelsOf<X> source(w, planes ? turned.data() : x, g);
                      const auto product = [&](const Sink& sink) {
                        return run_tiles<P, kApart>(rows_of<W>(a.weight).from_row(first), w.rows, a.weight.padded,
                                                    w.pixels, source, sink, threads, tuning.packed_bytes);
                      };
                      const auto to_planes = [&]<typename Y>() {
                        return Planes<Y>(finish, static_cast<Y*>(a.y) + first * w.out_h * w.out_w, a.out_channels,
                                         w.out_h * w.out_w);
                      };
                      const auto to_rows = [&]<typename Y>() {
                        return TokenRows<Y>(finish, static_cast<Y*>(a.y) + first, a.out_channels, w.pixels, w.rows,
                                            tuning.stream_bytes);
                      };
                      in_order &=
                          planes ? by_output(a.dtype, to_planes, product) : by_output(a.dtype, to_rows, product);
                    }
                    return in_order;
                  });
}
