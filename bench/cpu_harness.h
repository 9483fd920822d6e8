// What the microbenchmarks of the CPU kernels are made of: turns, memory, a plain read, the multiply-add peak.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <vector>

namespace harness {

// Medians in seconds of calls that take turns.
inline std::vector<double> medians(const std::vector<std::function<void()>>& calls, int rounds) {
  std::vector<std::vector<double>> samples(calls.size());
  for (const auto& call : calls) call();
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      calls[i]();
      samples[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  }
  std::vector<double> out;
  for (auto& sample : samples) {
    std::nth_element(sample.begin(), sample.begin() + rounds / 2, sample.end());
    out.push_back(sample[static_cast<std::size_t>(rounds / 2)]);
  }
  return out;
}

struct Free {
  void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Aligned = std::unique_ptr<std::byte, Free>;

inline Aligned allocate(std::int64_t bytes) {
  return Aligned(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

inline std::vector<float> normals(std::int64_t count) {
  std::mt19937 rng(24);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count));
  std::generate(out.begin(), out.end(), [&] { return normal(rng); });
  return out;
}

inline volatile std::uint32_t sink;

// Reads every word once: four streams a thread, which is what it takes to saturate one core.
inline void read_all(const void* data, std::int64_t words, int threads) {
  const auto* p = static_cast<const std::uint32_t*>(data);
  std::uint32_t all = 0;
  const std::int64_t parts = 4 * threads;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : all)
  for (std::int64_t run = 0; run < threads; ++run) {
    const std::int64_t quarter = words / parts, base = run * 4 * quarter;
    std::uint32_t a[8] = {}, b[8] = {}, c[8] = {}, d[8] = {};
    for (std::int64_t i = 0; i + 8 <= quarter; i += 8) {
      for (int j = 0; j < 8; ++j) {
        a[j] |= p[base + i + j];
        b[j] |= p[base + quarter + i + j];
        c[j] |= p[base + 2 * quarter + i + j];
        d[j] |= p[base + 3 * quarter + i + j];
      }
    }
    for (int j = 0; j < 8; ++j) all |= a[j] | b[j] | c[j] | d[j];
  }
  sink = all;
}

#if defined(__x86_64__)
// Ten independent chains of register multiply-adds: 160 operations a round on AVX2.
__attribute__((target("avx2,fma"))) inline void multiply_add(std::int64_t rounds) {
  for (std::int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm0\n vfmadd231ps %%ymm15,%%ymm15,%%ymm1\n"
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm2\n vfmadd231ps %%ymm15,%%ymm15,%%ymm3\n"
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm4\n vfmadd231ps %%ymm15,%%ymm15,%%ymm5\n"
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm6\n vfmadd231ps %%ymm15,%%ymm15,%%ymm7\n"
        "vfmadd231ps %%ymm15,%%ymm15,%%ymm8\n vfmadd231ps %%ymm15,%%ymm15,%%ymm9\n" ::
            : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9");
  }
}

// The same on AVX-512, in the same number of operations.
__attribute__((target("avx512f"))) inline void multiply_add_wide(std::int64_t rounds) {
  for (std::int64_t i = 0; i < rounds; i += 2) {
    asm volatile(
        "vfmadd231ps %%zmm15,%%zmm15,%%zmm0\n vfmadd231ps %%zmm15,%%zmm15,%%zmm1\n"
        "vfmadd231ps %%zmm15,%%zmm15,%%zmm2\n vfmadd231ps %%zmm15,%%zmm15,%%zmm3\n"
        "vfmadd231ps %%zmm15,%%zmm15,%%zmm4\n vfmadd231ps %%zmm15,%%zmm15,%%zmm5\n"
        "vfmadd231ps %%zmm15,%%zmm15,%%zmm6\n vfmadd231ps %%zmm15,%%zmm15,%%zmm7\n"
        "vfmadd231ps %%zmm15,%%zmm15,%%zmm8\n vfmadd231ps %%zmm15,%%zmm15,%%zmm9\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
  }
}
#endif

// A dense product's multiply-adds in registers alone, the least time that it could take; nothing where there is no
// such loop for the machine.
inline std::vector<std::function<void()>> at_peak(double operations, int threads) {
#if defined(__x86_64__)
  const auto rounds = static_cast<std::int64_t>(operations / 160 / threads) + 1;
  const bool wide = __builtin_cpu_supports("avx512f");
  return {[=] {
#pragma omp parallel num_threads(threads)
    wide ? multiply_add_wide(rounds) : multiply_add(rounds);
  }};
#else
  (void)operations, (void)threads;
  return {};
#endif
}

}  // namespace harness
