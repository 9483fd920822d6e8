// Convolution with pixels in lanes: implicit im2col into the tiles of many_tokens-inl.h.
//
// Tokens are the flattened output pixels (image, oy, ox); k = (tap, channel), the channels of a tap
// padded to a multiple of four. A tile is filled tap by tap: from channels_last by rows of channels,
// as in a linear layer; from contiguous inputs by runs of pixels of one channel.
#pragma once

#include "linear-inl.h"
#include "many_tokens-inl.h"

// Output pixels of one tile: where each one's window starts in the input. y and x may lie in the padding.
struct Pixels {
  std::int64_t image[kMaxVectors * kLanes];
  std::int32_t y[kMaxVectors * kLanes], x[kMaxVectors * kLanes];

  bool inside(std::int64_t lane, std::int64_t dy, std::int64_t dx, const Conv2d& a) const {
    return static_cast<std::uint64_t>(y[lane] + dy) < static_cast<std::uint64_t>(a.height) &&
           static_cast<std::uint64_t>(x[lane] + dx) < static_cast<std::uint64_t>(a.width);
  }
};

struct ConvShape {
  const Conv2d& a;
  const float *x, *bias;
  float* y;
  std::int64_t out_h, out_w, pixels, channels, padded_channels, k, rows;
  explicit ConvShape(const Conv2d& args)
      : a(args),
        x(static_cast<const float*>(args.x)),
        bias(static_cast<const float*>(args.bias)),
        y(static_cast<float*>(args.y)),
        out_h((args.height + 2 * args.pad_h - args.dilation_h * (args.kernel_h - 1) - 1) / args.stride_h + 1),
        out_w((args.width + 2 * args.pad_w - args.dilation_w * (args.kernel_w - 1) - 1) / args.stride_w + 1),
        pixels(args.batch * out_h * out_w),
        channels(args.in_channels / args.groups),
        padded_channels(round_up(channels, 4)),
        k(args.kernel_h * args.kernel_w * padded_channels),
        rows(args.out_channels / args.groups) {}
};

static void locate_pixels(const ConvShape& s, std::int64_t first, std::int64_t tokens, std::int64_t lanes,
                          Pixels& pixels) {
  std::int64_t image = first / (s.out_h * s.out_w);
  std::int64_t oy = first / s.out_w % s.out_h, ox = first % s.out_w;
  for (std::int64_t i = 0; i < lanes; ++i) {
    pixels.image[i] = image;
    pixels.y[i] = static_cast<std::int32_t>(oy * s.a.stride_h - s.a.pad_h);
    pixels.x[i] = static_cast<std::int32_t>(ox * s.a.stride_w - s.a.pad_w);
    if (i + 1 >= tokens) continue;  // lanes beyond the last token repeat it
    if (++ox == s.out_w) {
      ox = 0;
      if (++oy == s.out_h) oy = 0, ++image;
    }
  }
}

// Sources of one tap in a channels_last input: a row of channels per pixel, zeros in the padding.
struct ChannelRows {
  const float* rows[kMaxVectors * kLanes];

  void aim(const ConvShape& s, const Pixels& pixels, std::int64_t lanes, std::int64_t tap, std::int64_t group,
           const float* zeros) {
    const std::int64_t dy = tap / s.a.kernel_w * s.a.dilation_h, dx = tap % s.a.kernel_w * s.a.dilation_w;
    for (std::int64_t i = 0; i < lanes; ++i) {
      const std::int64_t y = pixels.y[i] + dy, x = pixels.x[i] + dx;
      const float* row = s.x + ((pixels.image[i] * s.a.height + y) * s.a.width + x) * s.a.in_channels;
      rows[i] = pixels.inside(i, dy, dx, s.a) ? row + group * s.channels : zeros;
    }
  }

  void pack(const ConvShape& s, std::int64_t vectors, std::int64_t channel, std::int64_t count, float* tile) const {
    pack_rows(rows, vectors, channel, s.channels, count, tile);
  }
};

// Sources of one tap in a contiguous input: for each vector of pixels up to two runs of one image
// row each, a load under a mask apiece; otherwise lane by lane.
struct PixelRuns {
  static constexpr std::int32_t kOutside = -1;
  enum class Kind { kZero, kWhole, kOneRun, kTwoRuns, kLanewise };
  struct Run {
    const float* from;
    alignas(64) std::int32_t lanes[kLanes];  // -1: take this lane
  };
  struct Vector {
    Kind kind;
    Run run[2];
    const float* base;
    alignas(64) std::int32_t offsets[kLanes];
  };
  Vector vectors_[kMaxVectors];

  void aim(const ConvShape& s, const Pixels& pixels, std::int64_t lanes, std::int64_t tap, std::int64_t group,
           const float*) {
    const std::int64_t dy = tap / s.a.kernel_w * s.a.dilation_h, dx = tap % s.a.kernel_w * s.a.dilation_w;
    const std::int64_t plane = s.a.height * s.a.width;
    for (std::int64_t begin = 0; begin < lanes; begin += kLanes) {
      Vector& v = vectors_[begin / kLanes];
      v.base = s.x + (pixels.image[begin] * s.a.in_channels + group * s.channels) * plane;
      const std::int64_t last = begin + kLanes - 1;
      const bool one_row = pixels.x[last] - pixels.x[begin] == kLanes - 1 && pixels.y[last] == pixels.y[begin] &&
                           pixels.image[last] == pixels.image[begin] && s.a.stride_w == 1;
      if (one_row && pixels.inside(begin, dy, dx, s.a) && pixels.inside(last, dy, dx, s.a)) {
        v.kind = Kind::kWhole;
        v.run[0].from = v.base + (pixels.y[begin] + dy) * s.a.width + pixels.x[begin] + dx;
        continue;
      }
      for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        const std::int64_t y = pixels.y[begin + lane] + dy, x = pixels.x[begin + lane] + dx;
        const std::int64_t image = pixels.image[begin + lane] - pixels.image[begin];
        const std::int64_t offset = image * s.a.in_channels * plane + y * s.a.width + x;
        v.offsets[lane] = pixels.inside(begin + lane, dy, dx, s.a) ? static_cast<std::int32_t>(offset) : kOutside;
      }
      find_runs(v);
    }
  }

  // Runs are lanes whose offsets rise by one; a run's pointer is that of its lane 0, taken or not.
  static void find_runs(Vector& v) {
    int runs = 0;
    std::int32_t delta = 0;
    bool all = true;
    for (std::int64_t i = 0; i < kLanes; ++i) v.run[0].lanes[i] = v.run[1].lanes[i] = 0;
    v.kind = Kind::kLanewise;
    for (std::int32_t i = 0; i < kLanes; ++i) {
      if (v.offsets[i] == kOutside) {
        all = false;
        continue;
      }
      if (runs == 0 || v.offsets[i] - i != delta) {
        if (++runs > 2) return;
        delta = v.offsets[i] - i;
        v.run[runs - 1].from = v.base + delta;
      }
      v.run[runs - 1].lanes[i] = -1;
    }
    v.kind = runs == 0 ? Kind::kZero : runs == 2 ? Kind::kTwoRuns : all ? Kind::kWhole : Kind::kOneRun;
  }

  // A few channels at a time, so that their pages and lines stay at hand from vector to vector.
  void pack(const ConvShape& s, std::int64_t vectors, std::int64_t channel, std::int64_t count, float* tile) const {
    constexpr std::int64_t kChannels = 16;
    const std::int64_t plane = s.a.height * s.a.width, stride = vectors * kLanes;
    const std::int64_t present = s.channels - channel < count ? s.channels - channel : count;
    for (std::int64_t c = 0; c < present; c += kChannels) {
      const std::int64_t channels = present - c < kChannels ? present - c : kChannels;
      for (std::int64_t i = 0; i < vectors; ++i) {
        pack_vector(vectors_[i], (channel + c) * plane, plane, channels, stride, tile + c * stride + i * kLanes);
      }
    }
    for (std::int64_t c = present; c < count; ++c)
      std::memset(tile + c * stride, 0, static_cast<std::size_t>(stride) * 4);
  }

  static void pack_vector(const Vector& v, std::int64_t from, std::int64_t plane, std::int64_t channels,
                          std::int64_t stride, float* out) {
    const auto each_channel = [&](auto load_channel) {
      for (std::int64_t c = 0; c < channels; ++c, from += plane, out += stride) store(out, load_channel(from));
    };
    switch (v.kind) {
      case Kind::kZero: return each_channel([](std::int64_t) { return zero(); });
      case Kind::kWhole: return each_channel([&](std::int64_t at) { return load(v.run[0].from + at); });
      case Kind::kOneRun:
        return each_channel([&](std::int64_t at) { return load_masked(v.run[0].from + at, v.run[0].lanes); });
      case Kind::kTwoRuns:
        return each_channel([&](std::int64_t at) {
          return add(load_masked(v.run[0].from + at, v.run[0].lanes), load_masked(v.run[1].from + at, v.run[1].lanes));
        });
      case Kind::kLanewise: return each_channel([&](std::int64_t at) { return load_lanes(v.base + at, v.offsets); });
    }
  }
};

// y[image][row][pixel] for a contiguous output: sums already lie pixel by pixel.
static void write_planes(const ConvShape& s, const float* sums, std::int64_t stride, std::int64_t first,
                         std::int64_t tokens, std::int64_t top, std::int64_t rows) {
  const std::int64_t plane = s.out_h * s.out_w;
  for (std::int64_t t = 0; t < tokens;) {
    const std::int64_t image = (first + t) / plane, pixel = (first + t) % plane;
    const std::int64_t run = plane - pixel < tokens - t ? plane - pixel : tokens - t;
    for (std::int64_t row = 0; row < rows; ++row) {
      const Vec bias = s.bias == nullptr ? zero() : broadcast(s.bias[top + row]);
      finish_row(sums + row * stride + t, bias, s.a.activation, run,
                 s.y + (image * s.a.out_channels + top + row) * plane + pixel);
    }
    t += run;
  }
}

// Output rows times tiles of pixels, of one group. The first tile's task looks at the indices.
template <typename W, typename Source>
static std::uint64_t conv_part(const ConvShape& s, const TilePlan& plan, std::int64_t ahead, std::int64_t group,
                               Range row_range, Range tile_range) {
  const Rows<W> weight = rows_of<W>(s.a.weight).from_row(group * s.rows);
  float *tile = plan.tile(), *sums = plan.sums();
  float* zeros = scratch(Scratch::kInput, s.padded_channels);
  std::memset(zeros, 0, static_cast<std::size_t>(s.padded_channels) * sizeof(float));
  Pixels pixels;
  Source source;
  std::uint64_t wrong = 0;
  if (tile_range.begin == 0) {
    wrong = disorder(weight.from_row(row_range.begin).indices, (row_range.end - row_range.begin) * weight.index_stride);
  }
  for (std::int64_t t = tile_range.begin; t < tile_range.end; ++t) {
    const std::int64_t vectors = plan.first(t + 1) - plan.first(t), lanes = vectors * kLanes;
    const std::int64_t first = plan.first(t) * kLanes;
    const std::int64_t tokens = s.pixels - first < lanes ? s.pixels - first : lanes;
    locate_pixels(s, first, tokens, lanes, pixels);
    const RowsRun run = pick_rows_run(vectors);
    for (std::int64_t top = row_range.begin; top < row_range.end; top += plan.rows) {
      const std::int64_t rows = row_range.end - top < plan.rows ? row_range.end - top : plan.rows;
      std::int64_t aimed = -1;
      for (std::int64_t k = 0; k < s.k; k += plan.cols) {
        for (std::int64_t at = 0; at < plan.cols;) {
          const std::int64_t tap = (k + at) / s.padded_channels, channel = (k + at) % s.padded_channels;
          if (k + at >= s.k) {
            std::memset(tile + at * lanes, 0, static_cast<std::size_t>((plan.cols - at) * lanes) * sizeof(float));
            break;
          }
          if (tap != aimed) source.aim(s, pixels, lanes, tap, group, zeros);
          aimed = tap;
          const std::int64_t left = s.padded_channels - channel;
          const std::int64_t count = left < plan.cols - at ? left : plan.cols - at;
          source.pack(s, vectors, channel, count, tile + at * lanes);
          at += count;
        }
        const std::int64_t quads = (s.a.weight.padded - k < plan.cols ? s.a.weight.padded - k : plan.cols) / 8;
        weight_times_tile(run, weight.from_row(top).from_col(k), rows, quads, tile, lanes, sums, k == 0, ahead);
      }
      const std::int64_t row = group * s.rows + top;
      scale_sums(sums, lanes, rows, tokens, s.a.weight.scale, row, s.a.x_scale, first);
      if (s.a.format == MemoryFormat::kContiguous) {
        write_planes(s, sums, lanes, first, tokens, row, rows);
      } else {
        float* y[kMaxVectors * kLanes];
        for (std::int64_t i = 0; i < tokens; ++i) y[i] = s.y + (first + i) * s.a.out_channels + row;
        write_transposed(sums, lanes, rows, tokens, s.bias == nullptr ? nullptr : s.bias + row, s.a.activation, y);
      }
    }
  }
  return wrong;
}

template <typename W, typename Source>
static bool conv_groups(const ConvShape& s, const Tuning& tuning) {
  const int threads = paying_threads(s.a.threads, s.pixels * s.a.out_channels * (s.k / 2));
  const TilePlan plan(tuning, s.pixels, threads);
  const Split split(s.rows, plan.tiles * s.a.groups, threads);
  std::uint64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1) reduction(| : wrong)
  for (std::int64_t task = 0; task < split.tasks(); ++task) {
    const Range tiles = split.tiles(task);
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      const std::int64_t group = tile / plan.tiles, first = tile % plan.tiles;
      wrong |= conv_part<W, Source>(s, plan, tuning.tile_prefetch, group, split.rows(task), {first, first + 1});
    }
  }
  return wrong == 0;
}

template <typename W>
static bool conv2d_as(const Conv2d& a, const Tuning& tuning) {
  const ConvShape s(a);
  const bool pointwise = a.kernel_h == 1 && a.kernel_w == 1 && a.stride_h == 1 && a.stride_w == 1 && a.pad_h == 0 &&
                         a.pad_w == 0 && a.groups == 1;
  if (a.format == MemoryFormat::kContiguous) return conv_groups<W, PixelRuns>(s, tuning);
  if (!pointwise) return conv_groups<W, ChannelRows>(s, tuning);
  Linear linear{a.weight, DType::kFloat32, a.x,        a.bias,       a.y,      s.pixels,
                s.rows,   s.channels,      s.channels, a.activation, a.threads};
  linear.x_scale = a.x_scale;
  return linear_as<W>(linear, tuning);
}

static bool conv2d(const Conv2d& a, const Tuning& tuning) {
  const ConvShape s(a);
  if (s.pixels == 0 || s.rows == 0) return true;
  switch (a.weight.dtype) {
    case DType::kFloat16: return conv2d_as<Float16>(a, tuning);
    case DType::kBFloat16: return conv2d_as<BFloat16>(a, tuning);
    case DType::kInt8: return conv2d_as<std::int8_t>(a, tuning);
    default: return conv2d_as<float>(a, tuning);
  }
}
