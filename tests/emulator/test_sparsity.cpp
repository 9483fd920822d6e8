// Pruning, its check, the sizes and the blob.
#include <cmath>
#include <random>

#include "test.h"

namespace emulator::test {

namespace {

std::mt19937 rng(42);

struct Sizes {
  std::size_t compressed, buffer;
};

Sizes sizes_of(DataType type, std::int64_t rows, std::int64_t cols, Order order = kOrderRow) {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  expect_equal(cusparseLtStructuredDescriptorInit(&o->handle, &o->a, rows, cols, order == kOrderRow ? cols : rows, 16,
                                                  type, order, kSparsity50Percent),
               kSuccess, "structured");
  Sizes sizes{};
  expect_equal(cusparseLtSpMMACompressedSize2(&o->handle, &o->a, &sizes.compressed, &sizes.buffer), kSuccess, "size");
  cusparseLtMatDescriptorDestroy(&o->a);
  cusparseLtDestroy(&o->handle);
  return sizes;
}

// The sizes measured on sm_86 with 0.10.
void test_sizes() {
  struct {
    DataType type;
    std::int64_t rows, cols;
    Order order;
    Sizes sizes;
  } const measured[] = {
      {kReal16F, 16, 32, kOrderRow, {768, 256}},       {kReal16F, 64, 32, kOrderRow, {2560, 512}},
      {kReal16F, 64, 64, kOrderRow, {4608, 512}},      {kReal16F, 96, 160, kOrderRow, {17920, 2560}},
      {kReal16BF, 128, 128, kOrderRow, {18432, 2048}}, {kReal8I, 64, 64, kOrderRow, {4096, 1024}},
      {kReal8I, 96, 160, kOrderRow, {15872, 4096}},    {kReal8I, 256, 64, kOrderRow, {16384, 4096}},
      {kReal8I, 128, 64, kOrderRow, {8192, 2048}},     {kReal8I, 128, 64, kOrderCol, {6144, 1024}},
      {kReal8I, 64, 128, kOrderCol, {8192, 2048}},     {kReal32F, 8, 16, kOrderRow, {768, 256}},
      {kReal32F, 64, 64, kOrderRow, {10240, 1024}},    {kReal32F, 96, 160, kOrderRow, {40960, 5120}},
  };
  for (const auto& m : measured) {
    const Sizes sizes = sizes_of(m.type, m.rows, m.cols, m.order);
    const std::string name =
        "type " + std::to_string(m.type) + " " + std::to_string(m.rows) + "x" + std::to_string(m.cols);
    expect_equal(sizes.compressed, m.sizes.compressed, "compressed size of " + name);
    expect_equal(sizes.buffer, m.sizes.buffer, "buffer size of " + name);
  }
  expect_clean("sizes");
}

// A product whose A is `data`, row-major [rows, k] of fp32 or int8.
struct Pruner {
  std::unique_ptr<Objects> o = std::make_unique<Objects>();
  Pruner(DataType type, std::int64_t rows, std::int64_t k) {
    cusparseLtInit(&o->handle);
    const bool integers = type == kReal8I;
    expect_equal(describe(*o, {.m = rows,
                               .n = 32,
                               .k = k,
                               .ab = type,
                               .c = type,
                               .d = type,
                               .compute = integers ? kCompute32I : kCompute32F,
                               .order_b = kOrderCol}),
                 kSuccess, "describe");
    expect_equal(plan(*o), kSuccess, "plan");
  }
  ~Pruner() { destroy_all(*o); }
  int check(const void* data) {
    int valid = -1;
    expect_equal(cusparseLtSpMMAPruneCheck(&o->handle, &o->matmul, data, &valid, nullptr), kSuccess, "check");
    expect_equal(valid, -1, "the check is asynchronous");
    cudaDeviceSynchronize();
    return valid;
  }
};

void test_strip() {
  alignas(16) static signed char data[32 * 32], out[32 * 32];
  std::memset(data, 0, sizeof data);
  // group: what is kept. Ties go to the lower index.
  const signed char groups[][2][4] = {{{1, 2, 3, 4}, {0, 0, 3, 4}},           {{-4, 3, -2, 1}, {-4, 3, 0, 0}},
                                      {{2, 2, 2, 2}, {2, 2, 0, 0}},           {{1, -2, 2, 2}, {0, -2, 2, 0}},
                                      {{-128, 127, 0, 0}, {-128, 127, 0, 0}}, {{0, 0, 0, 5}, {0, 0, 0, 5}},
                                      {{1, 3, 1, 0}, {1, 3, 0, 0}},           {{0, 1, 0, 1}, {0, 1, 0, 1}}};
  for (std::size_t g = 0; g < 8; ++g) std::memcpy(data + 4 * g, groups[g][0], 4);
  Pruner p(kReal8I, 32, 32);
  expect_equal(p.check(data), 1, "not pruned");
  std::memset(out, 77, sizeof out);
  expect_equal(cusparseLtSpMMAPrune(&p.o->handle, &p.o->matmul, data, out, kPruneStrip, nullptr), kSuccess, "prune");
  cudaDeviceSynchronize();
  for (std::size_t g = 0; g < 8; ++g) {
    expect(std::memcmp(out + 4 * g, groups[g][1], 4) == 0, "STRIP group " + std::to_string(g));
  }
  expect_equal(p.check(out), 0, "pruned");
  expect_clean("strip");
}

// TILE keeps two per row and column with the largest sum: against all choices of rows, by brute force.
void test_tile() {
  alignas(16) static signed char data[32 * 32], out[32 * 32];
  for (signed char& value : data) value = static_cast<signed char>(rng());
  Pruner p(kReal8I, 32, 32);
  cusparseLtSpMMAPrune(&p.o->handle, &p.o->matmul, data, out, kPruneTile, nullptr);
  cudaDeviceSynchronize();
  bool good = true;
  for (int tile = 0; tile < 64; ++tile) {
    const signed char* from = data + tile / 8 * 4 * 32 + tile % 8 * 4;
    const signed char* to = out + tile / 8 * 4 * 32 + tile % 8 * 4;
    int best = 0, kept = 0, rows[4] = {}, cols[4] = {};
    for (int mask = 0; mask < 65536; ++mask) {
      int row[4] = {}, col[4] = {}, sum = 0;
      for (int cell = 0; cell < 16; ++cell) {
        if (!(mask >> cell & 1)) continue;
        ++row[cell / 4];
        ++col[cell % 4];
        sum += std::abs(from[cell / 4 * 32 + cell % 4]);
      }
      bool two = true;
      for (int i = 0; i < 4; ++i) two = two && row[i] == 2 && col[i] == 2;
      if (two) best = std::max(best, sum);
    }
    for (int cell = 0; cell < 16; ++cell) {
      const int value = to[cell / 4 * 32 + cell % 4];
      if (value == 0) continue;
      good = good && value == from[cell / 4 * 32 + cell % 4];
      kept += std::abs(value);
      ++rows[cell / 4];
      ++cols[cell % 4];
    }
    good = good && kept == best;
    for (int i = 0; i < 4; ++i) good = good && rows[i] <= 2 && cols[i] <= 2;
  }
  expect(good, "TILE keeps the largest sum");
  // Ties: rows 0 and 1 complete each other and start low; without such a pattern, equal rows come first.
  const struct {
    signed char tile[16];
    unsigned kept;
  } ties[] = {{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0xc3c3},
              {{0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0xc396},
              {{9, 9, 1, 1, 9, 9, 1, 1, 1, 1, 9, 9, 1, 1, 9, 9}, 0xcc33}};
  for (const auto& tie : ties) {
    for (std::size_t row = 0; row < 4; ++row) std::memcpy(data + row * 32, tie.tile + row * 4, 4);
    cusparseLtSpMMAPrune(&p.o->handle, &p.o->matmul, data, out, kPruneTile, nullptr);
    cudaDeviceSynchronize();
    unsigned kept = 0;
    for (unsigned cell = 0; cell < 16; ++cell) kept |= (out[cell / 4 * 32 + cell % 4] != 0 ? 1u : 0u) << cell;
    expect_equal(kept, tie.kept, "TILE among equal sums");
  }
  alignas(16) static float square[8 * 16] = {}, pruned[8 * 16];
  square[0] = 3, square[1] = 1, square[16] = 1, square[17] = 2;  // the diagonal is larger
  square[2] = 1, square[3] = 2, square[18] = 1, square[19] = 2;  // a tie: the anti-diagonal
  Pruner f(kReal32F, 8, 16);
  cusparseLtSpMMAPrune(&f.o->handle, &f.o->matmul, square, pruned, kPruneTile, nullptr);
  cudaDeviceSynchronize();
  expect(pruned[0] == 3 && pruned[1] == 0 && pruned[16] == 0 && pruned[17] == 2, "2x2 diagonal");
  expect(pruned[2] == 0 && pruned[3] == 2 && pruned[18] == 1 && pruned[19] == 0, "2x2 tie");
  expect_clean("tile");
}

// fp16 [rows, 64] times [64, 32] with configuration `config`.
struct Product16 {
  std::unique_ptr<Objects> o = std::make_unique<Objects>();
  std::int64_t rows;
  Product16(std::int64_t rows, int config) : rows(rows) {
    cusparseLtInit(&o->handle);
    describe(*o, {.m = rows, .n = 32, .k = 64});
    cusparseLtMatmulAlgSelectionInit(&o->handle, &o->selection, &o->matmul, kAlgDefault);
    cusparseLtMatmulAlgSetAttribute(&o->handle, &o->selection, kConfigId, &config, sizeof config);
    expect_equal(cusparseLtMatmulPlanInit(&o->handle, &o->plan, &o->matmul, &o->selection), kSuccess, "plan");
  }
  ~Product16() { destroy_all(*o); }
  std::vector<std::uint64_t> compress(const void* dense) {
    std::size_t size, buffer;
    cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer);
    std::vector<std::uint64_t> blob(size / 8 + 2);
    expect_equal(cusparseLtSpMMACompress(&o->handle, &o->plan, dense, aligned(blob), nullptr, nullptr), kSuccess,
                 "compress");
    cudaDeviceSynchronize();
    return blob;
  }
  static void* aligned(std::vector<std::uint64_t>& words) {
    return words.data() + (reinterpret_cast<std::uintptr_t>(words.data()) % 16 ? 1 : 0);
  }
  std::vector<std::uint16_t> multiply(std::vector<std::uint64_t>& blob, const void* right) {
    std::vector<std::uint64_t> d(static_cast<std::size_t>(rows) * 8 + 2);
    const float one = 1, zero = 0;
    expect_equal(cusparseLtMatmul(&o->handle, &o->plan, &one, aligned(blob), right, &zero, aligned(d), aligned(d),
                                  nullptr, nullptr, 0),
                 kSuccess, "matmul");
    cudaDeviceSynchronize();
    std::vector<std::uint16_t> out(static_cast<std::size_t>(rows) * 32);
    std::memcpy(out.data(), aligned(d), out.size() * 2);
    return out;
  }
};

// The blob belongs to its algorithm from 256 rows on, and to its shape and SM always.
void test_blob() {
  static std::uint16_t storage[2 * 256 * 64 + 16], right_storage[64 * 32 + 16];
  const auto align = [](std::uint16_t* p) {
    return reinterpret_cast<std::uint16_t*>((reinterpret_cast<std::uintptr_t>(p) + 15) / 16 * 16);
  };
  std::uint16_t *left = align(storage), *right = align(right_storage);
  for (int i = 0; i < 256 * 64; i += 4) {  // two of four, numbers in [1, 2)
    const unsigned keep = "\x03\x05\x09\x06\x0a\x0c"[rng() % 6];
    for (int j = 0; j < 4; ++j) left[i + j] = keep >> j & 1 ? static_cast<std::uint16_t>(0x3c00 | (rng() & 0x3ff)) : 0;
  }
  for (int i = 0; i < 64 * 32; ++i) right[i] = static_cast<std::uint16_t>(0x3c00 | (rng() & 0x3ff));

  for (const std::int64_t rows : {128, 256}) {
    Product16 first(rows, 0), third(rows, 3);
    auto blob = first.compress(left), again = first.compress(left);
    expect(blob == again, "two compressions are equal bit for bit");
    const auto right_result = first.multiply(blob, right);
    expect_clean("the blob's own algorithm");
    const auto other_result = third.multiply(blob, right);
    if (rows < 256) {
      expect(other_result == right_result, "below 256 rows any algorithm reads the blob");
      expect_clean("below 256 rows");
    } else {
      expect(other_result != right_result, "from 256 rows on another algorithm's result is wrong");
      expect_violation("another algorithm", "a blob of another algorithm");
    }
    auto own = third.compress(left);
    expect(third.multiply(own, right) == right_result, "compressed anew it is right");
    expect_clean("compressed anew");
  }
  Product16 large(128, 0), small(64, 0);
  auto blob = large.compress(left);
  small.multiply(blob, right);
  expect_violation("shape", "a blob of another shape");
  auto own = small.compress(left);
  emulator_set_sm(80);
  {
    Product16 elsewhere(64, 0);
    elsewhere.multiply(own, right);
    expect_violation("SM", "a blob of another SM");
  }
  emulator_set_sm(86);
  std::vector<std::uint64_t> garbage(own.size(), 0);
  small.multiply(garbage, right);
  expect_violation("not compressed", "a blob that is none");
  for (int i = 0; i < 8; ++i) left[i] = 0x3c00;
  small.compress(left);
  expect_violation("not pruned", "compressing what is not pruned");
}

// Compress2 knows no plan; a batched descriptor counts once until a plan uses it.
void test_without_plan() {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  describe(*o, {.m = 64, .n = 32, .k = 64, .batches = 3});
  std::size_t one, all, buffer;
  cusparseLtSpMMACompressedSize2(&o->handle, &o->a, &one, &buffer);
  plan(*o);
  cusparseLtSpMMACompressedSize2(&o->handle, &o->a, &all, &buffer);
  expect_equal(all, 3 * one, "batches count once a plan uses them");
  cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &one, &buffer);
  expect_equal(all, one, "both sizes agree");
  destroy_all(*o);
  expect_clean("without plan");
}

}  // namespace

void test_sparsity() {
  test_sizes();
  test_strip();
  test_tile();
  test_blob();
  test_without_plan();
}

}  // namespace emulator::test
