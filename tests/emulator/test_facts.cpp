// What other people measured on real cards, fact by fact (the README's rules name the sources): A100, H100, B200,
// RTX 4090, 5080 and GB10 with 0.8.1, RTX 3060, L4 and RTX PRO 6000 with 0.10. More than 300 lines: one list of facts.
#include <cmath>

#include "test.h"

namespace emulator::test {

namespace {

std::unique_ptr<Objects> described(int sm, const Shape& shape, int version = 801) {
  emulator_reset();
  emulator_set_sm(sm);
  emulator_set_version(version);
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  expect_equal(describe(*o, shape), kSuccess, "describe on SM " + std::to_string(sm));
  return o;
}

// k-contiguous operands, as 8-bit types want them.
Shape of(std::int64_t m, std::int64_t n, std::int64_t k, DataType ab, DataType c, DataType d,
         ComputeType compute = kCompute32F) {
  return {.m = m, .n = n, .k = k, .ab = ab, .c = c, .d = d, .compute = compute, .order_b = kOrderCol};
}
Shape of(std::int64_t m, std::int64_t n, std::int64_t k, DataType type = kReal16F) {
  if (type == kReal8I) return of(m, n, k, type, type, type, kCompute32I);
  const bool fp8 = type == kReal8FE4M3 || type == kReal8FE5M2;
  return of(m, n, k, type, fp8 ? kReal16BF : type, fp8 ? kReal16BF : type);
}

template <typename Value>
Status set(Objects& o, MatmulAttribute attribute, Value value) {
  return cusparseLtMatmulDescSetAttribute(&o.handle, &o.matmul, attribute, &value, sizeof value);
}
Status set(Objects& o, AlgAttribute attribute, int value) {
  return cusparseLtMatmulAlgSetAttribute(&o.handle, &o.selection, attribute, &value, sizeof value);
}
int get(Objects& o, AlgAttribute attribute) {
  int value = -99;
  cusparseLtMatmulAlgGetAttribute(&o.handle, &o.selection, attribute, &value, sizeof value);
  return value;
}

struct Sizes {
  std::size_t blob = 0, buffer = 0, workspace = 0;
};
Sizes sizes(int sm, const Shape& shape) {
  auto o = described(sm, shape);
  expect_equal(plan(*o), kSuccess, "plan");
  Sizes s;
  cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &s.blob, &s.buffer);
  cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &s.workspace);
  return s;
}

// About m k / 8, whatever the tokens and split-K, times the batches.
void test_workspaces() {
  for (const int sm : {80, 86, 89, 120}) {
    for (const std::int64_t n : {64, 512}) {
      expect_equal(sizes(sm, of(256, n, 512)).workspace, 256u * 512 / 8, "fp16 on SM " + std::to_string(sm));
      expect_equal(sizes(sm, of(256, n, 512, kReal8I)).workspace, 256u * 512 / 8, "int8 on SM " + std::to_string(sm));
    }
  }
  Shape batched = of(256, 64, 512);
  batched.batches = 3;
  expect_equal(sizes(86, batched).workspace, 3u * 256 * 512 / 8, "three batches");
  auto o = described(80, of(256, 64, 512));
  plan(*o);
  set(*o, kSplitK, 4);
  cusparseLtMatmulPlanDestroy(&o->plan);
  cusparseLtMatmulPlanInit(&o->handle, &o->plan, &o->matmul, &o->selection);
  std::size_t workspace = 0;
  cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &workspace);
  expect_equal(workspace, 256u * 512 / 8, "split-K asks for no more");
  expect(sizes(90, of(256, 64, 512)).workspace >= 256 * 512 / 8 + 319, "SM 90 wants a little more");
  expect(sizes(90, of(256, 64, 512)).workspace % 2 == 1, "an odd size");
  expect_equal(sizes(100, of(256, 64, 512)).workspace, 0u, "SM 100 mostly none");
  expect_equal(sizes(120, of(256, 64, 512, kReal8FE4M3)).workspace, 0u, "SM 120 none for fp8");
}

void test_sizes() {
  const auto check = [](int sm, const Shape& shape, std::size_t blob, std::size_t buffer) {
    const Sizes s = sizes(sm, shape);
    expect_equal(s.blob, blob, "blob of " + std::to_string(shape.m) + " x " + std::to_string(shape.k));
    expect_equal(s.buffer, buffer, "buffer of " + std::to_string(shape.m) + " x " + std::to_string(shape.k));
  };
  check(86, of(96, 64, 64), 6912, 768);
  check(86, of(32, 64, 96), 3584, 512);
  check(120, of(64, 64, 64, kReal8FE4M3), 4096, 49216);
  check(120, of(128, 128, 128, kReal8FE4M3), 10240, 49216);
  // The bare descriptor has room for both orientations.
  auto o = described(86, of(96, 64, 64));
  std::size_t blob = 0, buffer = 0;
  cusparseLtSpMMACompressedSize2(&o->handle, &o->a, &blob, &buffer);
  expect_equal(blob, 96u * 64 + 128 * 64 / 8, "96 x 64 without a plan");
}

void test_ids() {
  struct {
    int sm;
    DataType type;
    int ids;
  } const cases[] = {{80, kReal16F, 4},  {80, kReal16BF, 4},    {80, kReal8I, 5},     {86, kReal16F, 4},
                     {89, kReal8I, 4},   {89, kReal8FE4M3, 4},  {90, kReal16F, 52},   {90, kReal16BF, 21},
                     {90, kReal8I, 25},  {90, kReal8FE4M3, 30}, {100, kReal16F, 108}, {100, kReal8I, 108},
                     {120, kReal16F, 2}, {120, kReal8I, 2},     {120, kReal8FE4M3, 4}};
  for (const auto& c : cases) {
    auto o = described(c.sm, of(128, 128, 128, c.type));
    plan(*o);
    const std::string what = "type " + std::to_string(c.type) + " on SM " + std::to_string(c.sm);
    expect_equal(get(*o, kConfigMaxId), c.ids, "ids of " + what);
    expect_equal(set(*o, kConfigId, c.ids - 1), kSuccess, "the last id of " + what);
    expect_equal(set(*o, kConfigId, c.ids), kInvalidValue, "one more of " + what);
  }
}

void test_splits() {
  struct {
    int sm, split_k;
    Status status;
  } const cases[] = {{80, 8, kSuccess},       {80, -1, kInvalidValue}, {80, 0, kInvalidValue}, {90, 1, kSuccess},
                     {90, -1, kSuccess},      {90, 2, kInvalidValue},  {100, 2, kSuccess},     {100, 32, kSuccess},
                     {100, 0, kInvalidValue}, {120, 3, kSuccess},      {120, 0, kSuccess}};
  for (const auto& c : cases) {
    auto o = described(c.sm, of(128, 128, 128));
    plan(*o);
    expect_equal(set(*o, kSplitK, c.split_k), c.status,
                 "split-K " + std::to_string(c.split_k) + " on SM " + std::to_string(c.sm));
  }
  auto o = described(120, of(128, 128, 128));
  plan(*o);
  expect_equal(set(*o, kSplitKMode, 3), kInvalidValue, "mode 3 on SM 120");
  expect_equal(set(*o, kSplitKMode, 1), kSuccess, "mode 1 on SM 120");
}

void test_gelu() {
  struct {
    int sm;
    DataType ab, d;
    Status status;
  } const cases[] = {{89, kReal8FE4M3, kReal16BF, kSuccess},     {89, kReal8FE5M2, kReal16BF, kSuccess},
                     {89, kReal8FE4M3, kReal16F, kInvalidValue}, {89, kReal8FE5M2, kReal16F, kInvalidValue},
                     {89, kReal8FE4M3, kReal32F, kInvalidValue}, {120, kReal8FE4M3, kReal16F, kSuccess},
                     {120, kReal8FE5M2, kReal16F, kSuccess},     {120, kReal8FE4M3, kReal16BF, kSuccess},
                     {120, kReal8FE4M3, kReal32F, kSuccess},     {120, kReal8FE5M2, kReal32F, kSuccess}};
  for (const auto& c : cases) {
    auto o = described(c.sm, of(64, 64, 64, c.ab, c.d, c.d), 1000);
    expect_equal(set(*o, kGelu, 1), c.status,
                 "GELU of " + std::to_string(c.ab) + " to " + std::to_string(c.d) + " on SM " + std::to_string(c.sm));
  }
}

Status select(Objects& o) { return cusparseLtMatmulAlgSelectionInit(&o.handle, &o.selection, &o.matmul, kAlgDefault); }

void test_refusals() {
  for (const DataType type : {kReal8FE4M3, kReal8FE5M2}) {
    auto o = described(86, of(64, 64, 64, type), 1000);
    expect_equal(select(*o), kNotSupported, "fp8 on SM 86 has no kernel");
  }
  auto o = described(86, of(128, 128, 128, kReal4FE2M1, kReal16F, kReal16F), 1000);
  expect_equal(select(*o), kNotSupported, "fp4 on SM 86 has no kernel");
  for (const int sm : {86, 120}) {
    emulator_reset();
    emulator_set_sm(sm);
    emulator_set_version(1000);
    o = std::make_unique<Objects>();
    cusparseLtInit(&o->handle);
    expect_equal(describe(*o, of(128, 128, 64, kReal4FE2M1, kReal16F, kReal16F)), kNotSupported, "fp4 with K = 64");
  }
  MatDescriptor matrix;
  const auto dense = [&](std::int64_t rows) {
    return cusparseLtDenseDescriptorInit(&o->handle, &matrix, rows, 128, 128, 16, kReal4FE2M1, kOrderRow);
  };
  const auto structured = [&](std::int64_t rows) {
    return cusparseLtStructuredDescriptorInit(&o->handle, &matrix, rows, 128, 128, 16, kReal4FE2M1, kOrderRow,
                                              kSparsity50Percent);
  };
  expect_equal(dense(16), kSuccess, "16 rows of e2m1");
  expect_equal(dense(24), kNotSupported, "24 rows of e2m1");
  expect_equal(structured(32), kSuccess, "32 structured rows of e2m1");
  expect_equal(structured(48), kNotSupported, "48 structured rows of e2m1");
  for (const int sm : {86, 89, 120}) {
    for (const DataType type : {kReal16F, kReal8I, kReal8FE5M2}) {
      if (sm == 86 && type == kReal8FE5M2) continue;
      for (const std::int32_t mode : {2, 3}) {
        o = described(sm, of(64, 64, 64, type), 1000);
        expect_equal(set(*o, kAScaleMode, mode), kSuccess, "a block mode is accepted");
        expect_equal(select(*o), kNotSupported, "and has no kernel for type " + std::to_string(type));
      }
    }
  }
}

// y = A B for one row of A that holds `a` and zeros, and one column of B that holds `b`.
template <typename In, typename Out>
Out product_of(int sm, const Shape& shape, In a, In b, bool relu, float scale = 0) {
  auto o = described(sm, shape, 1000);
  if (relu) set(*o, kRelu, 1);
  alignas(16) static In left[64 * 64], right[64 * 64];
  alignas(16) static Out out[64 * 64];
  alignas(16) static float scales[4];
  std::fill_n(left, 64 * 64, In{}), std::fill_n(right, 64 * 64, In{}), std::fill_n(out, 64 * 64, Out{});
  left[0] = a, right[0] = b;
  if (scale != 0) {
    scales[0] = scale;
    const void* const pointer = scales;
    set(*o, kAScaleMode, std::int32_t{kScaleScalar32F});
    set(*o, kBScaleMode, std::int32_t{kScaleScalar32F});
    set(*o, kAScalePointer, pointer);
    set(*o, kBScalePointer, pointer);
  }
  expect_equal(plan(*o), kSuccess, "plan");
  std::size_t size = 0, buffer = 0;
  cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer);
  std::vector<std::max_align_t> blob(size / sizeof(std::max_align_t) + 1);
  cusparseLtSpMMACompress(&o->handle, &o->plan, left, blob.data(), nullptr, nullptr);
  const float one = 1, zero = 0;
  cusparseLtMatmul(&o->handle, &o->plan, &one, blob.data(), right, &zero, out, out, nullptr, nullptr, 0);
  cudaDeviceSynchronize();
  expect_clean("a product");
  destroy_all(*o);
  return out[0];
}

// 1 + 2^-11 lies half-way between two numbers of TF32.
void test_tf32_ties() {
  const float tie = 1 + 0x1p-11f, up = 1 + 0x1p-10f;
  const Shape shape = of(64, 64, 64, kReal32F);
  for (const int sm : {86, 120}) {
    const float dense = product_of<float, float>(sm, shape, 1.0f, tie, false);
    expect(dense == (sm == 120 ? 1.0f : up), "the dense operand's tie on SM " + std::to_string(sm));
    const float sparse = product_of<float, float>(sm, shape, tie, 1.0f, false);
    expect(sparse == up, "the sparse operand's tie goes away from zero on SM " + std::to_string(sm));
  }
}

void test_relu_zeros() {
  constexpr std::uint8_t kOne = 0x38, kMinusOne = 0xb8;  // e4m3
  constexpr std::uint16_t kHalfOne = 0x3c00, kHalfMinusOne = 0xbc00;
  const Shape fp8 = of(64, 64, 64, kReal8FE4M3, kReal16F, kReal16F);
  expect_equal(product_of<std::uint8_t, std::uint16_t>(120, fp8, kOne, kMinusOne, true), 0u, "fp8 on SM 120: +0");
  expect_equal(product_of<std::uint8_t, std::uint16_t>(89, fp8, kOne, kMinusOne, true), 0x8000u, "fp8 on SM 89: -0");
  const Shape half = of(64, 64, 64);
  expect_equal(product_of<std::uint16_t, std::uint16_t>(120, half, kHalfOne, kHalfMinusOne, true), 0x8000u,
               "16 bits on SM 120: -0");
}

void test_scale_pointers() {
  constexpr std::uint8_t kOne = 0x38;
  const Shape fp8 = of(64, 64, 64, kReal8FE4M3, kReal16F, kReal16F);
  for (const int sm : {89, 120}) {
    expect_equal(product_of<std::uint8_t, std::uint16_t>(sm, fp8, kOne, kOne, false, 4.0f), 0x3c00u,
                 "scalar scales into 16 bits are ignored on SM " + std::to_string(sm));
  }
}

void test_structs() {
  struct {
    int version;
    std::size_t bytes;
  } const cases[] = {{603, 13072}, {701, 1024}, {801, 512}, {1000, 512}};
  for (const auto& c : cases) {
    emulator_reset();
    emulator_set_version(c.version);
    auto handle = std::make_unique<Handle>();
    std::memset(handle.get(), 0x11, sizeof *handle);
    cusparseLtInit(handle.get());
    std::size_t written = sizeof *handle;
    while (written > 0 && handle->data[written - 1] == 0x11) --written;
    expect_equal(written, c.bytes, "bytes of a struct in " + std::to_string(c.version));
  }
  // Since 0.8 they are aligned to 16.
  emulator_reset();
  alignas(64) static unsigned char storage[2 * sizeof(Handle)];
  cusparseLtInit(reinterpret_cast<Handle*>(storage + 8));
  expect_violation("aligned to 16 bytes", "a struct at 8");
  // A copy of a matmul descriptor works while the original lives, in 0.10.
  for (const int version : {801, 1000}) {
    auto o = described(86, of(64, 64, 64), version);
    auto copy = std::make_unique<MatmulDescriptor>();
    std::memcpy(copy.get(), &o->matmul, sizeof *copy);
    const Status status = cusparseLtMatmulAlgSelectionInit(&o->handle, &o->selection, copy.get(), kAlgDefault);
    expect_equal(status, version == 1000 ? kSuccess : kInvalidValue, "a copy in " + std::to_string(version));
    emulator_clear_violations();
  }
}

// ---- what nobody reports ----

struct Memory {
  void *left = nullptr, *right = nullptr, *out = nullptr, *workspace = nullptr, *blob = nullptr;
  std::unique_ptr<Objects> o;
  explicit Memory(const Shape& shape, int sm = 86) : o(described(sm, shape)) {
    plan(*o);
    std::size_t size = 0, buffer = 0, scratch = 0;
    cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer);
    cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &scratch);
    cudaMalloc(&left, 1 << 16), cudaMalloc(&right, 1 << 16), cudaMalloc(&out, 1 << 16);
    cudaMalloc(&blob, size + (1 << 16));
    cudaMalloc(&workspace, scratch);
    for (void* each : {left, right, out}) cudaMemset(each, 0, 1 << 16);
    cusparseLtSpMMACompress(&o->handle, &o->plan, left, blob, nullptr, nullptr);
    cudaDeviceSynchronize();
  }
  void multiply(const void* b, void* d, void* scratch, Stream stream = nullptr) const {
    const float one = 1, zero = 0;
    cusparseLtMatmul(&o->handle, &o->plan, &one, blob, b, &zero, d, d, scratch, &stream, 1);
  }
};

void test_aliases() {
  Memory m(of(64, 64, 64));
  const auto check = [&](const void* b, void* d, void* scratch, const char* text) {
    m.multiply(b, d, scratch);
    cudaDeviceSynchronize();
    if (*text == '\0') {
      expect_clean("no alias");
    } else {
      expect_violation(text, text);
    }
  };
  auto* const bytes = static_cast<unsigned char*>(m.out);
  check(m.right, m.out, m.workspace, "");
  check(m.out, m.out, m.workspace, "D lies over B");
  check(bytes + 64 * 64, m.out, m.workspace, "D lies over B");
  check(bytes + 64 * 64 * 2, m.out, m.workspace, "");
  check(m.right, m.out, bytes + 128, "D lies over the workspace");
  check(m.right, m.out, m.blob, "the workspace lies over an operand");
  check(m.right, m.blob, m.workspace, "D lies over A");
  // Columns of one matrix, read and written beside each other, are no alias: B [64, 64] and D [64, 64] in lines of 128.
  Shape beside = of(64, 64, 64);
  beside.order_c = kOrderCol;
  beside.padding = 64;
  Memory lines(beside);
  lines.multiply(lines.out, static_cast<unsigned char*>(lines.out) + 128, lines.workspace);
  cudaDeviceSynchronize();
  expect_clean("columns beside each other");
}

void test_races() {
  Memory m(of(64, 64, 64));
  Stream first = nullptr, second = nullptr;
  constexpr unsigned kNonBlocking = 1;
  cudaStreamCreateWithFlags(&first, kNonBlocking);
  cudaStreamCreateWithFlags(&second, kNonBlocking);
  auto* const other = static_cast<unsigned char*>(m.out) + (1 << 15);
  m.multiply(m.right, m.out, m.workspace, first);
  m.multiply(m.right, other, m.workspace, second);
  expect_violation("two streams that nothing orders", "a shared workspace");
  cudaDeviceSynchronize();
  m.multiply(m.right, m.out, m.workspace, first);
  cudaStreamSynchronize(first);
  m.multiply(m.right, other, m.workspace, second);
  expect_clean("ordered by the host");
  CudaEvent event = nullptr;
  cudaEventCreate(&event);
  cudaEventRecord(event, second);
  cudaStreamWaitEvent(first, event, 0);
  m.multiply(m.right, m.out, m.workspace, first);
  expect_clean("ordered by an event");
  m.multiply(m.right, m.out, m.workspace, first);
  expect_clean("one stream");
  cudaDeviceSynchronize();
  cudaEventDestroy(event);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}

// The same within a capture, and among graphs: what is recorded is as unordered as what is launched.
void test_captured_races() {
  Memory m(of(64, 64, 64));
  Stream first = nullptr, second = nullptr;
  constexpr unsigned kNonBlocking = 1;
  cudaStreamCreateWithFlags(&first, kNonBlocking);
  cudaStreamCreateWithFlags(&second, kNonBlocking);
  auto* const other = static_cast<unsigned char*>(m.out) + (1 << 15);
  CudaEvent fork = nullptr, join = nullptr;
  cudaEventCreate(&fork);
  cudaEventCreate(&join);
  const auto capture = [&](bool ordered) {
    GraphHandle graph = nullptr;
    GraphExecHandle executable = nullptr;
    cudaStreamBeginCapture(first, CaptureMode::kGlobal);
    if (!ordered) cudaEventRecord(fork, first);
    m.multiply(m.right, m.out, m.workspace, first);
    if (ordered) cudaEventRecord(fork, first);
    cudaStreamWaitEvent(second, fork, 0);
    m.multiply(m.right, other, m.workspace, second);
    cudaEventRecord(join, second);
    cudaStreamWaitEvent(first, join, 0);
    m.multiply(m.right, m.out, m.workspace, first);
    expect_equal(cudaStreamEndCapture(first, &graph), kCudaSuccess, "end");
    cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    return executable;
  };
  cudaGraphExecDestroy(capture(false));
  expect_violation("two streams that nothing orders, in a capture", "a fork before the first product");
  GraphExecHandle graph = capture(true);
  expect_clean("a fork after it, and a join");
  cudaGraphLaunch(graph, first);
  cudaGraphLaunch(graph, first);
  expect_clean("a graph after itself");
  cudaGraphLaunch(graph, second);
  expect_violation("two streams that nothing orders", "one graph on two streams");
  cudaDeviceSynchronize();
  cudaGraphLaunch(graph, first);
  m.multiply(m.right, other, m.workspace, second);
  expect_violation("two streams that nothing orders", "a graph, and a product on another stream");
  cudaDeviceSynchronize();
  cudaGraphLaunch(graph, first);
  cudaEventRecord(join, first);
  cudaStreamWaitEvent(second, join, 0);
  m.multiply(m.right, other, m.workspace, second);
  expect_clean("ordered by an event");
  cudaDeviceSynchronize();
  cudaGraphExecDestroy(graph);
  cudaEventDestroy(fork);
  cudaEventDestroy(join);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}

void test_outputs_over_each_other() {
  Shape shape = of(64, 64, 64);
  shape.batches = 2;
  auto o = described(86, shape);
  const std::int64_t none = 0;
  for (MatDescriptor* matrix : {&o->c, &o->d}) {
    cusparseLtMatDescSetAttribute(&o->handle, matrix, kBatchStride, &none, sizeof none);
  }
  emulator_clear_violations();
  expect_equal(cusparseLtMatmulDescriptorInit(&o->handle, &o->matmul, kNonTranspose, kNonTranspose, &o->a, &o->b, &o->c,
                                              &o->d, kCompute32F),
               kSuccess, "a stride of 0 is legal");
  expect_equal(plan(*o), kSuccess, "plan");
  std::size_t size = 0, buffer = 0;
  cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer);
  std::vector<std::max_align_t> blob(size / sizeof(std::max_align_t) + 1);
  alignas(16) static std::uint16_t left[2 * 64 * 64], right[2 * 64 * 64], out[2 * 64 * 64];
  cusparseLtSpMMACompress(&o->handle, &o->plan, left, blob.data(), nullptr, nullptr);
  const float one = 1, zero = 0;
  cusparseLtMatmul(&o->handle, &o->plan, &one, blob.data(), right, &zero, out, out, nullptr, nullptr, 0);
  cudaDeviceSynchronize();
  expect_violation("the batches of D overlap each other", "batches of D in one place");
  // C that lies partly under D.
  auto apart = described(86, of(64, 64, 64));
  expect_equal(plan(*apart), kSuccess, "plan");
  cusparseLtSpMMACompress(&apart->handle, &apart->plan, left, blob.data(), nullptr, nullptr);
  cusparseLtMatmul(&apart->handle, &apart->plan, &one, blob.data(), right, &one, out + 64, out, nullptr, nullptr, 0);
  cudaDeviceSynchronize();
  expect_violation("D lies over C, and is not C itself", "C partly under D");
  cusparseLtMatmul(&apart->handle, &apart->plan, &one, blob.data(), right, &zero, out + 64, out, nullptr, nullptr, 0);
  cudaDeviceSynchronize();
  expect_clean("a C that nobody reads");
}

// Segment-K is said to hang for few tokens on an H100, and rows of measurements are there: so only where it is asked
// for.
void test_segments() {
  for (const auto& [asked, n, dies] : {std::tuple{false, 64, false}, {true, 64, true}, {true, 512, false}}) {
    if (asked) setenv("SPARSE24_EMULATOR_FATES", "-1=illegal", 1);
    auto o = described(90, of(64, n, 64));
    unsetenv("SPARSE24_EMULATOR_FATES");
    plan(*o);
    expect_equal(set(*o, kSplitK, -1), kSuccess, "Segment-K on SM 90");
    cusparseLtMatmulPlanDestroy(&o->plan);
    cusparseLtMatmulPlanInit(&o->handle, &o->plan, &o->matmul, &o->selection);
    alignas(16) static std::uint16_t left[64 * 64], right[512 * 64], out[512 * 64];
    alignas(16) static unsigned char blob[1 << 14];
    cusparseLtSpMMACompress(&o->handle, &o->plan, left, blob, nullptr, nullptr);
    const float one = 1, zero = 0;
    cusparseLtMatmul(&o->handle, &o->plan, &one, blob, right, &zero, out, out, nullptr, nullptr, 0);
    expect_equal(cudaDeviceSynchronize(), dies ? kCudaIllegalInstruction : kCudaSuccess,
                 "Segment-K of " + std::to_string(n) + " tokens");
  }
  emulator_reset();
}

void test_strict() {
  alignas(16) static unsigned char host[1 << 16];
  Memory m(of(64, 64, 64));
  m.multiply(host, m.out, m.workspace);
  cudaDeviceSynchronize();
  expect_clean("host memory is taken on trust");
  emulator_set_strict(1);
  m.multiply(host, m.out, m.workspace);
  expect_equal(cudaDeviceSynchronize(), kCudaIllegalAddress, "the fault of a host address");
  expect_violation("B is memory of the host", "strict");
  emulator_set_strict(0);
}

// On an H100, float16's id 36 leaves an illegal instruction, and nothing works afterwards.
void test_the_deadly_id() {
  for (const auto& [sm, type, dies] :
       {std::tuple{90, kReal16F, true}, {90, kReal16BF, false}, {100, kReal16F, false}}) {
    auto o = described(sm, of(64, 64, 64, type));
    plan(*o);
    const Status known = set(*o, kConfigId, 36);
    if (type == kReal16BF) {
      expect_equal(known, kInvalidValue, "bf16 has 21 ids");
      continue;
    }
    cusparseLtMatmulPlanDestroy(&o->plan);
    cusparseLtMatmulPlanInit(&o->handle, &o->plan, &o->matmul, &o->selection);
    alignas(16) static std::uint16_t right[64 * 64], out[64 * 64];
    alignas(16) static unsigned char blob[1 << 14], left[64 * 64 * 2];
    cusparseLtSpMMACompress(&o->handle, &o->plan, left, blob, nullptr, nullptr);
    const float one = 1, zero = 0;
    expect_equal(cusparseLtMatmul(&o->handle, &o->plan, &one, blob, right, &zero, out, out, nullptr, nullptr, 0),
                 kSuccess, "the launch itself succeeds");
    expect_equal(cudaDeviceSynchronize(), dies ? kCudaIllegalInstruction : kCudaSuccess, "what is left behind");
    void* memory = nullptr;
    expect_equal(cudaMalloc(&memory, 64), dies ? kCudaIllegalInstruction : kCudaSuccess, "and stays");
  }
  emulator_reset();
}

}  // namespace

extern "C" const char* cusparseGetErrorString(int status);

void test_facts() {
  test_workspaces();
  test_sizes();
  test_ids();
  test_splits();
  test_gelu();
  test_refusals();
  test_tf32_ties();
  test_relu_zeros();
  test_scale_pointers();
  test_structs();
  test_aliases();
  test_races();
  test_captured_races();
  test_outputs_over_each_other();
  test_segments();
  test_strict();
  test_the_deadly_id();
  expect(std::string(cusparseGetErrorString(10)) == "operation not supported", "cuSPARSE's own text of a status");
  emulator_reset();
}

}  // namespace emulator::test
