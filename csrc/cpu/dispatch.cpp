// Chooses the kernels at first use, and holds what all of them share.

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "../error.h"
#include "kernels.h"

namespace sparse24 {
namespace cpu {
namespace {

// Best first.
const std::array kAll = {
#if defined(__x86_64__)
    &amx::kernels, &avx512_vnni::kernels, &avx512::kernels, &avx2::kernels,
#elif defined(__aarch64__)
    &neon::kernels,
#endif
    &scalar::kernels};

std::string names() {
  std::string list;
  for (const Kernels* each : kAll) list += std::string(list.empty() ? "" : ", ") + each->name;
  return list;
}

const Kernels& choose() {
  const char* wish = std::getenv("SPARSE24_CPU_ISA");
  const bool wished = wish != nullptr && *wish != '\0';
  for (const Kernels* each : kAll) {
    if (wished && std::strcmp(wish, each->name) != 0) continue;
    const std::string problem = each->why_not();
    if (problem.empty()) return *each;
    if (wished) throw InvalidArgument(message("SPARSE24_CPU_ISA=", wish, ": this machine does not run it: ", problem));
  }
  throw InvalidArgument(message("SPARSE24_CPU_ISA=", wish, " is not one of ", names()));
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::atomic<const Tuning*> overridden{nullptr};

std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

// n:m by rank, any n and m, elements `step` apart.
template <typename Bits>
void rank_group(Bits* weights, std::int64_t step, std::int64_t count, int n, std::uint8_t* mask, bool prune) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  std::array<Bits, 64> few;
  std::unique_ptr<Bits[]> many(count > 64 ? new Bits[static_cast<std::size_t>(count)] : nullptr);
  Bits* size = many ? many.get() : few.data();
  for (std::int64_t i = 0; i < count; ++i) size[i] = static_cast<Bits>(weights[i * step] & kMagnitude);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t ahead = 0;
    for (std::int64_t j = 0; j < count; ++j) ahead += size[j] > size[i] || (size[j] == size[i] && j < i);
    const bool keep = ahead < n;
    if (mask != nullptr) mask[i * step] = keep;
    if (prune && !keep) weights[i * step] = 0;
  }
}

template <typename Bits>
void rank_all(const Mask24& a, int n, int m) {
  const std::int64_t groups = (a.length + m - 1) / m;
#pragma omp parallel for schedule(static) num_threads(usable_threads(a.threads))
  for (std::int64_t i = 0; i < a.outer * groups; ++i) {
    const std::int64_t first = i % groups * m;
    const std::int64_t count = a.length - first < m ? a.length - first : m;
    for (std::int64_t p = 0; p < a.inner; ++p) {
      const std::int64_t at = (i / groups * a.length + first) * a.inner + p;
      rank_group(static_cast<Bits*>(a.weight) + at, a.inner, count, n, a.mask == nullptr ? nullptr : a.mask + at,
                 a.prune);
    }
  }
}

void run_mask(const Mask24& a, DType dtype, int n, int m) {
  const bool wide = dtype == DType::kFloat32;
  if (n == 2 && m == 4) return wide ? kernels().mask24_32(a) : kernels().mask24_16(a);
  return wide ? rank_all<std::uint32_t>(a, n, m) : rank_all<std::uint16_t>(a, n, m);
}

}  // namespace

float* scratch(Scratch which, std::int64_t floats) {
  struct Buffer {
    std::unique_ptr<float, Free> memory;
    std::int64_t size = 0;
  };
  thread_local std::array<Buffer, static_cast<std::size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<std::size_t>(which)];
  if (buffer.size < floats) {
    buffer.memory.reset();
    buffer.memory.reset(
        static_cast<float*>(::operator new(static_cast<std::size_t>(floats) * sizeof(float), std::align_val_t{64})));
    buffer.size = floats;
  }
  return buffer.memory.get();
}

const Tuning& tuning() {
  static const Tuning& row = row_of(kernels().name, machine());
  const Tuning* instead = overridden.load(std::memory_order_acquire);
  return instead != nullptr ? *instead : row;
}

void override_tuning(const Tuning* tuning) {
  if (tuning != nullptr) check_tuning(*tuning);
  static Tuning kept;
  if (tuning != nullptr) kept = *tuning;
  overridden.store(tuning != nullptr ? &kept : nullptr, std::memory_order_release);
}

int usable_threads(int wish) { return at_fork != 0 || forked || wish < 1 ? 1 : wish; }

}  // namespace cpu

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

// Rows of `cols` numbers, x_stride apart, as int8, with a scale each: input_scale, or its own. 16-bit rows are
// widened first, one at a time.
class Quantized {
 public:
  Quantized(const void* x, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t x_stride, float input_scale,
            int threads)
      : rows_(new std::int8_t[static_cast<std::size_t>(rows * cols)]), scales_(new float[static_cast<std::size_t>(rows)]) {
    const int usable = static_cast<int>(std::min<std::int64_t>(cpu::usable_threads(threads), rows * cols / 32768 + 1));
#pragma omp parallel for schedule(static) num_threads(usable) if (usable > 1)
    for (std::int64_t row = 0; row < rows; ++row) {
      const void* from = at(x, dtype, row * x_stride);
      if (dtype != DType::kFloat32) {
        float* wide = cpu::scratch(cpu::Scratch::kRow, cols);
        cpu::kernels().widen(from, dtype, cols, wide);
        from = wide;
      }
      scales_[static_cast<std::size_t>(row)] =
          cpu::kernels().quantize(static_cast<const float*>(from), cols, input_scale, rows_.get() + row * cols);
    }
  }
  const std::int8_t* rows() const { return rows_.get(); }
  const float* scales() const { return scales_.get(); }

 private:
  std::unique_ptr<std::int8_t[]> rows_;
  std::unique_ptr<float[]> scales_;
};

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
  const auto product = int8 ? kernels.linear_int8
                       : args.dtype == DType::kBFloat16 && args.weight.dtype == DType::kBFloat16 ? kernels.linear_bf16
                                                                                                : nullptr;
  if (product != nullptr && !few) {
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

void run_conv2d(const Conv2d& args, std::int64_t out_pixels) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Tuning& tuning = cpu::tuning();
  const bool int8 = args.x_scale != nullptr;
  if (kernels.conv2d_tiles != nullptr) {
    return checked(args.weight, [&] { return kernels.conv2d_tiles(args, tuning); });
  }
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
  if (args.quantize == Quantize::kByScale && !(args.input_scale > 0 && std::isfinite(args.input_scale)))
    throw InvalidArgument(message("input_scale must be positive and finite, not ", args.input_scale));
}

}  // namespace

std::string cpu_isa() { return cpu::kernels().name; }

std::vector<CpuIsa> cpu_isas() {
  std::vector<CpuIsa> all;
  for (const cpu::Kernels* each : cpu::kAll) all.push_back({each->name, each->why_not()});
  return all;
}

void linear(const Linear& args) {
  check_int8(args);
  if (args.quantize == Quantize::kNone) return run_linear(args);
  const float scale = args.quantize == Quantize::kByScale ? args.input_scale : 0;
  const Quantized x(args.x, args.dtype, args.n, args.k, args.x_stride, scale, args.threads);
  Linear int8 = args;
  int8.x = x.rows(), int8.x_stride = args.k, int8.x_scale = x.scales();
  run_linear(int8);
}

void conv2d(const Conv2d& args) {
  check_int8(args);
  const auto out = [](std::int64_t size, std::int64_t pad, std::int64_t dilation, std::int64_t kernel,
                      std::int64_t stride) { return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; };
  const std::int64_t plane = out(args.height, args.pad_h, args.dilation_h, args.kernel_h, args.stride_h) *
                             out(args.width, args.pad_w, args.dilation_w, args.kernel_w, args.stride_w);
  if (args.quantize == Quantize::kNone) return run_conv2d(args, args.batch * plane);
  const float scale = args.quantize == Quantize::kByScale ? args.input_scale : 0;
  const std::int64_t image = args.height * args.width * args.in_channels;
  const Quantized x(args.x, args.dtype, args.batch, image, image, scale, args.threads);
  std::vector<float> scales(static_cast<std::size_t>(args.batch * plane));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = x.scales()[static_cast<std::int64_t>(i) / plane];
  Conv2d int8 = args;
  int8.x = x.rows(), int8.x_scale = scales.data();
  run_conv2d(int8, args.batch * plane);
}

void nm_mask(const void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
             std::uint8_t* mask, int threads) {
  cpu::run_mask({const_cast<void*>(weight), outer, length, inner, mask, false, threads}, dtype, n, m);
}

void nm_prune(void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
              std::uint8_t* mask, int threads) {
  cpu::run_mask({weight, outer, length, inner, mask, true, threads}, dtype, n, m);
}

void transposable_mask(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                       int threads) {
  cpu::kernels().transposable_mask(weight, dtype, rows, cols, mask, threads);
}

}  // namespace sparse24
