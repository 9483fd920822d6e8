// Products of narrow numbers against plain double-precision loops: int8 weights, int8 by int8, pairs of bf16, and
// tiles of bf16 and int8 in every combination of types and precision. Random shapes, odd sizes, guarded outputs.
// More than 300 lines: one oracle, and what it is compared with.

#include "cpu/patches.h"
#include "fixtures.h"

#if defined(SPARSE24_EMULATE_AVX512)
#include "amx_emulated.h"
#endif

namespace {

std::size_t index_of(std::int64_t i) { return static_cast<std::size_t>(i); }

// Numbers as memory holds them, and as they are.
struct Numbers {
  std::vector<std::byte> memory;
  std::vector<double> exact;
  const void* data() const { return memory.data(); }
};

template <typename T>
void put(std::vector<std::byte>& memory, T value) {
  const auto* from = reinterpret_cast<const std::byte*>(&value);
  memory.insert(memory.end(), from, from + sizeof value);
}

// values, rounded to what `dtype` holds (int8: whole numbers are expected).
Numbers numbers(const std::vector<float>& values, DType dtype) {
  Numbers out;
  for (float value : values) {
    if (dtype == DType::kFloat32) put(out.memory, value);
    if (dtype == DType::kInt8) put(out.memory, static_cast<std::int8_t>(value));
    if (dtype == DType::kFloat16 || dtype == DType::kBFloat16) {
      value = cut(std::abs(value) < 0x1p-10f ? 0.0f : value, dtype);
      put(out.memory, half_bits(value, dtype));
    }
    out.exact.push_back(value);
  }
  out.memory.reserve(out.memory.size() + 1);  // not null where there are none
  return out;
}

float number_at(const float* memory, DType dtype, std::int64_t i) {
  if (dtype == DType::kFloat32) return memory[i];
  float wide;
  cpu::scalar::kernels.widen(reinterpret_cast<const std::uint16_t*>(memory) + i, dtype, 1, &wide);
  return wide;
}

std::vector<float> whole_numbers(std::int64_t count) {
  std::vector<float> out(index_of(count));
  for (float& value : out) value = static_cast<float>(static_cast<int>(rng() % 255) - 127);
  return out;
}

// A 2:4 weight of a dtype [rows, cols], its dense numbers, and for int8 a scale a row.
struct AnyWeight {
  Compressed compressed;
  std::vector<double> exact;
  std::vector<float> scale;
  Weight weight() const {
    Weight w = compressed.weight;
    w.scale = scale.empty() ? nullptr : scale.data();
    return w;
  }
};

AnyWeight any_weight(DType dtype, std::vector<float> w, std::int64_t rows, std::int64_t cols) {
  AnyWeight out;
  if (dtype == DType::kInt8) {
    for (float& value : w) value = value == 0 ? 0 : std::round(std::min(127.0f, std::max(-127.0f, 40 * value)));
    const Numbers dense = numbers(w, dtype);
    const std::int64_t padded = round_up(cols, 8);
    out.compressed.values.resize(index_of(rows * padded / 2));
    out.compressed.indices.resize(index_of(rows * padded / 8));
    compress(dense.data(), dtype, rows, cols, cols, out.compressed.values.data(), out.compressed.indices.data());
    out.compressed.weight = {out.compressed.values.data(), out.compressed.indices.data(), dtype, rows, padded};
    for (std::int64_t row = 0; row < rows; ++row) out.scale.push_back(0.01f + std::abs(normal()) / 40);
    out.scale[0] = 0;  // is a scale like others
  } else {
    out.compressed = compressed(w, dtype, rows, cols);
  }
  out.exact.assign(w.begin(), w.end());
  return out;
}

// Whether y [n, m] is what x [n, k] and w give, within `error` of the sum of magnitudes and the rounding of y.
struct Oracle {
  const std::vector<double>&w, &bias;
  const AnyWeight& weight;
  std::int64_t m, k;
  Activation activation;
  double error, rounding;

  template <typename X>
  bool holds(float got, std::int64_t row, double x_scale, X x) const {
    double sum = 0, size = 0;
    for (std::int64_t c = 0; c < k; ++c) {
      const double product = w[index_of(row * k + c)] * x(c);
      sum += product, size += std::abs(product);
    }
    const double scale = x_scale * (weight.scale.empty() ? 1 : weight.scale[index_of(row)]);
    const double added = bias.empty() ? 0 : bias[index_of(row)];
    const double exact = activated(sum * scale + added, activation);
    return std::abs(static_cast<double>(got) - exact) <=
           1.2 * (error * (size * std::abs(scale) + std::abs(added)) + rounding * std::abs(exact)) + 1e-6;
  }
};

double rounding_of(DType dtype) {
  return dtype == DType::kFloat32 ? 1e-6 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

// What a kernel's sums may be off, of the sum of magnitudes.
double error_of(DType x, Precision precision) {
  if (x == DType::kInt8) return 2e-7;
  if (precision == Precision::kMedium && x == DType::kFloat32) return 0x1p-7;
  // 2^-16 thrice: what two parts leave of both factors, and the product of their second parts.
  if (x == DType::kFloat16 || (precision == Precision::kHigh && x == DType::kFloat32)) return 3 * 0x1p-16;
  return 1e-6;
}

struct Case {
  std::string name;
  bool (*product)(const Linear&, const cpu::Tuning&);
  DType weight, x, y;
  Precision precision = Precision::kHighest;
};

void test_linear(const Case& c) {
  const std::int64_t m = pick({1, 3, 15, 16, 17, 32, 40, 100, 130}),
                     k = pick({1, 4, 7, 8, 30, 32, 64, 65, 100, 200, 330, 600});
  const std::int64_t n = pick({1, 2, 5, 8, 15, 16, 17, 33, 64, 100, 150}), stride = k + pick({0, 0, 1, 7});
  const AnyWeight weight = any_weight(c.weight, sparse_weight(m, k), m, k);
  const bool int8 = c.x == DType::kInt8, with_bias = pick({0, 1}) != 0;
  const Numbers x = numbers(int8 ? whole_numbers(n * stride) : normals(n * stride), c.x);
  const Numbers bias = numbers(normals(with_bias ? m : 0), c.y);
  std::vector<float> x_scale(index_of(n));
  for (float& scale : x_scale) scale = 0.01f * (1 + std::abs(normal()));
  const std::int64_t y_floats = c.y == DType::kFloat32 ? n * m : (n * m + 1) / 2;
  Guarded y(y_floats);
  Linear args{weight.weight(),
              c.y,
              x.data(),
              with_bias ? bias.data() : nullptr,
              y.data(),
              n,
              m,
              k,
              stride,
              any_activation(),
              static_cast<int>(pick({1, 2, 3}))};
  args.precision = c.precision;
  if (int8) args.x_scale = x_scale.data();
  const cpu::Tuning tuning = any_tuning();
  bool ok = c.product(args, tuning) && y.intact();
  const Oracle oracle{weight.exact,    bias.exact, weight, m, k, args.activation, error_of(c.x, c.precision),
                      rounding_of(c.y)};
  for (std::int64_t t = 0; t < n; ++t) {
    for (std::int64_t row = 0; row < m; ++row) {
      ok = ok && oracle.holds(number_at(y.data(), c.y, t * m + row), row, int8 ? x_scale[index_of(t)] : 1,
                              [&](std::int64_t col) { return x.exact[index_of(t * stride + col)]; });
    }
  }
  const std::string what =
      message(c.name, " linear n ", n, " m ", m, " k ", k, " stride ", stride, " weight ", static_cast<int>(c.weight),
              " x ", static_cast<int>(c.x), " y ", static_cast<int>(c.y), " precision ", static_cast<int>(c.precision));
  expect(ok, what);
  std::vector<float> before(y.data(), y.data() + y_floats);
  args.threads = static_cast<int>(pick({1, 2, 3, 5}));
  cpu::Tuning other = any_tuning();
  other.few_tokens = tuning.few_tokens, other.few_halves = tuning.few_halves;  // they sum up in another order
  c.product(args, other);
  expect(std::memcmp(before.data(), y.data(), index_of(n * m) * (c.y == DType::kFloat32 ? 4 : 2)) == 0,
         "the same bits: " + what);

  // Indices that do not increase, anywhere, are noticed.
  Compressed damaged = weight.compressed;
  const std::size_t at = std::uniform_int_distribution<std::size_t>(0, damaged.indices.size() - 1)(rng);
  const int group = static_cast<int>(pick({0, 4})), first = static_cast<int>(pick({0, 1, 2, 3}));
  const int second = static_cast<int>(pick({0, 1, 2, 3}));
  damaged.indices[at] =
      static_cast<std::uint8_t>((damaged.indices[at] & ~(15 << group)) | (first | second << 2) << group);
  args.weight.indices = damaged.indices.data(), args.weight.values = damaged.values.data();
  expect(c.product(args, any_tuning()) == (first < second), message("indices ", first, ", ", second, ": ", what));

  // A token, or a row, that is not finite spoils its own outputs only.
  if (c.weight == DType::kInt8 || c.x != c.y || n * m < 2) return;
  std::vector<std::byte> spoilt = x.memory;
  const std::size_t bytes = c.x == DType::kFloat32 ? 4 : 2;
  const std::uint32_t inf = c.x == DType::kFloat32 ? 0x7f800000u : c.x == DType::kFloat16 ? 0x7c00u : 0x7f80u;
  const std::int64_t token = static_cast<std::int64_t>(rng() % index_of(n));
  std::memcpy(spoilt.data() + index_of(token * stride) * bytes, &inf, bytes);
  args.weight = weight.weight(), args.x = spoilt.data();
  c.product(args, tuning);
  bool others = true;
  for (std::int64_t i = 0; i < n * m; ++i) {
    if (i / m != token)
      others = others && std::memcmp(reinterpret_cast<std::byte*>(y.data()) + index_of(i) * bytes,
                                     reinterpret_cast<std::byte*>(before.data()) + index_of(i) * bytes, bytes) == 0;
  }
  expect(others, message("Inf in token ", token, ": ", what));
}

struct ConvCase {
  std::string name;
  bool (*product)(const Conv2d&, const cpu::Tuning&);
  DType weight, x, y;
  Precision precision = Precision::kHighest;
};

void test_conv(const ConvCase& c) {
  const std::int64_t groups = pick({1, 1, 2, 3}), channels = pick({1, 3, 4, 8, 20, 66}), o = pick({1, 5, 16, 33, 64});
  const std::int64_t padded_channels = round_up(channels, 4);
  Conv2d a{};
  a.batch = pick({1, 2, 3}), a.in_channels = channels * groups, a.out_channels = o * groups, a.groups = groups;
  a.height = pick({1, 5, 7, 14}), a.width = pick({3, 7, 8, 14});
  a.kernel_h = pick({1, 3, 3, 2}), a.kernel_w = pick({1, 3, 3, 5});
  a.stride_h = pick({1, 1, 2}), a.stride_w = pick({1, 1, 2, 3}), a.pad_h = pick({0, 1, 2}), a.pad_w = pick({0, 1, 2});
  a.dilation_h = pick({1, 1, 2}), a.dilation_w = pick({1, 1, 2});
  a.format = pick({0, 1}) != 0 ? MemoryFormat::kChannelsLast : MemoryFormat::kContiguous;
  a.activation = any_activation(), a.threads = static_cast<int>(pick({1, 2, 3}));
  const std::int64_t out_h = out_size(a.height, a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  const std::int64_t out_w = out_size(a.width, a.kernel_w, a.stride_w, a.pad_w, a.dilation_w), plane = out_h * out_w;
  if (out_h <= 0 || out_w <= 0) return;
  const std::int64_t k = a.kernel_h * a.kernel_w * padded_channels;
  auto w = sparse_weight(a.out_channels, k);
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (static_cast<std::int64_t>(i) % padded_channels >= channels) w[i] = 0;
  }
  const AnyWeight weight = any_weight(c.weight, w, a.out_channels, k);
  const std::int64_t count = a.batch * a.in_channels * a.height * a.width, outs = a.batch * a.out_channels * plane;
  const bool int8 = c.x == DType::kInt8, last = a.format == MemoryFormat::kChannelsLast, with_bias = pick({0, 1}) != 0;
  const Numbers x = numbers(int8 ? whole_numbers(count) : normals(count), c.x);
  const Numbers bias = numbers(normals(with_bias ? a.out_channels : 0), c.y);
  std::vector<float> x_scale(index_of(a.batch * plane));
  for (float& scale : x_scale) scale = 0.01f * (1 + std::abs(normal()));
  Guarded y(c.y == DType::kFloat32 ? outs : (outs + 1) / 2);
  a.weight = weight.weight(), a.dtype = c.y, a.x = x.data(), a.y = y.data(), a.precision = c.precision;
  a.bias = with_bias ? bias.data() : nullptr;
  if (int8) a.x_scale = x_scale.data();
  bool ok = c.product(a, any_tuning()) && y.intact();
  const Oracle oracle{weight.exact,    bias.exact, weight, a.out_channels, k, a.activation, error_of(c.x, c.precision),
                      rounding_of(c.y)};
  for (std::int64_t i = 0; i < a.batch * plane; ++i) {
    const std::int64_t image = i / plane, oy = i % plane / out_w, ox = i % out_w;
    for (std::int64_t row = 0; row < a.out_channels; ++row) {
      const auto at = [&](std::int64_t col) {
        const std::int64_t tap = col / padded_channels, channel = col % padded_channels;
        const std::int64_t iy = oy * a.stride_h + tap / a.kernel_w * a.dilation_h - a.pad_h;
        const std::int64_t ix = ox * a.stride_w + tap % a.kernel_w * a.dilation_w - a.pad_w;
        if (channel >= channels || iy < 0 || iy >= a.height || ix < 0 || ix >= a.width) return 0.0;
        const std::int64_t ch = row / o * channels + channel;
        return x.exact[index_of(last ? ((image * a.height + iy) * a.width + ix) * a.in_channels + ch
                                     : ((image * a.in_channels + ch) * a.height + iy) * a.width + ix)];
      };
      const std::int64_t to = last ? i * a.out_channels + row : (image * a.out_channels + row) * plane + i % plane;
      ok = ok && oracle.holds(number_at(y.data(), c.y, to), row, int8 ? x_scale[index_of(i)] : 1, at);
    }
  }
  expect(ok, message(c.name, " conv ", last ? "channels_last" : "contiguous", " weight ", static_cast<int>(c.weight),
                     " x ", static_cast<int>(c.x), " y ", static_cast<int>(c.y), " precision ",
                     static_cast<int>(c.precision), " groups ", groups, " c ", channels, " o ", o, " hw ", a.height,
                     "x", a.width, " kernel ", a.kernel_h, "x", a.kernel_w, " stride ", a.stride_h, ",", a.stride_w));
}

// To nearest even, with a scale of its own or a given one; what is not finite gives NaN, zeros give zero.
// Windows of a convolution's pixels, in runs of any length, against a loop over their numbers.
void test_windows() {
  Conv2d a{};
  a.batch = pick({1, 2, 3}), a.in_channels = pick({1, 3, 4, 8, 66}), a.out_channels = 1, a.groups = 1;
  a.height = pick({1, 5, 7, 14}), a.width = pick({3, 7, 8, 14});
  a.kernel_h = pick({1, 3, 2}), a.kernel_w = pick({1, 3, 5});
  a.stride_h = pick({1, 1, 2}), a.stride_w = pick({1, 1, 3}), a.pad_h = pick({0, 1, 2}), a.pad_w = pick({0, 1, 2});
  a.dilation_h = pick({1, 1, 2}), a.dilation_w = pick({1, 1, 2});
  a.format = MemoryFormat::kChannelsLast, a.threads = static_cast<int>(pick({1, 2, 3}));
  const std::int64_t out_h = out_size(a.height, a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  const std::int64_t out_w = out_size(a.width, a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
  if (out_h <= 0 || out_w <= 0) return;
  std::vector<std::int16_t> x(index_of(a.batch * a.height * a.width * a.in_channels));
  for (std::int16_t& number : x) number = static_cast<std::int16_t>(rng() % 30000 + 1);
  a.x = x.data();
  const cpu::Patches patches(a, 2);
  const std::int64_t padded = round_up(a.in_channels, 4), pixels = a.batch * out_h * out_w;
  bool ok = patches.out_h == out_h && patches.out_w == out_w;
  const std::int64_t columns = a.kernel_h * a.kernel_w * padded;
  ok = ok && patches.columns() == columns;
  for (std::int64_t first = 0; first < pixels;) {
    const std::int64_t count = std::min(pixels - first, pick({1, 7, 100}));
    std::vector<std::int16_t> rows(index_of(count * columns), -1);
    patches.write(first, count, reinterpret_cast<std::byte*>(rows.data()));
    for (std::int64_t at = 0; at < count * columns; ++at) {
      const std::int64_t pixel = first + at / columns, tap = at % columns / padded, channel = at % padded;
      const std::int64_t iy = pixel / out_w % out_h * a.stride_h + tap / a.kernel_w * a.dilation_h - a.pad_h;
      const std::int64_t ix = pixel % out_w * a.stride_w + tap % a.kernel_w * a.dilation_w - a.pad_w;
      const bool none = channel >= a.in_channels || iy < 0 || iy >= a.height || ix < 0 || ix >= a.width;
      const std::int64_t image = pixel / (out_h * out_w);
      const std::int16_t wanted =
          none ? std::int16_t{0} : x[index_of(((image * a.height + iy) * a.width + ix) * a.in_channels + channel)];
      ok = ok && rows[index_of(at)] == wanted;
    }
    first += count;
  }
  expect(ok, message("windows c ", a.in_channels, " hw ", a.height, "x", a.width, " kernel ", a.kernel_h, "x",
                     a.kernel_w, " stride ", a.stride_h, ",", a.stride_w, " pad ", a.pad_h, ",", a.pad_w));
}

void test_quantize(const cpu::Kernels& kernels) {
  const std::int64_t count = pick({1, 7, 8, 33, 100});
  auto x = normals(count);
  const float given = pick({0, 1}) != 0 ? 0.02f : 0.0f;
  std::vector<std::int8_t> q(index_of(count));
  const float scale = kernels.quantize(x.data(), count, given, q.data());
  float largest = 0;
  for (const float value : x) largest = std::max(largest, std::abs(value));
  bool ok = given > 0 ? scale == given : std::abs(scale - largest / 127) <= 1e-6f * scale;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::min(127.0, std::max(-127.0, double{x[i]} / double{scale}));
    ok = ok && std::abs(q[i] - exact) <= 0.5 + 1e-4;
  }
  expect(ok, message(kernels.name, " quantize ", count, " scale ", given));
  x[0] = std::numeric_limits<float>::infinity();
  expect(std::isnan(kernels.quantize(x.data(), count, given, q.data())), "Inf has no scale");
  std::fill(x.begin(), x.end(), -0.0f);
  expect(kernels.quantize(x.data(), count, 0, q.data()) == 0 && q[0] == 0, "zeros have the scale zero");
}

void test_tiles(const cpu::Kernels& kernels) {
  constexpr DType kWeights[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
  for (const DType weight : kWeights) {
    for (const DType x : kWeights) {
      const bool same = x == weight || x == DType::kFloat32;
      if (weight == DType::kInt8 ? false : !same) continue;
      const DType y = x != DType::kInt8 ? x : kWeights[pick({0, 1, 2})];
      const auto precision = static_cast<Precision>(pick({0, 1, 2}));
      const auto used = x == DType::kFloat32 ? precision : Precision::kHighest;
      test_linear({kernels.name, kernels.linear_tiles, weight, x, y, used});
      test_conv({kernels.name, kernels.conv2d_tiles, weight, x, y, used});
    }
  }
}

}  // namespace

int main() {
  std::vector<const cpu::Kernels*> all = {&cpu::scalar::kernels};
#if defined(__x86_64__)
  if (*cpu::avx2::kernels.why_not() == 0) {
    all.push_back(&cpu::avx2::kernels);
    for (const cpu::Kernels* each : {&cpu::avx512::kernels, &cpu::avx512_vnni::kernels, &cpu::amx::kernels}) {
#if !defined(SPARSE24_EMULATE_AVX512)
      if (*each->why_not() == 0)
#endif
        all.push_back(each);
    }
  }
#elif defined(__aarch64__)
  all.push_back(&cpu::neon::kernels);
#endif
  for (int round = 0; round < 40; ++round) {
    test_windows();
    for (const cpu::Kernels* kernels : all) {
      const DType y = DType::kFloat32;
      test_quantize(*kernels);
      test_linear({kernels->name, kernels->linear_int8, DType::kInt8, DType::kInt8, y});
      test_linear({kernels->name, kernels->linear, DType::kInt8, DType::kFloat32, y});
      test_conv({kernels->name, kernels->conv2d, DType::kInt8, DType::kFloat32, y});
      if (kernels->linear_bf16 != nullptr) {
        test_linear({kernels->name, kernels->linear_bf16, DType::kBFloat16, DType::kBFloat16, y});
        test_linear({kernels->name, kernels->linear_bf16, DType::kInt8, DType::kBFloat16, y});
      }
      if (kernels->linear_tiles != nullptr) test_tiles(*kernels);
#if defined(SPARSE24_EMULATE_AVX512)
      if (emulated::tiles_in_use() != 0) expect(false, "tiles are released after a product");
#endif
    }
  }
  std::printf("kernels:");
  for (const cpu::Kernels* kernels : all) std::printf(" %s", kernels->name);
  std::printf("\n%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
