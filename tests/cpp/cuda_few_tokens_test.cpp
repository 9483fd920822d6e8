// The kernel for few tokens on the CPU: csrc/cuda/few_tokens.cu itself against sums in double, in every type, with
// every count of tokens, ragged and misaligned; how its warps touch memory; and the epilogue of 8-bit products. More
// than 300 lines: both against one arithmetic in double.

#include <cmath>

#include "cuda/few_tokens.cu"
#include "cuda_fixtures.h"

double exact(std::uint32_t bits, sparse24::DType dtype);  // cuda_bodies_test.cpp

namespace {

using namespace cuda_test;
using cuda::Access;

struct Weight {
  std::vector<uint8_t> values;  // bytes, of any type
  std::vector<uint8_t> indices;
  std::vector<double> dense;  // [m, padded]
};

double number(const uint8_t* at, DType dtype) {
  if (dtype == DType::kInt8) return static_cast<std::int8_t>(*at);
  uint32_t bits = 0;
  std::memcpy(&bits, at, dtype == DType::kFloat32 ? 4 : 2);
  return exact(bits, dtype);
}

// Of either sign, 1/4 to 2: all of them normal in every type.
template <typename Bits>
std::vector<Bits> numbers(int64_t count, DType dtype) {
  std::vector<Bits> out(static_cast<std::size_t>(count));
  for (Bits& bits : out) {
    const float size = 0.25f + 1.75f * static_cast<float>(rng() % 4096) / 4096;
    bits = bits_near<Bits>(rng() % 2 ? size : -size, dtype);
  }
  return out;
}

// Two of every four columns, in order, by chance; numbers near one, or small whole ones.
Weight random_weight(int64_t m, int64_t padded, DType dtype) {
  const std::size_t size = dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
  Weight w;
  w.values.resize(static_cast<std::size_t>(m * padded / 2) * size);
  w.indices.resize(static_cast<std::size_t>(m * padded / 8));
  w.dense.assign(static_cast<std::size_t>(m * padded), 0);
  if (dtype == DType::kInt8) {
    for (uint8_t& byte : w.values) byte = static_cast<uint8_t>(rng());
  } else {
    with_bits(dtype, [&]<typename Bits>(Bits) {
      const auto kept = numbers<Bits>(m * padded / 2, dtype);
      std::memcpy(w.values.data(), kept.data(), w.values.size());
    });
  }
  constexpr unsigned kPairs[] = {0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110};  // second column, first column
  for (int64_t group = 0; group < m * padded / 4; ++group) {
    const unsigned pair = kPairs[rng() % 6];
    w.indices[static_cast<std::size_t>(group / 2)] |= static_cast<uint8_t>(pair << (4 * (group % 2)));
    for (int64_t i = 0; i < 2; ++i) {
      const unsigned column = i == 0 ? pair & 3u : pair >> 2;
      w.dense[static_cast<std::size_t>(4 * group + column)] =
          number(w.values.data() + static_cast<std::size_t>(2 * group + i) * size, dtype);
    }
  }
  return w;
}

double activated(double value, Activation activation) {
  if (activation == Activation::kRelu) return std::max(value, 0.0);
  if (activation == Activation::kGelu) return 0.5 * value * (1 + std::erf(value / std::sqrt(2.0)));
  if (activation == Activation::kGeluTanh) {
    return 0.5 * value * (1 + std::tanh(std::sqrt(2 / M_PI) * (value + 0.044715 * value * value * value)));
  }
  return value;
}

// Half a unit in the last place of the output, and fp32's error of the sum.
double tolerance(DType x) { return x == DType::kFloat32 ? 0 : x == DType::kFloat16 ? 0x1p-11 : 0x1p-8; }

template <typename Bits>
void check_product(DType x_type, DType w_type, int64_t n, int64_t m, int64_t k) {
  const int64_t padded = round_up(k, 8), stride = k + pick({0, 0, 8, 3}), shift = pick({0, 0, 1});
  const Weight w = random_weight(m, padded, w_type);
  const auto inputs = numbers<Bits>(n * stride, x_type), biases = numbers<Bits>(m, x_type);
  std::vector<float> scales;
  for (int64_t row = 0; row < m; ++row) scales.push_back(static_cast<float>(1 + rng() % 7) / 64);
  const bool has_scale = w_type == DType::kInt8 || pick({0, 1}) != 0, has_bias = pick({0, 1}) != 0;
  const auto activation = static_cast<Activation>(rng() % 4);
  Guarded<Bits> x(inputs, shift), bias(biases, 0), y(n * m, pick({0, 1}));
  Guarded<uint8_t> values(w.values, 0), indices(w.indices, 0);
  Guarded<float> scale(scales, 0);
  cuda::few_tokens({x.data(), n, k, stride, values.data(), indices.data(), m, padded,
                    has_scale ? scale.data() : nullptr, has_bias ? bias.data() : nullptr, activation, y.data()},
                   x_type, w_type, nullptr);
  bool ok = y.intact() && x.intact();
  const auto got = y.values();
  for (int64_t token = 0; token < n; ++token) {
    for (int64_t row = 0; row < m; ++row) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double product = exact(inputs[static_cast<std::size_t>(token * stride + i)], x_type) *
                               w.dense[static_cast<std::size_t>(row * padded + i)];
        sum += product, size += std::abs(product);
      }
      const double by = has_scale ? double{scales[static_cast<std::size_t>(row)]} : 1.0;
      double want = sum * by;
      if (has_bias) want += exact(biases[static_cast<std::size_t>(row)], x_type);
      want = activated(want, activation);
      const double value = exact(got[static_cast<std::size_t>(token * m + row)], x_type);
      const double room = std::abs(want) * tolerance(x_type) + (size * by + std::abs(want) + 1) * 2e-6;
      ok = ok && std::abs(value - want) <= room;
    }
  }
  expect(ok, message("few_tokens ", name_of(x_type), " by ", name_of(w_type), ", ", n, " tokens, ", m, " x ", k,
                     " stride ", stride, " shift ", shift, " activation ", static_cast<int>(activation)));
}

void check_types(int64_t n, int64_t m, int64_t k) {
  for (const DType x : kFloats) {
    with_bits(x, [&]<typename Bits>(Bits) {
      check_product<Bits>(x, x, n, m, k);
      check_product<Bits>(x, DType::kInt8, n, m, k);
    });
  }
}

// Rounding of every kind of float to 16 bits, against arithmetic in double.
void test_rounding() {
  bool ok = true;
  const auto check = [&](float value) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const uint32_t got =
          dtype == DType::kFloat16 ? cuda::rounded(value, cuda::Float16{}) : cuda::rounded(value, cuda::BFloat16{});
      const double back = exact(got, dtype), size = std::abs(double{value});
      const bool half = dtype == DType::kFloat16;
      const double most = half ? 65504 : 0x1.FEp127, least = half ? 0x1p-14 : 0x1p-126;
      const int exponent = !std::isfinite(value) ? 0 : size < least ? std::ilogb(least) : std::ilogb(size);
      const double unit = std::ldexp(1.0, exponent - (half ? 10 : 7));
      if (std::isnan(value)) {
        ok = ok && std::isnan(back);
      } else if (size >= most + unit / 2) {
        ok = ok && std::isinf(back) && std::signbit(back) == std::signbit(value);
      } else {
        const double apart = std::abs(back - value);
        const bool tie = apart == unit / 2;
        ok = ok && apart <= unit / 2 && (!tie || got % 2 == 0) && std::signbit(back) == std::signbit(value);
      }
    }
  };
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(rng());
    check(cuda::bits_to_float(bits));
    check(cuda::bits_to_float((bits & 0x87ffffff) | 0x38000000 | (bits & 0x1000) << 15));  // about fp16's range
    check(cuda::bits_to_float(bits & 0xffffe000 & ~(bits << 13)));                         // ties among them
  }
  for (const float value : {0.0f, -0.0f, 65504.0f, 65519.0f, 65520.0f, -65536.0f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f,
                            0x1p-14f, 0x1.ffcp-15f, 3.3895314e38f, INFINITY, -INFINITY}) {
    check(value);
  }
  expect(ok, "rounding to 16 bits");
}

// ---- how a warp touches memory ----

struct Lane final : cuda::AccessLog {
  struct One {
    std::uintptr_t at;
    std::size_t bytes;
  };
  std::vector<One> all;
  void note(const void* memory, std::size_t bytes) override {
    all.push_back({reinterpret_cast<std::uintptr_t>(memory), bytes});
  }
};

// Sectors of 32 bytes that the accesses of a warp to [begin, end) touch, access by access, and bytes they move.
struct Traffic {
  int64_t sectors = 0, bytes = 0, accesses = 0;
};
Traffic traffic(const std::vector<Lane>& lanes, const void* begin, std::size_t size) {
  Traffic found;
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  for (std::size_t i = 0; i < lanes[0].all.size(); ++i) {
    if (lanes[0].all[i].at < first || lanes[0].all[i].at >= first + size) continue;
    std::vector<std::uintptr_t> sectors;
    for (const Lane& lane : lanes) {
      sectors.push_back(lane.all[i].at / 32);
      found.bytes += static_cast<int64_t>(lane.all[i].bytes);
    }
    std::sort(sectors.begin(), sectors.end());
    found.sectors += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
    ++found.accesses;
  }
  return found;
}

template <typename X, typename W, int kTokens>
void check_traffic(const char* name) {
  constexpr int kRows = cuda::FewTokensTuning<kTokens>::kRows;
  constexpr int64_t kColumns = 2 * cuda::kFewTokensKept<W, kTokens>, kWidth = 32 * kColumns;  // one item a lane
  alignas(128) static uint8_t x[kTokens * kWidth * 4], values[kRows * kWidth * 4], indices[kRows * kWidth / 8];
  const cuda::FewTokens a{x,       kTokens,           kWidth, kWidth, values, indices, kRows, kWidth, nullptr,
                          nullptr, Activation::kNone, nullptr};
  std::vector<Lane> lanes(32);
  for (int lane = 0; lane < 32; ++lane) {
    float sums[kRows][kTokens] = {};
    cuda::access_log = &lanes[static_cast<std::size_t>(lane)];
    cuda::few_tokens_item<X, W, Access::kVector>(a, 0, 0, lane, sums);
    cuda::access_log = nullptr;
  }
  const int64_t kept_bytes = kRows * kWidth / 2 * static_cast<int64_t>(sizeof(typename W::Bits));
  const Traffic v = traffic(lanes, values, sizeof values), i = traffic(lanes, indices, sizeof indices);
  expect(v.bytes == kept_bytes && v.sectors == kept_bytes / 32 && v.accesses == kRows,
         message(name, ": values once, one access a lane, no sector twice"));
  expect(i.bytes == kRows * kWidth / 8 && i.sectors == std::max<int64_t>(kRows * kWidth / 8 / 32, kRows),
         message(name, ": indices once, coalesced"));
  const Traffic t = traffic(lanes, x, sizeof x);
  expect(t.bytes == kTokens * kWidth * static_cast<int64_t>(sizeof(typename X::Bits)),
         message(name, ": activations once for all rows of a thread"));
}

template <typename Error, typename F>
bool refused(F f, const char* text) {
  try {
    f();
  } catch (const Error& error) {
    return std::strstr(error.what(), text) != nullptr;
  }
  return false;
}

void test_refusals() {
  alignas(16) static uint8_t memory[1024];
  const auto call = [&](int64_t n, int64_t k, int64_t padded, DType x, DType w) {
    return [=] {
      cuda::few_tokens({memory, n, k, k, memory, memory, 4, padded, nullptr, nullptr, Activation::kNone, memory}, x, w,
                       nullptr);
    };
  };
  const int before = cuda_emulated::launches;
  expect(refused<InvalidArgument>(call(17, 8, 8, DType::kFloat16, DType::kFloat16), "at most 16 tokens, not 17"), "17");
  expect(refused<InvalidArgument>(call(1, 9, 8, DType::kFloat16, DType::kFloat16), "8 columns for inputs of 9"), "k");
  expect(refused<InvalidArgument>(call(1, 8, 8, DType::kFloat16, DType::kBFloat16), "of the input's dtype, or int8"),
         "weights of another dtype");
  expect(refused<InvalidArgument>(call(1, 8, 8, DType::kInt8, DType::kInt8), "inputs of fp32, fp16 and bf16"), "int8");
  call(0, 8, 8, DType::kFloat16, DType::kFloat16)();
  expect(cuda_emulated::launches == before, "refusals, and no tokens, launch nothing");
}

// Rows are split among warps where there are few of them, and never beyond what gives each lane an item.
void test_splits() {
  const auto splits = [](int64_t m, int64_t k) {
    cuda::FewTokens a{};
    a.m = m, a.padded = k;
    return cuda::splits_for(a, 2, 16);
  };
  expect(splits(1 << 20, 8192) == 1, "many rows: no split");
  expect(splits(512, 8192) == 8, "few rows: every warp of a block");
  expect(splits(512, 1024) == 2, "few columns: an item a lane");
  expect(splits(512, 64) == 1, "fewer columns than lanes");
}

// ---- the epilogue of 8-bit products ----

template <typename Out>
void check_epilogue(DType product, DType out, int64_t n, int64_t m) {
  std::vector<uint32_t> sums(static_cast<std::size_t>(n * m));
  for (uint32_t& bits : sums) {
    const int whole = static_cast<int>(rng() % 4001) - 2000;
    bits = product == DType::kInt32 ? static_cast<uint32_t>(whole) : cuda::float_to_bits(static_cast<float>(whole) / 8);
  }
  const auto vector = [](int64_t count) {
    std::vector<float> made;
    for (int64_t i = 0; i < count; ++i) made.push_back(static_cast<float>(1 + rng() % 9) / 64);
    return made;
  };
  Guarded<uint32_t> in(sums, pick({0, 0, 1}));
  Guarded<float> tokens(vector(n), 0), rows(vector(m), 0), bias(vector(m), 0);
  Guarded<Out> y(n * m, pick({0, 0, 1}));
  const bool has_tokens = pick({0, 1}) != 0, has_rows = pick({0, 1}) != 0, has_bias = pick({0, 1}) != 0;
  const auto activation = static_cast<Activation>(rng() % 4);
  cuda::epilogue({in.data(), n, m, has_tokens ? tokens.data() : nullptr, has_rows ? rows.data() : nullptr,
                  has_bias ? bias.data() : nullptr, activation, y.data()},
                 product, out, nullptr);
  bool ok = in.intact() && y.intact() && in.values() == sums;
  const auto got = y.values();
  for (int64_t i = 0; i < n * m; ++i) {
    const auto at = static_cast<std::size_t>(i);
    double want = product == DType::kInt32 ? static_cast<int32_t>(sums[at]) : double{cuda::bits_to_float(sums[at])};
    if (has_tokens) want *= tokens.data()[i / m];
    if (has_rows) want *= rows.data()[i % m];
    want = activated(want + (has_bias ? double{bias.data()[i % m]} : 0), activation);
    if (out == DType::kInt8) {
      const double whole = std::clamp(std::nearbyint(want), -128.0, 127.0), value = static_cast<std::int8_t>(got[at]);
      const bool near_tie = std::abs(std::abs(want - std::trunc(want)) - 0.5) < 1e-3;
      ok = ok && std::abs(value - whole) <= (near_tie ? 1 : 0);
    } else {
      uint32_t bits = 0;
      std::memcpy(&bits, &got[at], sizeof(Out));
      ok = ok && std::abs(exact(bits, out) - want) <= std::abs(want) * tolerance(out) + (std::abs(want) + 1) * 2e-6;
    }
  }
  expect(ok, message("epilogue ", name_of(product), " to ", name_of(out), " ", n, " x ", m, " activation ",
                     static_cast<int>(activation)));
}

void test_epilogue() {
  for (int round = 0; round < 40; ++round) {
    const int64_t n = pick({1, 3, 40}), m = pick({1, 4, 7, 16, 30, 256});
    for (const DType product : {DType::kInt32, DType::kFloat32}) {
      check_epilogue<uint32_t>(product, DType::kFloat32, n, m);
      check_epilogue<uint16_t>(product, DType::kFloat16, n, m);
      check_epilogue<uint16_t>(product, DType::kBFloat16, n, m);
      check_epilogue<uint8_t>(product, DType::kInt8, n, m);
    }
  }
  const std::vector<float> ties = {0.5f, 1.5f, -2.5f, 126.5f, 300, -300, NAN, -0.25f};
  alignas(16) std::int8_t out[8];
  cuda::epilogue({ties.data(), 1, 8, nullptr, nullptr, nullptr, Activation::kNone, out}, DType::kFloat32, DType::kInt8,
                 nullptr);
  const std::int8_t want[8] = {0, 2, -2, 126, 127, -128, 0, 0};
  expect(std::equal(out, out + 8, want), "int8: to nearest even, saturated, NaN is 0");
  expect(refused<InvalidArgument>(
             [&] {
               cuda::epilogue({ties.data(), 1, 8, nullptr, nullptr, nullptr, Activation::kNone, out}, DType::kFloat16,
                              DType::kInt8, nullptr);
             },
             "products of int32 and fp32"),
         "a product of fp16");
  expect(refused<InvalidArgument>(
             [&] {
               cuda::epilogue({ties.data(), 1, 8, nullptr, nullptr, nullptr, Activation::kNone, out}, DType::kFloat32,
                              DType::kInt32, nullptr);
             },
             "outputs of fp32, fp16, bf16 and int8"),
         "an output of int32");
}

}  // namespace

void test_few_tokens() {
  test_epilogue();
  test_rounding();
  test_refusals();
  test_splits();
  check_traffic<cuda::Float16, cuda::Float16, 1>("fp16, 1 token");
  check_traffic<cuda::Float16, cuda::Float16, 16>("fp16, 16 tokens");
  check_traffic<cuda::BFloat16, cuda::Int8, 4>("bf16 by int8");
  check_traffic<cuda::Float32, cuda::Float32, 8>("fp32");
  cuda_emulated::concurrent = true;
#if defined(__aarch64__)  // under qemu every thread of a block costs memory that is not given back, and much time
  check_types(3, 3, 64);
#else
  for (const int64_t n : {1, 2, 3, 4, 5, 8, 9, 16}) check_types(n, pick({1, 3, 7, 18}), pick({8, 64, 96, 520}));
  check_types(2, 5, pick({1, 13, 50}));  // elements
  check_types(3, 3, 2112);               // two warps and more share rows
  check_types(16, 17, 1056);
#endif
  cuda_emulated::concurrent = false;
}
