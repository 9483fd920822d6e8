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

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

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

std::string cpu_isa() { return cpu::kernels().name; }

std::vector<CpuIsa> cpu_isas() {
  std::vector<CpuIsa> all;
  for (const cpu::Kernels* each : cpu::kAll) all.push_back({each->name, each->why_not()});
  return all;
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
