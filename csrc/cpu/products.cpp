// linear and conv2d: checks of int8, then the kernel that fits; 16 bits are widened to 32 and narrowed around it, and
// what is to be multiplied as int8 is rounded before it. A little over 300 lines: all that is between a call and a
// kernel.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../error.h"
#include "kernels.h"
#include "patches.h"

namespace sparse24 {
namespace {

// float32 in place of x, bias or y of 16 bits. Small ones use memory that the thread keeps, others their own.
class Wide {
 public:
  Wide(cpu::Scratch which, std::int64_t floats) {
    constexpr std::int64_t kKept = 1 << 18;  // 1 MB
    if (floats > kKept) own_.reset(new float[static_cast<std::size_t>(floats)]);
    data_ = own_ ? own_.get() : cpu::scratch(which, floats);
  }
  float* data() const { return data_; }

 private:
  std::unique_ptr<float[]> own_;
  float* data_;
};

// `count` numbers converted by as many threads as pay: 32 K numbers each.
template <typename Convert>
void in_parts(std::int64_t count, int wish, Convert convert) {
  constexpr std::int64_t kPart = 1 << 15;
  const std::int64_t parts = (count + kPart - 1) / kPart;
  const int threads = static_cast<int>(std::min<std::int64_t>(cpu::usable_threads(wish), parts));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    convert(part * kPart, std::min(count - part * kPart, kPart));
  }
}

std::size_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

const void* at(const void* numbers, DType dtype, std::int64_t i) {
  return static_cast<const std::byte*>(numbers) + static_cast<std::size_t>(i) * bytes_of(dtype);
}

void widen(const void* from, DType dtype, std::int64_t count, int threads, float* to) {
  in_parts(count, threads, [&](std::int64_t first, std::int64_t part) {
    cpu::kernels().widen(at(from, dtype, first), dtype, part, to + first);
  });
}

void narrow(const float* from, DType dtype, std::int64_t count, int threads, void* to) {
  in_parts(count, threads, [&](std::int64_t first, std::int64_t part) {
    cpu::kernels().narrow(from + first, dtype, part, const_cast<void*>(at(to, dtype, first)));
  });
}

std::unique_ptr<float[]> wide_bias(const void* bias, DType dtype, std::int64_t count) {
  if (bias == nullptr) return nullptr;
  std::unique_ptr<float[]> wide(new float[static_cast<std::size_t>(count)]);
  cpu::kernels().widen(bias, dtype, count, wide.get());
  return wide;
}

// Runs `product`, which says false where indices do not increase; then the place is looked for, and named.
template <typename Product>
void checked(const Weight& weight, Product product) {
  if (!product()) check_indices(weight.indices, weight.rows, weight.padded);
}

// Rows of `cols` numbers, x_stride apart, as int8 in `to`, with a scale each in `scales` (null: nowhere): `scale`, or
// where that is 0 their own. 16-bit rows are widened first, one at a time.
void quantize_rows(const void* x, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t x_stride, float scale,
                   int threads, std::int8_t* to, float* scales) {
  const int usable = static_cast<int>(std::min<std::int64_t>(cpu::usable_threads(threads), rows * cols / 32768 + 1));
#pragma omp parallel for schedule(static) num_threads(usable) if (usable > 1)
  for (std::int64_t row = 0; row < rows; ++row) {
    const void* from = at(x, dtype, row * x_stride);
    if (dtype != DType::kFloat32) {
      float* wide = cpu::scratch(cpu::Scratch::kRow, cols);
      cpu::kernels().widen(from, dtype, cols, wide);
      from = wide;
    }
    const float used = cpu::kernels().quantize(static_cast<const float*>(from), cols, scale, to + row * cols);
    if (scales != nullptr) scales[row] = used;
  }
}

// An input as int8.
class Quantized {
 public:
  Quantized(const void* x, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t x_stride, float input_scale,
            int threads)
      : rows_(new std::int8_t[static_cast<std::size_t>(rows * cols)]),
        scales_(new float[static_cast<std::size_t>(rows)]) {
    quantize_rows(x, dtype, rows, cols, x_stride, input_scale, threads, rows_.get(), scales_.get());
  }
  const std::int8_t* rows() const { return rows_.get(); }
  const float* scales() const { return scales_.get(); }

 private:
  std::unique_ptr<std::int8_t[]> rows_;
  std::unique_ptr<float[]> scales_;
};

// A product whose y, [rows][cols] of its dtype, becomes int8 by its output_scale.
template <typename Args>
void through_dtype(const Args& args, std::int64_t rows, std::int64_t cols, void (*product)(const Args&)) {
  const std::unique_ptr<std::byte[]> y(new std::byte[static_cast<std::size_t>(rows * cols) * bytes_of(args.dtype)]);
  Args inner = args;
  inner.y = y.get(), inner.output_scale = 0;
  product(inner);
  auto* to = static_cast<std::int8_t*>(args.y);
  quantize_rows(y.get(), args.dtype, rows, cols, cols, args.output_scale, args.threads, to, nullptr);
}

// Tokens, or images, of `floats` numbers each that are widened at once: what surrounds a product stays in the last
// cache, and a long batch takes no more memory than a short one. At least `least`, in parts of nearly equal size: of
// a multiple of `unit`.
std::int64_t part_of(std::int64_t count, std::int64_t floats, std::int64_t least, std::int64_t unit) {
  constexpr std::int64_t kFloats = 1 << 19;  // 2 MB: of 1 to 4, measured on Zen 4, the best for most shapes
  const std::int64_t most = std::max(kFloats / std::max<std::int64_t>(floats, 1), least);
  const std::int64_t parts = (count + most - 1) / most;
  return parts <= 1 ? count : round_up((count + parts - 1) / parts, unit);
}

std::int64_t tokens_of(std::int64_t count, std::int64_t floats, int threads) {
  return part_of(count, floats, 256 * std::max(threads, 1), 16);  // some tiles for each thread, of full vectors
}

// A product of float32 or 16 bits, or of int8 with scales: by tiles, by pairs, or widened to float32.
void run_linear(const Linear& args) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Tuning& tuning = cpu::tuning();
  const bool few = args.n <= tuning.few_tokens, int8 = args.x_scale != nullptr;
  if (kernels.linear_tiles != nullptr && !few) {
    return checked(args.weight, [&] { return kernels.linear_tiles(args, tuning); });
  }
  if (args.dtype == DType::kFloat32 && !int8) return checked(args.weight, [&] { return kernels.linear(args, tuning); });

  Linear wide = args;
  const bool narrow_y = args.dtype != DType::kFloat32;
  const Wide y(cpu::Scratch::kWideOutput, narrow_y ? args.n * args.m : 0);
  const auto bias = narrow_y ? wide_bias(args.bias, args.dtype, args.m) : nullptr;
  if (narrow_y) wide.y = y.data(), wide.bias = bias.get();
  wide.dtype = DType::kFloat32;
  const bool narrow_weight = args.weight.dtype == DType::kBFloat16 || (args.weight.dtype == DType::kInt8 && !few);
  const bool halves = args.dtype == DType::kBFloat16 && narrow_weight;
  const auto product = int8 && !few ? kernels.linear_int8 : halves ? kernels.linear_bf16 : nullptr;
  if (product != nullptr) {
    checked(args.weight, [&] { return product(wide, tuning); });
  } else {
    const Wide x(cpu::Scratch::kWideInput, args.n * args.k);
    const DType dtype = int8 ? DType::kInt8 : args.dtype;
    if (args.x_stride == args.k) {
      widen(args.x, dtype, args.n * args.k, args.threads, x.data());
    } else {
      for (std::int64_t token = 0; token < args.n; ++token) {
        kernels.widen(at(args.x, dtype, token * args.x_stride), dtype, args.k, x.data() + token * args.k);
      }
    }
    wide.x = x.data(), wide.x_stride = args.k;
    checked(args.weight, [&] { return kernels.linear(wide, tuning); });
  }
  if (narrow_y) narrow(y.data(), args.dtype, args.n * args.m, args.threads, args.y);
}

// Whether a convolution gains as a linear layer of windows: those have kernels of pairs, convolutions have none. By
// times on Zen 4, the only machine with such bfloat16 that they were taken on; a window of more than a pixel is a copy.
bool gains_by_windows(const Conv2d& a, const cpu::Patches& patches) {
  if (a.groups != 1 || a.format != MemoryFormat::kChannelsLast || cpu::kernels().linear_bf16 == nullptr) return false;
  if (a.x_scale != nullptr) return patches.is_input() || (a.in_channels >= 64 && a.out_channels >= 256);
  const bool halves = a.dtype == DType::kBFloat16 && a.weight.dtype == DType::kBFloat16;
  return halves && a.in_channels >= 64 && a.out_channels >= 128;
}

// A convolution as a linear layer of the windows of its pixels, some at a time.
void by_windows(const Conv2d& a, std::int64_t out_pixels, const cpu::Patches& patches) {
  const std::int64_t columns = patches.is_input() ? a.in_channels : patches.columns();
  Linear linear{a.weight,       a.dtype, a.x,     a.bias,       a.y,      out_pixels,
                a.out_channels, columns, columns, a.activation, a.threads};
  linear.precision = a.precision, linear.x_scale = a.x_scale;
  if (patches.is_input()) return run_linear(linear);
  const std::int64_t part = tokens_of(out_pixels, columns, a.threads);
  const std::unique_ptr<std::byte[]> rows(
      new std::byte[static_cast<std::size_t>(part * columns * patches.number_bytes)]);
  linear.x = rows.get();
  for (std::int64_t pixel = 0; pixel < out_pixels; pixel += part) {
    linear.n = std::min(part, out_pixels - pixel);
    patches.write(pixel, linear.n, rows.get());
    linear.y = const_cast<void*>(at(a.y, a.dtype, pixel * a.out_channels));
    if (a.x_scale != nullptr) linear.x_scale = a.x_scale + pixel;
    run_linear(linear);
  }
}

void run_conv2d(const Conv2d& args, std::int64_t out_pixels) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Tuning& tuning = cpu::tuning();
  const bool int8 = args.x_scale != nullptr;
  if (kernels.conv2d_tiles != nullptr) {
    return checked(args.weight, [&] { return kernels.conv2d_tiles(args, tuning); });
  }
  const cpu::Patches patches(args, static_cast<std::int64_t>(bytes_of(int8 ? DType::kInt8 : args.dtype)));
  if (gains_by_windows(args, patches)) return by_windows(args, out_pixels, patches);
  if (args.dtype == DType::kFloat32 && !int8) return checked(args.weight, [&] { return kernels.conv2d(args, tuning); });
  const std::int64_t numbers = args.batch * args.height * args.width * args.in_channels;
  const bool narrow_y = args.dtype != DType::kFloat32;
  const Wide x(cpu::Scratch::kWideInput, numbers);
  const Wide y(cpu::Scratch::kWideOutput, narrow_y ? out_pixels * args.out_channels : 0);
  const auto bias = narrow_y ? wide_bias(args.bias, args.dtype, args.out_channels) : nullptr;
  widen(args.x, int8 ? DType::kInt8 : args.dtype, numbers, args.threads, x.data());
  Conv2d wide = args;
  wide.dtype = DType::kFloat32, wide.x = x.data();
  if (narrow_y) wide.y = y.data(), wide.bias = bias.get();
  checked(args.weight, [&] { return kernels.conv2d(wide, tuning); });
  if (narrow_y) narrow(y.data(), args.dtype, out_pixels * args.out_channels, args.threads, args.y);
}

// Throws where an int8 weight has no scales, or scales of the input are asked for that make no sense.
template <typename Args>
void check_int8(const Args& args) {
  const bool int8 = args.weight.dtype == DType::kInt8;
  if (int8 != (args.weight.scale != nullptr)) throw InvalidArgument("an int8 weight has a scale a row, and no other");
  if (args.quantize != Quantize::kNone && !int8) throw InvalidArgument("only for an int8 weight x becomes int8");
  const bool scaled = args.quantize == Quantize::kByScale || args.quantize == Quantize::kGiven;
  if (scaled && !(args.input_scale > 0 && std::isfinite(args.input_scale)))
    throw InvalidArgument(message("input_scale must be positive and finite, not ", args.input_scale));
  if (!(args.output_scale >= 0 && std::isfinite(args.output_scale)))
    throw InvalidArgument(message("output_scale must be positive and finite, or 0, not ", args.output_scale));
}

// Whether something is widened, or made int8, around the kernels' own products.
template <typename Args>
bool is_surrounded(const Args& args, bool has_tiles) {
  return args.quantize != Quantize::kNone || (args.dtype != DType::kFloat32 && !has_tiles);
}

template <typename Args>
DType input_dtype(const Args& args) {
  return args.quantize == Quantize::kGiven ? DType::kInt8 : args.dtype;
}

template <typename Args>
DType output_dtype(const Args& args) {
  return args.output_scale > 0 ? DType::kInt8 : args.dtype;
}

void linear_part(const Linear& args) {
  if (args.output_scale > 0) return through_dtype(args, args.n, args.m, linear_part);
  if (args.quantize == Quantize::kNone) return run_linear(args);
  if (args.quantize == Quantize::kGiven) {
    const std::vector<float> scales(static_cast<std::size_t>(args.n), args.input_scale);
    Linear given = args;
    given.x_scale = scales.data();
    return run_linear(given);
  }
  const float scale = args.quantize == Quantize::kByScale ? args.input_scale : 0;
  const Quantized x(args.x, args.dtype, args.n, args.k, args.x_stride, scale, args.threads);
  Linear int8 = args;
  int8.x = x.rows(), int8.x_stride = args.k, int8.x_scale = x.scales();
  run_linear(int8);
}

std::int64_t plane_of(const Conv2d& args) {
  const cpu::Patches patches(args, 1);
  return patches.out_h * patches.out_w;
}

void conv2d_part(const Conv2d& args) {
  const std::int64_t plane = plane_of(args);
  // Rows of int8 outputs are images, and their order of memory is y's.
  if (args.output_scale > 0) return through_dtype(args, args.batch, plane * args.out_channels, conv2d_part);
  if (args.quantize == Quantize::kNone) return run_conv2d(args, args.batch * plane);
  if (args.quantize == Quantize::kGiven) {
    const std::vector<float> same(static_cast<std::size_t>(args.batch * plane), args.input_scale);
    Conv2d given = args;
    given.x_scale = same.data();
    return run_conv2d(given, args.batch * plane);
  }
  const float scale = args.quantize == Quantize::kByScale ? args.input_scale : 0;
  const std::int64_t image = args.height * args.width * args.in_channels;
  const Quantized x(args.x, args.dtype, args.batch, image, image, scale, args.threads);
  std::vector<float> scales(static_cast<std::size_t>(args.batch * plane));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = x.scales()[static_cast<std::int64_t>(i) / plane];
  Conv2d int8 = args;
  int8.x = x.rows(), int8.x_scale = scales.data();
  run_conv2d(int8, args.batch * plane);
}

}  // namespace

void linear(const Linear& args) {
  check_int8(args);
  const bool whole = !is_surrounded(args, cpu::kernels().linear_tiles != nullptr);
  const std::int64_t part = whole ? args.n : tokens_of(args.n, args.m + args.k, args.threads);
  if (part >= args.n) return linear_part(args);
  Linear some = args;
  for (std::int64_t token = 0; token < args.n; token += part) {
    some.n = std::min(part, args.n - token);
    some.x = at(args.x, input_dtype(args), token * args.x_stride);
    some.y = const_cast<void*>(at(args.y, output_dtype(args), token * args.m));
    linear_part(some);
  }
}

void conv2d(const Conv2d& args) {
  check_int8(args);
  const std::int64_t in = args.height * args.width * args.in_channels, out = plane_of(args) * args.out_channels;
  const bool whole = !is_surrounded(args, cpu::kernels().conv2d_tiles != nullptr);
  const std::int64_t part = whole ? args.batch : part_of(args.batch, in + out, std::max(args.threads, 1), 1);
  if (part >= args.batch) return conv2d_part(args);
  Conv2d some = args;
  for (std::int64_t image = 0; image < args.batch; image += part) {
    some.batch = std::min(part, args.batch - image);
    some.x = at(args.x, input_dtype(args), image * in);
    some.y = const_cast<void*>(at(args.y, output_dtype(args), image * out));
    conv2d_part(some);
  }
}

}  // namespace sparse24
