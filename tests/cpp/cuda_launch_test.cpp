// How the CUDA kernels are launched and indexed: every item once, refusals, failures, rows beyond 2^32 elements.

#include <sys/mman.h>

#include "cuda/kernels.cu"
#include "cuda_fixtures.h"

namespace {

using namespace cuda_test;

void test_divider() {
  bool ok = true;
  const auto check = [&](uint32_t number, uint32_t divisor) {
    uint32_t rest = number;
    const uint32_t quotient = cuda::Divider(divisor).divide(&rest);
    ok = ok && quotient == number / divisor && rest == number % divisor;
  };
  for (int i = 0; i < 200000; ++i) {
    const uint32_t divisor = std::max<uint32_t>(1, static_cast<uint32_t>(rng()) >> (1 + rng() % 31));
    const uint32_t number = static_cast<uint32_t>(rng()) >> (1 + rng() % 31);
    for (const uint32_t n :
         {number, number / divisor * divisor, number / divisor * divisor - (number >= divisor), 0x7fffffffu})
      check(n, divisor);
  }
  for (uint32_t number = 0; number < 300; ++number) {
    for (uint32_t divisor = 1; divisor < 300; ++divisor) check(number, divisor);
  }
  expect(ok, "divider");
}

// ---- launches ----

std::vector<uint8_t>* visits = nullptr;
void count_visits(int64_t rows, int64_t items) {
  cuda::for_each_item(rows, items,
                      [&](int64_t row, int64_t item) { ++(*visits)[static_cast<std::size_t>(row * items + item)]; });
}

// Every item of a launch is visited once, also where the threads take several rounds.
void test_indexing() {
  for (const auto& [rows, items] : {std::pair<int64_t, int64_t>{1, 1},
                                    {1, 31},
                                    {1, 33},
                                    {1, 70000},
                                    {7, 5},
                                    {300, 3},
                                    {70000, 1},
                                    {1000, 40},
                                    {1, 2500000},
                                    {2500000, 1},
                                    {30000, 75},
                                    {9000, 257},
                                    {3, 800000}}) {
    std::vector<uint8_t> seen(static_cast<std::size_t>(rows * items));
    visits = &seen;
    cuda::launch("count_visits", count_visits, cuda::threads_for(rows, items), nullptr, rows, items);
    expect(std::all_of(seen.begin(), seen.end(), [](uint8_t times) { return times == 1; }),
           message("indexing ", rows, " x ", items));
  }
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

void test_launch_errors() {
  std::vector<float> w(16);
  std::vector<uint8_t> mask(16);
  const auto mask16 = [&](void* stream) { cuda::mask24(w.data(), DType::kFloat32, 4, 4, mask.data(), stream); };
  cuda_emulated::next_launch = cudaErrorNoKernelImageForDevice;
  expect(refused<Error>([&] { mask16(nullptr); },
                        "mask24: the launch of 1 x 1 blocks of 256 x 1 threads failed: "
                        "cudaErrorNoKernelImageForDevice: no kernel image is available"),
         "a failed launch says why");
  expect(cuda_emulated::last_error == cudaSuccess, "a failed launch leaves no error behind");
  int stream = 0;
  mask16(&stream);
  expect(cuda_emulated::last_stream == &stream, "the stream is passed on");

  const int before = cuda_emulated::launches;
  cuda::mask24(nullptr, DType::kFloat32, 0, 4, nullptr, nullptr);
  cuda::mask24(nullptr, DType::kFloat32, 3, 0, nullptr, nullptr);
  cuda::prune24(nullptr, DType::kBFloat16, 0, 3, nullptr, nullptr);
  cuda::transposable_mask(nullptr, DType::kFloat16, 0, 8, nullptr, nullptr);
  cuda::compress(nullptr, DType::kInt8, 4, 0, 0, nullptr, nullptr, nullptr, nullptr);
  cuda::expand(nullptr, nullptr, DType::kInt8, 0, 8, nullptr, 0, 8, nullptr);
  cuda::quantize_per_token(nullptr, DType::kFloat32, 0, 8, 8, nullptr, DType::kInt8, 8, nullptr, nullptr, nullptr);
  expect(cuda_emulated::launches == before, "empty calls launch nothing");

  expect(refused<InvalidArgument>([&] { cuda::mask24(w.data(), DType::kInt8, 4, 4, mask.data(), nullptr); },
                                  "mask24 supports fp32, fp16 and bf16"),
         "mask24 of int8");
  expect(
      refused<InvalidArgument>([&] { cuda::transposable_mask(w.data(), DType::kFloat32, 3, 4, mask.data(), nullptr); },
                               "the next ones are 4 x 4"),
      "transposable 3x4");
  expect(refused<InvalidArgument>(
             [&] { cuda::expand(w.data(), mask.data(), DType::kFloat32, 2, 8, w.data(), 2, 7, nullptr); },
             "at least 2 x 8"),
         "expand into less");
  expect(refused<InvalidArgument>(
             [&] {
               cuda::quantize_per_token(w.data(), DType::kFloat32, 1, 8, 8, nullptr, DType::kInt8, 7, nullptr, w.data(),
                                        nullptr);
             },
             "k_padded 7"),
         "k_padded < k");
  expect(refused<InvalidArgument>(
             [&] {
               cuda::quantize_per_token(w.data(), DType::kFloat32, 1, 8, 8, w.data(), DType::kFloat8E5M2, 8, nullptr,
                                        w.data(), nullptr);
             },
             "int8 and float8_e4m3fn"),
         "quantize to e5m2");
}

void test_im2col_errors() {
  alignas(16) static uint16_t memory[4096];
  const cuda::Im2col good{memory, memory, 2, 1, 4, 4, 8, 0, 8, 3, 3, 1, 1, 1, 1, 1, 1, 72, 72, 0, 16};
  const auto with = [&](auto change, const char* text) {
    cuda::Im2col bad = good;
    change(bad);
    const int before = cuda_emulated::launches;
    expect(refused<InvalidArgument>([&] { cuda::im2col(bad, nullptr); }, text) && cuda_emulated::launches == before,
           message("im2col refuses: ", text));
  };
  with([](auto& a) { a.element_size = 8; }, "1, 2 or 4 bytes, not 8");
  with([](auto& a) { a.stride_w = 0; }, "stride");
  with([](auto& a) { a.pad_h = -1; }, "padding not negative");
  with([](auto& a) { a.first_channel = 1; }, "channels 1 to 9 of 8");
  with([](auto& a) { a.dilation_h = 3; }, "does not fit");
  with([](auto& a) { a.batch = 1 << 28; }, "split the batch");
  with([](auto& a) { a.tokens = 17; }, "17 tokens from 0 on, of 16");
  with([](auto& a) { a.first_token = -1; }, "tokens from -1");
  with([](auto& a) { a.k_padded = 68; }, "3 * 3 * 8, not 68");
  with([](auto& a) { a.ld = 76; }, "a multiple of 8, not 76");
  with([](auto& a) { a.matrix = memory + 1; }, "multiple of 16");
  cuda::Im2col empty = good;
  empty.batch = 0, empty.tokens = 0;
  const int before = cuda_emulated::launches;
  cuda::im2col(empty, nullptr);
  expect(cuda_emulated::launches == before, "im2col of no tokens launches nothing");
}

// Rows that lie beyond 2^32 elements and bytes, in memory that the system gives only where it is touched.
void test_far_rows() {
  constexpr int64_t kStride = (int64_t{1} << 32) + 64, kBytes = 2 * (kStride + 4096);
  void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  expect(mapped != MAP_FAILED, "memory to map");
  if (mapped == MAP_FAILED) return;
  uint16_t* x = static_cast<uint16_t*>(mapped);
  for (int64_t i = 0; i < 64; ++i) x[i] = x[kStride + i] = i % 4 < 2 ? static_cast<uint16_t>(0x3c00 + i) : uint16_t{0};
  alignas(16) uint16_t values[64], dense[128];
  alignas(16) uint8_t indices[16];
  int64_t crowded = INT64_MAX;
  cuda::compress(x, DType::kFloat16, 2, 64, kStride, values, indices, &crowded, nullptr);
  cuda::expand(values, indices, DType::kFloat16, 2, 64, dense, 2, 64, nullptr);
  expect(crowded == INT64_MAX && std::equal(dense, dense + 64, x) && std::equal(dense + 64, dense + 128, x),
         "compress, a row beyond 2^32 elements");

  cuda::Mask24 mask{x, 1, kStride + 64, nullptr};
  x[kStride + 2] = 0x7000;
  cuda::mask24_item<uint16_t, cuda::Access::kVector, cuda::Prune::kInPlace>(mask, 0, kStride / 8);
  expect(x[kStride] == 0 && x[kStride + 1] == 0x3c01 && x[kStride + 2] == 0x7000,
         "prune24, an item beyond 2^32 elements");

  // Every fourth pixel of 2^17 lines of 2^15: the last patch lies at pixel 2^32 - 2^17 - 4.
  uint8_t* image = static_cast<uint8_t*>(mapped);
  const int64_t last = (int64_t{1} << 32) - (3 << 15) - 4;
  cuda::Im2col a{image, dense, 1, 1, 1 << 17, 1 << 15, 1, 0, 1, 1, 1, 4, 4, 0, 0, 1, 1, 4, 16, (1 << 28) - 1, 1};
  image[last] = 77;
  cuda::im2col(a, nullptr);
  expect(reinterpret_cast<uint8_t*>(dense)[0] == 77, "im2col, a pixel near 2^32");
  munmap(mapped, kBytes);
}

}  // namespace

void test_launches() {
  test_divider();
  test_indexing();
  test_launch_errors();
  test_im2col_errors();
  test_far_rows();
}
