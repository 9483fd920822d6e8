// C++ microbenchmarks of the CPU kernels against what bounds them: masks against a plain read of the
// same array, large products against the multiply-add peak, decode against the memory. Everything that
// is compared takes turns in one process; medians. Prints one JSON object a line.
//
//     kernels_bench [threads [call | masks | linear | decode]]

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "shapes.inc"
#include "sparse24.h"

using namespace sparse24;

namespace {

// Medians in seconds of calls that take turns.
std::vector<double> medians(const std::vector<std::function<void()>>& calls, int rounds) {
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

Aligned allocate(std::int64_t bytes) {
  return Aligned(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

std::vector<float> normals(std::int64_t count) {
  std::mt19937 rng(24);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count));
  std::generate(out.begin(), out.end(), [&] { return normal(rng); });
  return out;
}

// A pruned Gaussian weight [m, k], compressed.
struct Compressed {
  Aligned values, indices;
  Weight weight;
};

Compressed compressed_weight(std::int64_t m, std::int64_t k, int threads) {
  auto w = normals(m * k);
  nm_prune(w.data(), DType::kFloat32, m, k, 1, 2, 4, nullptr, threads);
  Compressed out{allocate(m * k / 2 * 4), allocate(m * k / 8), {}};
  auto* indices = reinterpret_cast<std::uint8_t*>(out.indices.get());
  compress(w.data(), DType::kFloat32, m, k, k, out.values.get(), indices);
  out.weight = {out.values.get(), indices, DType::kFloat32, m, k};
  return out;
}

volatile std::uint32_t sink;

// Reads every word once: four streams a thread, which is what it takes to saturate one core.
void read_all(const void* data, std::int64_t words, int threads) {
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
__attribute__((target("avx2,fma"))) void multiply_add(std::int64_t rounds) {
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
#endif

void bench_masks(int threads) {
  const std::int64_t side = kMaskSide;
  auto w = normals(side * side);
  auto pruned = w;
  std::vector<std::uint8_t> mask(w.size());
  const auto t = medians(
      {[&] { read_all(w.data(), side * side, threads); },
       [&] { nm_mask(w.data(), DType::kFloat32, side, side, 1, 2, 4, mask.data(), threads); },
       [&] { nm_prune(pruned.data(), DType::kFloat32, side, side, 1, 2, 4, nullptr, threads); },
       [&] { nm_prune(pruned.data(), DType::kFloat32, side, side, 1, 2, 4, mask.data(), threads); },
       [&] { nm_mask(w.data(), DType::kFloat32, 512, side * side / 512 / 9 / 4 * 4, 9, 2, 4, mask.data(), threads); },
       [&] { transposable_mask(w.data(), DType::kFloat32, side, side, mask.data(), threads); }},
      21);
  const char* names[] = {
      "plain read",       "2:4 mask", "prune in place", "prune in place, mask out", "2:4 mask, 3x3 convolution",
      "transposable mask"};
  for (std::size_t i = 0; i < t.size(); ++i) {
    std::printf("{\"table\": \"masks\", \"name\": \"%s\", \"ms\": %.4g, \"gb_s\": %.4g, \"x_read\": %.4g}\n", names[i],
                t[i] * 1e3, static_cast<double>(side * side) * 4e-9 / t[i], t[i] / t[0]);
  }
}

void bench_linear(int threads) {
  for (const auto& [m, k] : kLinearShapes) {
    const Compressed w = compressed_weight(m, k, threads);
    for (const std::int64_t n : kLinearTokens) {
      const auto x = normals(n * k);
      std::vector<float> y(static_cast<std::size_t>(n * m));
      const double operations = 2.0 * static_cast<double>(n * m * k);
      double peak = 0;
      std::vector<std::function<void()>> calls = {[&] {
        linear({w.weight, DType::kFloat32, x.data(), nullptr, y.data(), n, m, k, k, Activation::kNone, threads});
      }};
#if defined(__x86_64__)
      const auto rounds = static_cast<std::int64_t>(operations / 2 / 160 / threads) + 1;
      calls.push_back([&] {
#pragma omp parallel num_threads(threads)
        multiply_add(rounds);
      });
#endif
      const auto t = medians(calls, static_cast<int>(std::clamp(4e10 / operations, 9.0, 101.0)) | 1);
#if defined(__x86_64__)
      peak = static_cast<double>(rounds * threads) * 160 / t[1];
#endif
      std::printf("{\"table\": \"linear\", \"m\": %ld, \"k\": %ld, \"n\": %ld, \"gflops\": %.4g, \"of_peak\": %.4g}\n",
                  static_cast<long>(m), static_cast<long>(k), static_cast<long>(n), operations / t[0] / 1e9,
                  peak == 0 ? 0 : operations / 2 / t[0] / peak);
    }
  }
}

void bench_decode(int threads) {
  for (const auto& [m, k] : kLinearShapes) {
    const std::int64_t bytes = m * k / 2 * 4 + m * k / 8, copies = kColdBytes / bytes + 1;
    std::vector<Compressed> weights;
    std::vector<Aligned> rivals;
    for (std::int64_t i = 0; i < copies; ++i) {
      weights.push_back(compressed_weight(m, k, threads));
      rivals.push_back(allocate(bytes));
      std::fill_n(reinterpret_cast<unsigned char*>(rivals.back().get()), bytes, static_cast<unsigned char>(1));
    }
    const auto x = normals(k);
    std::vector<float> y(static_cast<std::size_t>(m));
    std::size_t at = 0, rival = 0;
    const auto t = medians(
        {[&] {
           const Weight& weight = weights[at++ % weights.size()].weight;
           linear({weight, DType::kFloat32, x.data(), nullptr, y.data(), 1, m, k, k, Activation::kNone, threads});
         },
         [&] { read_all(rivals[rival++ % rivals.size()].get(), bytes / 4, threads); }},
        81);
    std::printf("{\"table\": \"decode\", \"m\": %ld, \"k\": %ld, \"gb_s\": %.4g, \"of_read\": %.4g}\n",
                static_cast<long>(m), static_cast<long>(k), static_cast<double>(bytes) / t[0] / 1e9, t[1] / t[0]);
  }
}

// The smallest calls, many in a row: what a layer's call costs beyond them is the host's.
void bench_calls() {
  constexpr int kCalls = 20000;
  const Compressed w = compressed_weight(8, 8, 1);
  const auto x = normals(8), bias = normals(8);
  float y[8];
  const auto t =
      medians({[&] {
                 for (int i = 0; i < kCalls; ++i)
                   linear({w.weight, DType::kFloat32, x.data(), bias.data(), y, 1, 8, 8, 8, Activation::kNone, 1});
               },
               [&] {
                 for (int i = 0; i < kCalls; ++i)
                   conv2d({w.weight,
                           DType::kFloat32,
                           x.data(),
                           bias.data(),
                           y,
                           1,
                           8,
                           1,
                           1,
                           8,
                           1,
                           1,
                           1,
                           1,
                           0,
                           0,
                           1,
                           1,
                           1,
                           MemoryFormat::kContiguous,
                           Activation::kNone,
                           1});
               }},
              15);
  const char* names[] = {"linear 8x8", "conv2d 8x8 1x1"};
  for (std::size_t i = 0; i < t.size(); ++i)
    std::printf("{\"table\": \"call\", \"name\": \"%s\", \"us\": %.4g}\n", names[i], t[i] / kCalls * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : omp_get_max_threads();
  std::printf("{\"table\": \"machine\", \"isa\": \"%s\", \"threads\": %d}\n", cpu_isa().c_str(), threads);
  const std::string only = argc > 2 ? argv[2] : "";
  if (only.empty() || only == "call") bench_calls();
  if (only.empty() || only == "masks") bench_masks(threads);
  if (only.empty() || only == "linear") bench_linear(threads);
  if (only.empty() || only == "decode") bench_decode(threads);
}
