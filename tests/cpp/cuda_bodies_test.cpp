// The CUDA kernels on the CPU: csrc/cuda/kernels.cu itself, its indexing and launches included, compiled
// against cuda_emulated/cuda_runtime.h (by cuda_launch_test.cpp) and compared bit for bit with the CPU kernels,
// with a naive im2col, and with quantization in double. Every dtype, ragged and aligned shapes, misaligned
// pointers, special values, guard bytes around every buffer. Closes with a line "N passed, N failed".
// More than 300 lines: one plain loop for every kernel, beside its comparison.

#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "cuda/access.cuh"
#include "cuda/kernels.h"
#include "cuda/quantize.cuh"
#include "cuda_fixtures.h"
#include "error.h"

void test_launches();    // cuda_launch_test.cpp
void test_few_tokens();  // cuda_few_tokens_test.cpp

namespace {

using namespace cuda_test;

// ---- masks ----

void test_masks() {
  for (const DType dtype : kFloats) {
    with_bits(dtype, [&]<typename Bits>(Bits) {
      for (const Fill fill : kFills) {
        const int64_t rows = pick({1, 3, 10}), cols = pick({1, 2, 3, 4, 5, 7, 8, 12, 20, 30, 64, 257, 1024, 1028});
        const int64_t shift = pick({0, 0, 1, 3});
        const auto weight = filled<Bits>(rows * cols, dtype, fill);
        const std::string what =
            message(name_of(dtype), " ", rows, "x", cols, " fill ", static_cast<int>(fill), " shift ", shift);
        std::vector<uint8_t> expected(weight.size());
        auto pruned = weight;
        nm_prune(pruned.data(), dtype, rows, cols, 1, 2, 4, expected.data(), 1);

        Guarded<Bits> w(weight, shift);
        Guarded<uint8_t> mask(rows * cols, pick({0, 0, 1}));
        cuda::mask24(w.data(), dtype, rows, cols, mask.data(), nullptr);
        expect(mask.values() == expected && mask.intact() && w.values() == weight && w.intact(), "mask24 " + what);

        const bool with_mask = pick({0, 1}) != 0;
        Guarded<uint8_t> again(rows * cols, 0);
        cuda::prune24(w.data(), dtype, rows, cols, with_mask ? again.data() : nullptr, nullptr);
        expect(w.values() == pruned && w.intact() && again.intact() && (!with_mask || again.values() == expected),
               "prune24 " + what);
      }
    });
  }
}

void test_transposable() {
  for (const DType dtype : kFloats) {
    with_bits(dtype, [&]<typename Bits>(Bits) {
      for (const Fill fill : kFills) {
        const int64_t rows = 4 * pick({1, 2, 5}), cols = 4 * pick({1, 2, 3, 8, 33}), shift = pick({0, 0, 2});
        const auto weight = filled<Bits>(rows * cols, dtype, fill);
        std::vector<uint8_t> expected(weight.size());
        transposable_mask(weight.data(), dtype, rows, cols, expected.data(), 1);
        Guarded<Bits> w(weight, shift);
        Guarded<uint8_t> mask(rows * cols, pick({0, 0, 1}));
        cuda::transposable_mask(w.data(), dtype, rows, cols, mask.data(), nullptr);
        expect(mask.values() == expected && mask.intact() && w.intact(),
               message("transposable_mask ", name_of(dtype), " ", rows, "x", cols, " fill ", static_cast<int>(fill),
                       " shift ", shift));
      }
    });
  }
}

// ---- canonical format ----

// At most two of every four columns keep their bits; others become zero, of either sign where there are two.
template <typename Bits>
void make_sparse(std::vector<Bits>& dense, int64_t row_stride, DType dtype) {
  const bool two_zeros = dtype != DType::kInt8 && dtype != DType::kInt32;
  const Bits minus_zero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  for (std::size_t begin = 0; begin < dense.size(); begin += static_cast<std::size_t>(row_stride)) {
    for (int64_t group = 0; group < row_stride; group += 4) {
      const int64_t first = pick({0, 1, 2, 3}), second = pick({0, 1, 2, 3});
      for (int64_t i = 0; i < 4 && group + i < row_stride; ++i) {
        if (i == first || i == second) continue;
        dense[begin + static_cast<std::size_t>(group + i)] = two_zeros && pick({0, 1, 2}) == 0 ? minus_zero : Bits{0};
      }
    }
  }
}

template <typename Bits>
void test_format_of(DType dtype, Fill fill) {
  const int64_t rows = pick({1, 3, 10}), cols = pick({1, 4, 5, 8, 24, 30, 32, 64, 100, 128, 260});
  const int64_t stride = cols + pick({0, 0, 1, 8, 32}), padded = round_up(cols, 8), shift = pick({0, 0, 1});
  auto dense = filled<Bits>(rows * stride, dtype, fill);
  make_sparse(dense, stride, dtype);
  const int64_t groups = cols / 4 + (cols % 4 == 3), crowded = cols < 3 ? 0 : pick({0, 0, 0, 0, 1, 5});
  for (int64_t i = 0; i < crowded; ++i) {
    const int64_t group = std::uniform_int_distribution<int64_t>(0, rows * groups - 1)(rng);
    std::fill_n(dense.begin() + group / groups * stride + group % groups * 4, 3, Bits{1});
  }
  const std::string what = message(name_of(dtype), " ", rows, "x", cols, " stride ", stride, " shift ", shift, " fill ",
                                   static_cast<int>(fill));

  std::vector<Bits> values(static_cast<std::size_t>(rows * padded / 2)),
      expanded(static_cast<std::size_t>(rows * padded));
  std::vector<uint8_t> indices(static_cast<std::size_t>(rows * padded / 8));
  std::string refusal;
  try {
    compress(dense.data(), dtype, rows, cols, stride, values.data(), indices.data());
  } catch (const InvalidArgument& error) {
    refusal = error.what();
  }
  Guarded<Bits> source(dense, shift), kept(rows * padded / 2, pick({0, 0, 1}));
  Guarded<uint8_t> bytes(rows * padded / 8, 0);
  int64_t first_crowded = INT64_MAX;
  cuda::compress(source.data(), dtype, rows, cols, stride, kept.data(), bytes.data(), &first_crowded, nullptr);
  if (!refusal.empty()) {
    const std::string place =
        message("row ", first_crowded / (padded / 4), ", group ", first_crowded % (padded / 4), " ");
    expect(crowded > 0 && refusal.find(place) != std::string::npos && kept.intact() && bytes.intact(),
           "compress, crowded, " + what);
    check_indices(bytes.values().data(), rows, padded);  // throws where they do not increase
    return;
  }
  expect(first_crowded == INT64_MAX && kept.values() == values && bytes.values() == indices && kept.intact() &&
             bytes.intact() && source.values() == dense && source.intact(),
         "compress " + what);

  expand(values.data(), indices.data(), dtype, rows, padded, expanded.data());
  const int64_t dense_rows = rows + pick({0, 0, 5}), dense_cols = padded + pick({0, 0, 3, 8, 64});
  Guarded<Bits> out(dense_rows * dense_cols, pick({0, 0, 1}));
  cuda::expand(kept.data(), bytes.data(), dtype, rows, padded, out.data(), dense_rows, dense_cols, nullptr);
  bool ok = out.intact();
  const auto got = out.values();
  for (int64_t i = 0; i < dense_rows * dense_cols; ++i) {
    const int64_t row = i / dense_cols, column = i % dense_cols;
    const Bits want =
        row < rows && column < padded ? expanded[static_cast<std::size_t>(row * padded + column)] : Bits{0};
    ok = ok && got[static_cast<std::size_t>(i)] == want;
  }
  expect(ok, message("expand ", what, " to ", dense_rows, "x", dense_cols));
}

void test_format() {
  for (const DType dtype : kAll) {
    for (const Fill fill : kFills) with_bits(dtype, [&]<typename Bits>(Bits) { test_format_of<Bits>(dtype, fill); });
  }
}

// ---- im2col ----

template <typename Bits>
void check_im2col(cuda::Im2col a, int64_t out_h, int64_t out_w, int64_t shift, int64_t matrix_shift) {
  const auto image = filled<Bits>(a.batch * a.height * a.width * a.channels, DType::kInt8, Fill::kRandomBits);
  Guarded<Bits> x(image, shift), matrix(a.tokens * a.ld, matrix_shift);
  const auto before = matrix.values();
  a.x = x.data(), a.matrix = matrix.data();
  cuda::im2col(a, nullptr);
  const int64_t padded_c = round_up(a.group_channels, 4);
  bool ok = matrix.intact() && x.intact();
  const auto got = matrix.values();
  for (int64_t at = 0; at < a.tokens * a.ld; ++at) {
    const int64_t token = a.first_token + at / a.ld, column = at % a.ld, tap = column / padded_c, c = column % padded_c;
    const int64_t r = tap / a.kernel_w, s = tap % a.kernel_w;
    const int64_t y = token / out_w % out_h * a.stride_h + r * a.dilation_h - a.pad_h;
    const int64_t xx = token % out_w * a.stride_w + s * a.dilation_w - a.pad_w;
    Bits want = 0;
    if (r < a.kernel_h && c < a.group_channels && y >= 0 && y < a.height && xx >= 0 && xx < a.width) {
      const int64_t pixel = (token / (out_h * out_w) * a.height + y) * a.width + xx;
      want = image[static_cast<std::size_t>(pixel * a.channels + a.first_channel + c)];
    }
    if (column >= a.k_padded) want = before[static_cast<std::size_t>(at)];
    ok = ok && got[static_cast<std::size_t>(at)] == want;
  }
  expect(ok, message("im2col bytes ", sizeof(Bits), " batch ", a.batch, " channels ", a.channels, " slice ",
                     a.first_channel, "+", a.group_channels, " hw ", a.height, "x", a.width, " kernel ", a.kernel_h,
                     "x", a.kernel_w, " stride ", a.stride_h, ",", a.stride_w, " pad ", a.pad_h, ",", a.pad_w,
                     " dilation ", a.dilation_h, ",", a.dilation_w, " k_padded ", a.k_padded, " ld ", a.ld, " tokens ",
                     a.first_token, "+", a.tokens, " shift ", shift));
}

void test_im2col() {
  cuda::Im2col a{};
  a.element_size = static_cast<int>(pick({1, 2, 4}));
  a.batch = pick({1, 2, 3}), a.height = pick({1, 5, 7, 14}), a.width = pick({3, 7, 8, 14});
  a.kernel_h = pick({1, 3, 3, 2, 7}), a.kernel_w = pick({1, 3, 3, 5});
  a.stride_h = pick({1, 1, 2}), a.stride_w = pick({1, 1, 2, 3}), a.pad_h = pick({0, 1, 3}), a.pad_w = pick({0, 1, 2});
  a.dilation_h = pick({1, 1, 2}), a.dilation_w = pick({1, 1, 2});
  a.group_channels = pick({1, 3, 4, 8, 16, 20, 32, 66});
  a.first_channel = pick({0, 0, a.group_channels, 2 * a.group_channels, 2});
  a.channels = a.first_channel + a.group_channels * pick({1, 1, 2}) + pick({0, 0, 6});
  const int64_t room_h = a.height + 2 * a.pad_h - a.dilation_h * (a.kernel_h - 1) - 1;
  const int64_t room_w = a.width + 2 * a.pad_w - a.dilation_w * (a.kernel_w - 1) - 1;
  if (room_h < 0 || room_w < 0) return;
  const int64_t out_h = room_h / a.stride_h + 1, out_w = room_w / a.stride_w + 1, all = a.batch * out_h * out_w;
  a.first_token = pick({0, 0, all / 3}), a.tokens = pick({all - a.first_token, (all - a.first_token) / 2, 1});
  a.k_padded = round_up(a.kernel_h * a.kernel_w * round_up(a.group_channels, 4), pick({4, 8, 16, 64}));
  a.ld = round_up(a.k_padded, 16) + pick({0, 0, 16});
  const int64_t shift = pick({0, 0, 0, 1, 2}), matrix_shift = 16 / a.element_size * pick({0, 1});
  if (a.element_size == 1) check_im2col<uint8_t>(a, out_h, out_w, shift, matrix_shift);
  if (a.element_size == 2) check_im2col<uint16_t>(a, out_h, out_w, shift, matrix_shift);
  if (a.element_size == 4) check_im2col<uint32_t>(a, out_h, out_w, shift, matrix_shift);
}

// ---- quantization ----

}  // namespace

double exact(std::uint32_t bits, sparse24::DType dtype) {
  using sparse24::DType;
  if (dtype == DType::kBFloat16) bits <<= 16;
  const bool half = dtype == DType::kFloat16;
  const int fraction_bits = half ? 10 : 23, bias = half ? 15 : 127, most = half ? 31 : 255;
  const double sign = bits >> (half ? 15 : 31) & 1 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> fraction_bits & static_cast<uint32_t>(most));
  const double fraction = std::ldexp(bits & ((1u << fraction_bits) - 1), -fraction_bits);
  if (exponent == most) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias));
}

namespace {

// The number of a code of float8_e4m3fn, which has no Inf.
double e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if ((code & 0x7f) == 0x7f) return std::nan("");
  const double size = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return (code & 0x80) != 0 ? -size : size;
}

struct EightBits {
  DType dtype;
  double largest;
  double number(std::uint8_t code) const {
    return dtype == DType::kInt8 ? static_cast<double>(static_cast<std::int8_t>(code)) : e4m3(code);
  }
  // Half a step at a number of this size.
  double half_step(double size) const {
    return dtype == DType::kInt8 ? 0.5 : std::ldexp(1, std::max(std::ilogb(std::max(size, 0x1p-9)), -6) - 4);
  }
};
constexpr EightBits kEightBits[] = {{DType::kInt8, 127}, {DType::kFloat8E4M3, 448}};

// x / scale is out to half a step, give or take three fp32 roundings; what is beyond the largest is the largest.
bool quantized_well(const std::vector<double>& x, const std::uint8_t* out, float scale, float given,
                    const EightBits& to) {
  double absmax = 0;
  bool finite = true;
  for (const double v : x) {
    finite = finite && std::isfinite(v);
    absmax = std::max(absmax, std::abs(v));
  }
  const bool zeros = !finite || (given == 0 && absmax < std::ldexp(to.largest, -126));
  const double exact_scale = given != 0 ? double{given} : absmax / to.largest;
  bool ok = !finite ? std::isnan(scale)
            : zeros ? scale == 1.0f
                    : std::abs(double{scale} - exact_scale) <= exact_scale * 0x1p-24;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double q = to.number(out[i]), most = zeros ? 0 : x[i] / exact_scale;
    const double want = std::clamp(most, -to.largest, to.largest);
    ok = ok && (zeros ? q == 0 : std::abs(want - q) <= to.half_step(std::abs(want)) + std::abs(want) * 3 * 0x1p-24);
  }
  return ok;
}

template <typename Bits>
void test_quantize_of(DType dtype, Fill fill, const EightBits& to) {
  const int64_t n = pick({1, 2, 9}), k = pick({1, 3, 8, 64, 257, 1024, 1025, 2064}),
                stride = round_up(k, pick({1, 8})) + pick({0, 0, 1, 8});
  const int64_t k_padded = round_up(k, pick({1, 8, 16, 32})), shift = pick({0, 0, 1});
  const float given = pick({0, 1}) == 0 ? 0.0f : 0.01f;
  auto bits = filled<Bits>(n * stride, dtype, fill);
  if (fill == Fill::kSpecial && pick({0, 1}) != 0) {  // a row of zeros of both signs and of denormals
    for (int64_t i = 0; i < k; ++i)
      bits[static_cast<std::size_t>(i)] =
          static_cast<Bits>((rng() & 1) << (8 * sizeof(Bits) - 1) | (dtype == DType::kFloat16 ? 0 : rng() % 3));
  }
  Guarded<Bits> x(bits, shift);
  Guarded<std::uint8_t> out(n * k_padded, pick({0, 0, 1}));
  Guarded<float> scale(n, 0);
  const float* const scale_of_all = given != 0 || pick({0, 1}) != 0 ? &given : nullptr;
  cuda::quantize_per_token(x.data(), dtype, n, k, stride, out.data(), to.dtype, k_padded, scale_of_all, scale.data(),
                           nullptr);
  bool ok = out.intact() && scale.intact() && x.intact() && x.values() == bits;
  for (int64_t row = 0; row < n; ++row) {
    std::vector<double> values;
    for (int64_t i = 0; i < k; ++i) values.push_back(exact(bits[static_cast<std::size_t>(row * stride + i)], dtype));
    ok = ok && quantized_well(values, out.data() + row * k_padded, scale.data()[row], given, to);
    for (int64_t i = k; i < k_padded; ++i) ok = ok && out.data()[row * k_padded + i] == 0;
  }
  expect(ok,
         message("quantize ", name_of(dtype), " to ", static_cast<int>(to.dtype), " ", n, "x", k, " stride ", stride,
                 " k_padded ", k_padded, " shift ", shift, " given ", given, " fill ", static_cast<int>(fill)));
}

void test_quantize() {
  cuda_emulated::concurrent = true;
  for (const EightBits& to : kEightBits) {
    for (const DType dtype : kFloats) {
      for (const Fill fill : kFills)
        with_bits(dtype, [&]<typename Bits>(Bits) { test_quantize_of<Bits>(dtype, fill, to); });
    }
  }
  cuda_emulated::concurrent = false;
}

// Halves go to the even neighbour: 0.5, 1.5, -2.5 of a row whose scale is 1.
void test_quantize_ties() {
  const std::vector<float> x = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f};
  std::vector<std::uint8_t> out(8);
  float scale = 0;
  cuda_emulated::concurrent = true;
  cuda::quantize_per_token(x.data(), DType::kFloat32, 1, 8, 8, out.data(), DType::kInt8, 8, nullptr, &scale, nullptr);
  expect(out == std::vector<std::uint8_t>{127, 0, 2, 2, 0, 254, 254, 126} && scale == 1.0f, "quantize, ties");
  cuda_emulated::concurrent = false;
  // Every code of e4m3 comes back, and half-way between two neighbours the even one is taken.
  bool ok = true;
  for (int code = 0; code < 0x7e; ++code) {
    const double low = e4m3(static_cast<std::uint8_t>(code)), high = e4m3(static_cast<std::uint8_t>(code + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    ok = ok && cuda::ToE4M3::code(static_cast<float>(low)) == code;
    ok = ok && cuda::ToE4M3::code(static_cast<float>(-low)) == (code | 0x80);
    ok = ok && cuda::ToE4M3::code(middle) == code + (code & 1);
    ok = ok && cuda::ToE4M3::code(std::nextafter(middle, 0.0f)) == code;
    ok = ok && cuda::ToE4M3::code(std::nextafter(middle, 1000.0f)) == code + 1;
  }
  expect(ok && cuda::ToE4M3::code(448) == 0x7e && cuda::ToE4M3::code(463) == 0x7e, "e4m3, every code");
}

// fp16 and bf16 to float, every bit pattern.
void test_conversions() {
  bool ok = true;
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    const double half = cuda::Float16::to_float(static_cast<uint16_t>(bits)), want = exact(bits, DType::kFloat16);
    const double brain = cuda::BFloat16::to_float(static_cast<uint16_t>(bits)), wanted = exact(bits, DType::kBFloat16);
    ok = ok && (half == want || (std::isnan(half) && std::isnan(want))) && std::signbit(half) == (bits >> 15 != 0);
    ok = ok && (brain == wanted || (std::isnan(brain) && std::isnan(wanted)));
  }
  expect(ok, "conversions");
}

}  // namespace

int main() {
  test_launches();
  test_few_tokens();
  test_conversions();
  test_quantize_ties();
  for (int round = 0; round < 60; ++round) {
    test_masks();
    test_transposable();
    test_format();
    for (int i = 0; i < 8; ++i) test_im2col();
    if (round < 5) test_quantize();
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
