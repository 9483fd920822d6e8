// C++ microbenchmarks of the CPU kernels against what bounds them: masks against a plain read of the
// same array, large products and convolutions against the multiply-add peak of float32, decode against the
// memory, in every dtype of weights. Everything that is compared takes turns in one process; medians. Prints
// one JSON object a line.
//
//     kernels_bench [threads [call | masks | linear | conv2d | decode]]

#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu_harness.h"
#include "shapes.inc"
#include "sparse24.h"

using namespace sparse24;
using namespace harness;

namespace {

#if defined(__aarch64__)
using Half = __fp16;  // GCC 12 has no _Float16 in C++ there
#else
using Half = _Float16;
#endif

// How a product is computed: weights of a dtype, activations of another, int8 by int8 or not.
struct Kind {
  const char* name;
  DType weight, input;
  std::int64_t weight_size, input_size;
  Quantize quantize;
};
constexpr Kind kKinds[] = {
    {"fp32", DType::kFloat32, DType::kFloat32, 4, 4, Quantize::kNone},
    {"bf16", DType::kBFloat16, DType::kBFloat16, 2, 2, Quantize::kNone},
    {"fp16", DType::kFloat16, DType::kFloat16, 2, 2, Quantize::kNone},
    {"int8 weights", DType::kInt8, DType::kFloat32, 1, 4, Quantize::kNone},
    {"int8", DType::kInt8, DType::kFloat32, 1, 4, Quantize::kByToken},
};

// Floats in a dtype; int8 in steps of 1/32.
std::vector<std::byte> in_dtype(const std::vector<float>& x, DType dtype, std::int64_t size) {
  std::vector<std::byte> out(x.size() * static_cast<std::size_t>(size));
  std::byte* to = out.data();
  for (const float value : x) {
    if (dtype == DType::kFloat32) {
      std::memcpy(to, &value, 4);
    } else if (dtype == DType::kBFloat16) {
      std::memcpy(to, reinterpret_cast<const std::byte*>(&value) + 2, 2);
    } else if (dtype == DType::kFloat16) {
      const auto half = static_cast<Half>(value);
      std::memcpy(to, &half, 2);
    } else {
      const auto step = static_cast<std::int8_t>(std::clamp(value * 32, -127.0f, 127.0f));
      std::memcpy(to, &step, 1);
    }
    to += size;
  }
  return out;
}

// A pruned Gaussian weight [m, k], compressed.
struct Compressed {
  Aligned values, indices;
  std::vector<float> scale;
  Weight weight;
};

Compressed compressed_weight(std::int64_t m, std::int64_t k, int threads, const Kind& kind = kKinds[0]) {
  auto w = normals(m * k);
  nm_prune(w.data(), DType::kFloat32, m, k, 1, 2, 4, nullptr, threads);
  const auto dense = in_dtype(w, kind.weight, kind.weight_size);
  Compressed out{allocate(m * k / 2 * kind.weight_size), allocate(m * k / 8), {}, {}};
  auto* indices = reinterpret_cast<std::uint8_t*>(out.indices.get());
  compress(dense.data(), kind.weight, m, k, k, out.values.get(), indices);
  if (kind.weight == DType::kInt8) out.scale.assign(static_cast<std::size_t>(m), 1.0f / 32);
  out.weight = {out.values.get(), indices, kind.weight, m, k, out.scale.empty() ? nullptr : out.scale.data()};
  return out;
}

// The same numbers in memory of their own.
Compressed copy_of(const Compressed& from, std::int64_t value_bytes, std::int64_t index_bytes) {
  Compressed out{allocate(value_bytes), allocate(index_bytes), from.scale, from.weight};
  std::memcpy(out.values.get(), from.values.get(), static_cast<std::size_t>(value_bytes));
  std::memcpy(out.indices.get(), from.indices.get(), static_cast<std::size_t>(index_bytes));
  out.weight.values = out.values.get();
  out.weight.indices = reinterpret_cast<const std::uint8_t*>(out.indices.get());
  if (!out.scale.empty()) out.weight.scale = out.scale.data();
  return out;
}

Linear linear_args(const Kind& kind, const Weight& weight, const void* x, void* y, std::int64_t n, int threads) {
  Linear args{weight,        kind.input,        x,      nullptr, y, n, weight.rows, weight.padded,
              weight.padded, Activation::kNone, threads};
  args.quantize = kind.quantize;
  return args;
}

int rounds_for(double operations) { return static_cast<int>(std::clamp(4e10 / operations, 9.0, 101.0)) | 1; }

void print_product(const std::string& head, double operations, const std::vector<double>& t) {
  std::printf("{%s, \"gflops\": %.4g, \"of_peak\": %.4g}\n", head.c_str(), operations / t[0] / 1e9,
              t.size() > 1 ? t[1] / 2 / t[0] : 0);
}

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
  for (const Kind& kind : kKinds) {
    for (const auto& [m, k] : kLinearShapes) {
      const Compressed w = compressed_weight(m, k, threads, kind);
      for (const std::int64_t n : kLinearTokens) {
        const auto x = in_dtype(normals(n * k), kind.input, kind.input_size);
        std::vector<std::byte> y(static_cast<std::size_t>(n * m * kind.input_size));
        const double operations = 2.0 * static_cast<double>(n * m * k);
        auto calls = at_peak(operations, threads);
        calls.insert(calls.begin(), [&] { linear(linear_args(kind, w.weight, x.data(), y.data(), n, threads)); });
        const auto t = medians(calls, rounds_for(operations));
        print_product("\"table\": \"linear\", \"dtype\": \"" + std::string(kind.name) + "\", \"m\": " +
                          std::to_string(m) + ", \"k\": " + std::to_string(k) + ", \"n\": " + std::to_string(n),
                      operations, t);
      }
    }
  }
}

void bench_conv2d(int threads) {
  for (const Kind& kind : kKinds) {
    for (const auto& [in, out, size, kernel] : kConv2dShapes) {
      const Compressed w = compressed_weight(out, kernel * kernel * in, threads, kind);
      const std::int64_t pixels = kConv2dBatch * size * size, pad = kernel / 2;
      const auto x = in_dtype(normals(pixels * in), kind.input, kind.input_size);
      std::vector<std::byte> y(static_cast<std::size_t>(pixels * out * kind.input_size));
      const double operations = 2.0 * static_cast<double>(pixels * out * kernel * kernel * in);
      Conv2d args{w.weight,
                  kind.input,
                  x.data(),
                  nullptr,
                  y.data(),
                  kConv2dBatch,
                  in,
                  size,
                  size,
                  out,
                  kernel,
                  kernel,
                  1,
                  1,
                  pad,
                  pad,
                  1,
                  1,
                  /*groups=*/1,
                  MemoryFormat::kChannelsLast,
                  Activation::kNone,
                  threads};
      args.quantize = kind.quantize;
      auto calls = at_peak(operations, threads);
      calls.insert(calls.begin(), [&] { conv2d(args); });
      const auto t = medians(calls, rounds_for(operations));
      print_product("\"table\": \"conv2d\", \"dtype\": \"" + std::string(kind.name) +
                        "\", \"in\": " + std::to_string(in) + ", \"out\": " + std::to_string(out) +
                        ", \"size\": " + std::to_string(size) + ", \"kernel\": " + std::to_string(kernel),
                    operations, t);
    }
  }
}

void bench_decode(int threads) {
  for (const Kind& kind : kKinds) {
    for (const auto& [m, k] : kLinearShapes) {
      const std::int64_t bytes = m * k / 2 * kind.weight_size + m * k / 8, copies = kColdBytes / bytes + 1;
      std::vector<Compressed> weights;
      std::vector<Aligned> rivals;
      weights.push_back(compressed_weight(m, k, threads, kind));
      for (std::int64_t i = 0; i < copies; ++i) {
        if (i > 0) weights.push_back(copy_of(weights[0], m * k / 2 * kind.weight_size, m * k / 8));
        rivals.push_back(allocate(bytes));
        std::fill_n(reinterpret_cast<unsigned char*>(rivals.back().get()), bytes, static_cast<unsigned char>(1));
      }
      const auto x = in_dtype(normals(k), kind.input, kind.input_size);
      std::vector<std::byte> y(static_cast<std::size_t>(m * kind.input_size));
      std::size_t at = 0, rival = 0;
      const auto t = medians({[&] {
                                const Weight& weight = weights[at++ % weights.size()].weight;
                                linear(linear_args(kind, weight, x.data(), y.data(), 1, threads));
                              },
                              [&] { read_all(rivals[rival++ % rivals.size()].get(), bytes / 4, threads); }},
                             81);
      std::printf(
          "{\"table\": \"decode\", \"dtype\": \"%s\", \"m\": %ld, \"k\": %ld, \"gb_s\": %.4g, \"of_read\": %.4g}\n",
          kind.name, static_cast<long>(m), static_cast<long>(k), static_cast<double>(bytes) / t[0] / 1e9, t[1] / t[0]);
    }
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
  if (only.empty() || only == "conv2d") bench_conv2d(threads);
  if (only.empty() || only == "decode") bench_decode(threads);
}
