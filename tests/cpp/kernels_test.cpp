// Every kernel table of this machine against plain double-precision loops: random shapes, odd sizes,
// guard bytes around every buffer that is written. Run plain, under -fsanitize=address,undefined, and
// (cross-compiled) under an emulator. Closes with a line "N passed, N failed".
// More than 300 lines: one plain loop for every kernel of the table, beside its comparison.

#include "fixtures.h"
#include "permutation_cases.h"

namespace {

// The error of an fp32 sum of `terms` products against the exact one, for values of size about 1.
bool near(float got, double exact, std::int64_t terms) {
  const double tolerance = 2e-6 * (1 + std::abs(exact)) * std::max(1.0, std::sqrt(static_cast<double>(terms)) / 4);
  return std::abs(static_cast<double>(got) - exact) <= tolerance;
}

void test_linear(const cpu::Kernels& kernels) {
  const std::int64_t m = pick({1, 3, 8, 15, 16, 17, 40, 100, 520}), k = pick({1, 4, 7, 8, 30, 64, 65, 100, 200, 330});
  const std::int64_t n = pick({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 31, 64, 113, 260}),
                     stride = k + pick({0, 0, 1, 7});
  const Activation activation = any_activation();
  const DType dtype = any_dtype();
  auto w = sparse_weight(m, k);
  const auto x = normals(n * stride), bias = normals(m);
  const bool with_bias = pick({0, 1}) != 0;
  const Compressed weight = compressed(w, dtype, m, k);
  Guarded y(n * m);
  Linear args{weight.weight,
              DType::kFloat32,
              x.data(),
              with_bias ? bias.data() : nullptr,
              y.data(),
              n,
              m,
              k,
              stride,
              activation,
              static_cast<int>(pick({1, 2, 3}))};
  const cpu::Tuning tuning = any_tuning();
  bool ok = kernels.linear(args, tuning) && y.intact();
  for (std::int64_t t = 0; t < n; ++t) {
    for (std::int64_t row = 0; row < m; ++row) {
      double sum = with_bias ? bias[static_cast<std::size_t>(row)] : 0.0;
      for (std::int64_t c = 0; c < k; ++c) {
        sum += double{x[static_cast<std::size_t>(t * stride + c)]} * double{w[static_cast<std::size_t>(row * k + c)]};
      }
      ok = ok && near(y.data()[t * m + row], activated(sum, activation), k);
    }
  }
  const std::string what = message(kernels.name, " linear n ", n, " m ", m, " k ", k, " stride ", stride, " dtype ",
                                   static_cast<int>(dtype), " activation ", static_cast<int>(activation), " bias ",
                                   with_bias, " few ", tuning.few_tokens, " streams ", tuning.streams);
  expect(ok, what);

  // Threads and tiles change no bit.
  std::vector<float> before(y.data(), y.data() + y.size());
  args.threads = static_cast<int>(pick({1, 2, 3, 5}));
  cpu::Tuning other = tuning;
  other.vectors = static_cast<int>(pick({1, 2, 9})), other.streams = static_cast<int>(pick({1, 2, 4}));
  other.tile_cols = static_cast<int>(pick({32, 64})), other.sums_bytes = pick({4096, 100000});
  kernels.linear(args, other);
  expect(std::memcmp(before.data(), y.data(), before.size() * sizeof(float)) == 0, "the same bits: " + what);
}

// One group anywhere whose indices do not increase is noticed, whatever the way and the threads.
void test_disorder(const cpu::Kernels& kernels) {
  const std::int64_t m = pick({1, 5, 33, 130}), k = pick({4, 8, 40, 64, 136, 264}), n = pick({1, 2, 5, 9, 40});
  auto w = sparse_weight(m, k);
  const auto x = normals(n * k);
  Compressed weight = compressed(w, any_dtype(), m, k);
  std::vector<float> y(static_cast<std::size_t>(n * m));
  const Linear args{weight.weight,
                    DType::kFloat32,
                    x.data(),
                    nullptr,
                    y.data(),
                    n,
                    m,
                    k,
                    k,
                    Activation::kNone,
                    static_cast<int>(pick({1, 2, 3}))};
  const std::size_t at = std::uniform_int_distribution<std::size_t>(0, weight.indices.size() - 1)(rng);
  const int group = static_cast<int>(pick({0, 4})), first = static_cast<int>(pick({0, 1, 2, 3}));
  const int second = static_cast<int>(pick({0, 1, 2, 3}));
  weight.indices[at] =
      static_cast<std::uint8_t>((weight.indices[at] & ~(15 << group)) | (first | second << 2) << group);
  expect(kernels.linear(args, any_tuning()) == (first < second),
         message(kernels.name, " indices ", first, ", ", second, " of m ", m, " k ", k, " n ", n));
}

// Widening is exact; narrowing rounds to nearest even, and keeps NaN and Inf what they are.
void test_halves(const cpu::Kernels& kernels) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> all(1 << 16), back(1 << 16);
    std::vector<float> wide(1 << 16);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
    kernels.widen(all.data(), dtype, 1 << 16, wide.data());
    kernels.narrow(wide.data(), dtype, 1 << 16, back.data());
    const unsigned inf = dtype == DType::kFloat16 ? 0x7c00 : 0x7f80;
    bool ok = true;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool nan = (i & 0x7fff) > inf;
      ok = ok && (nan ? std::isnan(wide[i]) && (back[i] & 0x7fffu) > inf : back[i] == i);
    }
    for (std::size_t i = 0; (i & 0x7fff) < inf && i + 1 < all.size(); i += 7) {  // between neighbours
      if (((i + 1) & 0x7fff) > inf) continue;
      const double low = wide[i],
                   high = (i + 1) % 0x8000 == inf ? (dtype == DType::kFloat16 ? 65536.0 : 0x1p128) : wide[i + 1];
      for (const double part : {0.25, 0.5, 0.75}) {
        const float between = static_cast<float>(low + part * (high - low));
        std::uint16_t got;
        kernels.narrow(&between, dtype, 1, &got);
        const std::size_t even = i % 2 == 0 ? i : i + 1;
        ok = ok && got == (part < 0.5 ? i : part > 0.5 ? i + 1 : even);
      }
    }
    expect(ok, message(kernels.name, " 16 bits, dtype ", static_cast<int>(dtype)));
  }
}

void test_conv(const cpu::Kernels& kernels) {
  const std::int64_t groups = pick({1, 1, 2, 3}), c = pick({1, 3, 4, 8, 20, 66}), o = pick({1, 5, 16, 33});
  const std::int64_t padded_c = round_up(c, 4);
  Conv2d a{};
  a.batch = pick({1, 2, 3}), a.in_channels = c * groups, a.out_channels = o * groups, a.groups = groups;
  a.height = pick({1, 5, 7, 14, 23}), a.width = pick({3, 7, 8, 14, 33});
  a.kernel_h = pick({1, 3, 3, 2}), a.kernel_w = pick({1, 3, 3, 5});
  a.stride_h = pick({1, 1, 2}), a.stride_w = pick({1, 1, 2, 3}), a.pad_h = pick({0, 1, 2}), a.pad_w = pick({0, 1, 2});
  a.dilation_h = pick({1, 1, 2}), a.dilation_w = pick({1, 1, 2});
  a.format = pick({0, 1}) != 0 ? MemoryFormat::kChannelsLast : MemoryFormat::kContiguous;
  a.activation = any_activation(), a.threads = static_cast<int>(pick({1, 2, 3}));
  const std::int64_t out_h = out_size(a.height, a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  const std::int64_t out_w = out_size(a.width, a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
  if (out_h <= 0 || out_w <= 0) return;

  const std::int64_t k = a.kernel_h * a.kernel_w * padded_c;
  auto w = sparse_weight(a.out_channels, k);  // k = (r, s, c); channels beyond c are padding
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (static_cast<std::int64_t>(i) % padded_c >= c) w[i] = 0;
  }
  const auto x = normals(a.batch * a.in_channels * a.height * a.width), bias = normals(a.out_channels);
  const bool last = a.format == MemoryFormat::kChannelsLast, with_bias = pick({0, 1}) != 0;
  const auto x_at = [&](std::int64_t n, std::int64_t ch, std::int64_t y, std::int64_t xx) {
    const std::int64_t at = last ? ((n * a.height + y) * a.width + xx) * a.in_channels + ch
                                 : ((n * a.in_channels + ch) * a.height + y) * a.width + xx;
    return double{x[static_cast<std::size_t>(at)]};
  };
  const Compressed weight = compressed(w, any_dtype(), a.out_channels, k);
  Guarded y(a.batch * a.out_channels * out_h * out_w);
  a.weight = weight.weight, a.dtype = DType::kFloat32, a.x = x.data(), a.y = y.data();
  a.bias = with_bias ? bias.data() : nullptr;
  const bool in_order = kernels.conv2d(a, any_tuning());
  bool ok = in_order && y.intact();
  for (std::int64_t n = 0; n < a.batch; ++n) {
    for (std::int64_t out = 0; out < a.out_channels; ++out) {
      for (std::int64_t oy = 0; oy < out_h; ++oy) {
        for (std::int64_t ox = 0; ox < out_w; ++ox) {
          double sum = with_bias ? bias[static_cast<std::size_t>(out)] : 0.0;
          for (std::int64_t r = 0; r < a.kernel_h; ++r) {
            for (std::int64_t s = 0; s < a.kernel_w; ++s) {
              const std::int64_t iy = oy * a.stride_h + r * a.dilation_h - a.pad_h;
              const std::int64_t ix = ox * a.stride_w + s * a.dilation_w - a.pad_w;
              if (iy < 0 || iy >= a.height || ix < 0 || ix >= a.width) continue;
              for (std::int64_t ch = 0; ch < c; ++ch) {
                sum += x_at(n, out / o * c + ch, iy, ix) *
                       double{w[static_cast<std::size_t>(out * k + (r * a.kernel_w + s) * padded_c + ch)]};
              }
            }
          }
          const std::int64_t at = last ? ((n * out_h + oy) * out_w + ox) * a.out_channels + out
                                       : ((n * a.out_channels + out) * out_h + oy) * out_w + ox;
          ok = ok && near(y.data()[at], activated(sum, a.activation), k);
        }
      }
    }
  }
  expect(ok, message(kernels.name, " conv ", last ? "channels_last" : "contiguous", " batch ", a.batch, " groups ",
                     groups, " c ", c, " o ", o, " hw ", a.height, "x", a.width, " kernel ", a.kernel_h, "x",
                     a.kernel_w, " stride ", a.stride_h, ",", a.stride_w, " pad ", a.pad_h, ",", a.pad_w, " dilation ",
                     a.dilation_h, ",", a.dilation_w));
}

// Kept by rank inside every group of four along the middle axis; ties to the lower index.
template <typename Bits>
void test_mask(const cpu::Kernels& kernels, void (*mask24)(const cpu::Mask24&), const char* width) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const std::int64_t outer = pick({1, 2, 5}), length = pick({1, 2, 3, 4, 8, 30, 64, 257}),
                     inner = pick({1, 1, 1, 3, 9, 25, 40});
  std::vector<Bits> w(static_cast<std::size_t>(outer * length * inner));
  const bool ties = pick({0, 1}) != 0;
  for (Bits& bits : w) bits = static_cast<Bits>(ties ? (rng() & 3) | (rng() & 1) << (8 * sizeof(Bits) - 1) : rng());
  const std::vector<Bits> before = w;
  std::vector<std::uint8_t> mask(w.size(), 2);
  const bool prune = pick({0, 1}) != 0;
  mask24({w.data(), outer, length, inner, mask.data(), prune, static_cast<int>(pick({1, 2}))});
  bool ok = true;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const std::int64_t at = static_cast<std::int64_t>(i), p = at / inner % length, first = p / 4 * 4;
    int ahead = 0;
    for (std::int64_t q = first; q < std::min(first + 4, length); ++q) {
      const Bits mine = before[i] & kMagnitude,
                 other = before[static_cast<std::size_t>(at + (q - p) * inner)] & kMagnitude;
      ahead += other > mine || (other == mine && q < p);
    }
    const bool keep = ahead < 2;
    ok = ok && mask[i] == keep && w[i] == (prune && !keep ? Bits{0} : before[i]);
  }
  expect(ok, message(kernels.name, " mask ", width, " [", outer, ", ", length, ", ", inner, "] ties ", ties));
}

// Packed, unpacked and applied, with a last byte that is cut short, by several threads too.
template <typename Bits>
void test_mask_bits() {
  const std::int64_t count = pick({0, 1, 7, 8, 9, 1000, 300001});
  const auto size = static_cast<std::size_t>(count);
  std::vector<std::uint8_t> mask(size), bits((size + 7) / 8, 0xff), back(size, 2);
  for (std::uint8_t& kept : mask) kept = rng() & 1;
  std::vector<Bits> numbers(size);
  for (Bits& number : numbers) number = static_cast<Bits>(rng() | 1);
  const std::vector<Bits> before = numbers;
  pack_mask(mask.data(), count, bits.data(), 2);
  unpack_mask(bits.data(), count, back.data(), 2);
  apply_mask_bits(numbers.data(), sizeof(Bits), count, bits.data(), 2);
  bool ok = back == mask;
  for (std::size_t i = 0; i < size; ++i) {
    ok = ok && (bits[i / 8] >> (i % 8) & 1) == mask[i] && numbers[i] == (mask[i] != 0 ? before[i] : Bits{0});
  }
  expect(ok, message("mask bits, ", count, " of ", sizeof(Bits), " bytes"));
}

void test_transposable(const cpu::Kernels& kernels) {
  const std::int64_t rows = 4 * pick({1, 2, 5}), cols = 4 * pick({1, 3, 8, 17, 33});
  auto w = normals(rows * cols);
  if (pick({0, 1}) != 0) w[0] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::uint8_t> mask(w.size(), 2);
  kernels.transposable_mask(w.data(), DType::kFloat32, rows, cols, mask.data(), 2);
  bool ok = true;
  for (std::int64_t top = 0; top < rows; top += 4) {
    for (std::int64_t left = 0; left < cols; left += 4) {
      const auto size = [&](int i) {
        const float v = std::abs(w[static_cast<std::size_t>((top + i / 4) * cols + left + i % 4)]);
        return std::isnan(v) ? 1e30 : double{v};
      };
      double best = 0, got = 0;
      for (int bits = 0; bits < 1 << 16; ++bits) {
        int columns[4] = {};
        bool legal = true;
        for (int r = 0; r < 4 && legal; ++r) {
          const int row = bits >> (4 * r) & 15;
          legal = row == 3 || row == 5 || row == 6 || row == 9 || row == 10 || row == 12;
          for (int c = 0; c < 4; ++c) columns[c] += row >> c & 1;
        }
        for (const int count : columns) legal = legal && count == 2;
        if (!legal) continue;
        double sum = 0;
        bool chosen = true;
        for (int i = 0; i < 16; ++i) {
          if (bits >> i & 1) sum += size(i);
          chosen = chosen && mask[static_cast<std::size_t>((top + i / 4) * cols + left + i % 4)] == (bits >> i & 1);
        }
        best = std::max(best, sum);
        if (chosen) got = sum;
      }
      ok = ok && got > 0 && got >= best * (1 - 1e-6);
    }
  }
  expect(ok, message(kernels.name, " transposable ", rows, "x", cols));
}

template <typename F>
bool refused(F f, const char* text) {
  try {
    f();
  } catch (const InvalidArgument& error) {
    return std::strstr(error.what(), text) != nullptr;
  }
  return false;
}

void test_format() {
  const std::int64_t rows = pick({1, 3, 10}), cols = pick({1, 4, 5, 8, 30, 64});
  const std::int64_t padded = round_up(cols, 8);
  auto w = sparse_weight(rows, cols);
  w[0] = -0.0f;
  std::vector<float> values(static_cast<std::size_t>(rows * padded / 2)), back(static_cast<std::size_t>(rows * padded));
  std::vector<std::uint8_t> indices(static_cast<std::size_t>(rows * padded / 8));
  compress(w.data(), DType::kFloat32, rows, cols, cols, values.data(), indices.data());
  expand(values.data(), indices.data(), DType::kFloat32, rows, padded, back.data());
  bool ok = true;
  for (std::int64_t i = 0; i < rows * padded; ++i) {
    const float was = i % padded < cols ? w[static_cast<std::size_t>(i / padded * cols + i % padded)] : 0.0f;
    ok = ok && back[static_cast<std::size_t>(i)] == was &&
         !(was == 0 && std::signbit(back[static_cast<std::size_t>(i)]));
  }
  expect(ok, message("format ", rows, "x", cols));

  indices.back() = 0;  // both indices of a group equal
  expect(refused([&] { expand(values.data(), indices.data(), DType::kFloat32, rows, padded, back.data()); },
                 "damaged indices"),
         "equal indices are refused");
  std::vector<float> dense(8, 1.0f);
  expect(refused([&] { compress(dense.data(), DType::kFloat32, 1, 8, 8, values.data(), indices.data()); },
                 "row 0, group 0"),
         "dense weights are refused");
  std::int64_t order[6];
  const ColumnSearch search{dense.data(), 1, 6, 6, 6, 0, 1e-4, 8, order, nullptr, 1};
  expect(refused([&] { search_columns(search); }, "a multiple of 4"), "columns in a block of six are refused");
}

}  // namespace

int main() {
  std::vector<const cpu::Kernels*> all = {&cpu::scalar::kernels};
#if defined(__x86_64__)
  if (*cpu::avx2::kernels.why_not() == 0) {
    all.push_back(&cpu::avx2::kernels);
#if !defined(SPARSE24_EMULATE_AVX512)
    if (*cpu::avx512::kernels.why_not() == 0)
#endif
      all.push_back(&cpu::avx512::kernels);
  }
#elif defined(__aarch64__)
  all.push_back(&cpu::neon::kernels);
#endif
  for (int round = 0; round < 60; ++round) {
    test_format();
    test_assignment();
    test_search();
    test_mask_bits<std::uint16_t>();
    test_mask_bits<std::uint32_t>();
    test_mask_bits<std::uint64_t>();
    for (const cpu::Kernels* kernels : all) {
      test_max_plus(*kernels);
      test_linear(*kernels);
      test_disorder(*kernels);
      test_conv(*kernels);
      test_mask<std::uint32_t>(*kernels, kernels->mask24_32, "32");
      test_mask<std::uint16_t>(*kernels, kernels->mask24_16, "16");
      if (round < 5) test_transposable(*kernels);
      if (round == 0) test_halves(*kernels);
    }
  }
  std::printf("kernels:");
  for (const cpu::Kernels* kernels : all) std::printf(" %s", kernels->name);
  std::printf("\n%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
