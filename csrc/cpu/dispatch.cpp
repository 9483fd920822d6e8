// Chooses the kernels at first use, and holds what all of them share.

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
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
    &avx512::kernels, &avx2::kernels,
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

std::size_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

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

}  // namespace

std::string cpu_isa() { return cpu::kernels().name; }

std::vector<CpuIsa> cpu_isas() {
  std::vector<CpuIsa> all;
  for (const cpu::Kernels* each : cpu::kAll) all.push_back({each->name, each->why_not()});
  return all;
}

void linear(const Linear& args) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Tuning& tuning = cpu::tuning();
  if (args.dtype == DType::kFloat32) return checked(args.weight, [&] { return kernels.linear(args, tuning); });
  const Wide x(cpu::Scratch::kWideInput, args.n * args.k), y(cpu::Scratch::kWideOutput, args.n * args.m);
  const auto bias = wide_bias(args.bias, args.dtype, args.m);
  if (args.x_stride == args.k) {
    widen(args.x, args.dtype, args.n * args.k, args.threads, x.data());
  } else {
    for (std::int64_t token = 0; token < args.n; ++token) {
      kernels.widen(at(args.x, args.dtype, token * args.x_stride), args.dtype, args.k, x.data() + token * args.k);
    }
  }
  Linear wide = args;
  wide.dtype = DType::kFloat32, wide.x = x.data(), wide.x_stride = args.k, wide.bias = bias.get(), wide.y = y.data();
  checked(args.weight, [&] { return kernels.linear(wide, tuning); });
  narrow(y.data(), args.dtype, args.n * args.m, args.threads, args.y);
}

void conv2d(const Conv2d& args) {
  const cpu::Kernels& kernels = cpu::kernels();
  const cpu::Tuning& tuning = cpu::tuning();
  if (args.dtype == DType::kFloat32) return checked(args.weight, [&] { return kernels.conv2d(args, tuning); });
  const std::int64_t pixels = args.batch * args.height * args.width;
  const auto out = [](std::int64_t size, std::int64_t pad, std::int64_t dilation, std::int64_t kernel,
                      std::int64_t stride) { return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; };
  const std::int64_t out_pixels = args.batch *
                                  out(args.height, args.pad_h, args.dilation_h, args.kernel_h, args.stride_h) *
                                  out(args.width, args.pad_w, args.dilation_w, args.kernel_w, args.stride_w);
  const Wide x(cpu::Scratch::kWideInput, pixels * args.in_channels);
  const Wide y(cpu::Scratch::kWideOutput, out_pixels * args.out_channels);
  const auto bias = wide_bias(args.bias, args.dtype, args.out_channels);
  widen(args.x, args.dtype, pixels * args.in_channels, args.threads, x.data());
  Conv2d wide = args;
  wide.dtype = DType::kFloat32, wide.x = x.data(), wide.bias = bias.get(), wide.y = y.data();
  checked(args.weight, [&] { return kernels.conv2d(wide, tuning); });
  narrow(y.data(), args.dtype, out_pixels * args.out_channels, args.threads, args.y);
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
