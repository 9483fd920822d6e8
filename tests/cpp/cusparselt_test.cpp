// The cuSPARSELt backend on the emulator (tests/emulator): results against double loops, what is refused before the
// library sees it, plans, blobs, capture, threads, search, and every call made to fail in turn. Run plain, under
// AddressSanitizer and UBSan, and under ThreadSanitizer; with SPARSE24_EMULATOR_VERSION and _SM for other libraries
// and GPUs. Passing here is not validation on a GPU. Closes with a line "N passed, N failed".
// More than 300 lines: one program, for its sections (results, refusals, blobs, plans, capture, threads, search,
// faults) share the device memory and the product that its first hundred lines build, and run in one process.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cusparselt/api.h"
#include "cusparselt/types.h"
#include "emulator.h"
#include "numbers.h"

using namespace sparse24;
using namespace sparse24::cusparselt;

namespace {

int passed = 0, failed = 0;

void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// `act` throws an E whose text holds `part`.
template <typename E>
void expect_throw(const std::function<void()>& act, const std::string& part, const std::string& what) {
  std::string got = "nothing";
  try {
    act();
  } catch (const E& error) {
    got = error.what();
    if (contains(got, part)) return expect(true, what);
  } catch (const std::exception& error) {
    got = std::string("another type: ") + error.what();
  }
  expect(false, what + ": expected '" + part + "', got " + got);
}

// ---- device memory and numbers ----

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(std::max<std::size_t>(bytes, 16)) {
    check_cuda(cuda().Malloc(&address_, bytes_), "cudaMalloc");
  }
  Memory(const std::vector<float>& numbers, DType dtype)
      : Memory(numbers.size() * static_cast<std::size_t>(size_of(dtype))) {
    std::vector<unsigned char> host(bytes_);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      emulator::store(host.data() + i * static_cast<std::size_t>(size_of(dtype)), traits(dtype).type, numbers[i]);
    }
    check_cuda(cuda().MemcpyAsync(address_, host.data(), bytes_, abi::kHostToDevice, nullptr), "cudaMemcpyAsync");
    synchronize(nullptr);
  }
  ~Memory() { cuda().Free(address_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* get() const { return address_; }
  std::vector<float> read(std::size_t count, DType dtype, abi::Stream stream) const {
    std::vector<unsigned char> host(count * static_cast<std::size_t>(size_of(dtype)));
    check_cuda(cuda().MemcpyAsync(host.data(), address_, host.size(), abi::kDeviceToHost, stream), "cudaMemcpyAsync");
    synchronize(stream);
    std::vector<float> numbers(count);
    for (std::size_t i = 0; i < count; ++i) {
      numbers[i] = emulator::load(host.data() + i * static_cast<std::size_t>(size_of(dtype)), traits(dtype).type);
    }
    return numbers;
  }

 private:
  std::size_t bytes_;
  void* address_ = nullptr;
};

std::mt19937 rng(24);

// Whole numbers that every type holds exactly, so that only the output rounds.
std::vector<float> whole_numbers(std::int64_t count) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  std::uniform_int_distribution<int> pick(-4, 4);
  std::generate(numbers.begin(), numbers.end(), [&] { return static_cast<float>(pick(rng)); });
  return numbers;
}

// 2:4 along k, or 1:2 for float32.
std::vector<float> sparse_weight(std::int64_t m, std::int64_t k, DType dtype) {
  std::vector<float> weight = whole_numbers(m * k);
  const std::size_t group = dtype == DType::kFloat32 ? 2 : 4;
  for (std::size_t first = 0; first < weight.size(); first += group) {
    const std::size_t drop = std::uniform_int_distribution<std::size_t>(0, group - 1)(rng);
    weight[first + drop] = 0;
    if (group == 4) weight[first + (drop + 1 + first / 4 % 3) % 4] = 0;
  }
  return weight;
}

double activate(double value, const Product& p) {
  switch (p.activation) {
    case Activation::kNone: return value;
    case Activation::kRelu:
      return value <= p.relu_threshold ? 0 : std::min(value, static_cast<double>(p.relu_upper_bound));
    default: return 0.5 * value * (1 + std::tanh(0.7978845608028654 * (value + 0.044715 * value * value * value)));
  }
}

bool is_integer(DType dtype) { return dtype == DType::kInt8 || dtype == DType::kInt32; }

// Everything one product needs, on the device.
struct Case {
  explicit Case(const Product& product)
      : p(product),
        weight(sparse_weight(p.m, p.k, p.in)),
        x(whole_numbers(span(p.x_stride, p.x_batch_stride))),
        bias(whole_numbers(p.m)),
        scale(whole_numbers(p.m)),
        bias_type(p.in == DType::kInt8 ? DType::kFloat32 : p.out),
        d_weight(weight, p.in),
        d_x(x, p.in),
        d_bias(bias, bias_type),
        d_scale(scale, DType::kFloat32),
        d_y(static_cast<std::size_t>(span(p.y_stride, p.y_batch_stride) * size_of(p.out))),
        needed(sizes(0, p, nullptr, d_bias.get())),
        blob(needed.blob),
        buffer(needed.compress_buffer),
        workspace(needed.workspace) {}

  std::int64_t span(std::int64_t stride, std::int64_t batch_stride) const {
    return (p.batches - 1) * batch_stride + p.n * stride;
  }
  void compress_weight(abi::Stream stream = nullptr) {
    key = compress(0, p, d_weight.get(), blob.get(), buffer.get(), stream, d_bias.get());
  }
  Operands operands() const {
    return {.blob = blob.get(),
            .key = key,
            .x = d_x.get(),
            .y = d_y.get(),
            .bias = p.has_bias ? d_bias.get() : nullptr,
            .scale = p.scale_per_row ? static_cast<const float*>(d_scale.get()) : nullptr,
            .alpha = alpha,
            .workspace = workspace.get(),
            .workspace_bytes = needed.workspace};
  }
  void run(abi::Stream stream = nullptr) { matmul(0, p, operands(), stream); }

  // Largest difference from the double loop beyond the rounding of the output's type.
  double error(abi::Stream stream = nullptr) const {
    const std::vector<float> y = d_y.read(static_cast<std::size_t>(span(p.y_stride, p.y_batch_stride)), p.out, stream);
    double worst = 0;
    for (std::int64_t b = 0; b < p.batches; ++b) {
      for (std::int64_t token = 0; token < p.n; ++token) {
        for (std::int64_t row = 0; row < p.m; ++row) {
          const double want = expected(b, token, row);
          const double got = y[static_cast<std::size_t>(b * p.y_batch_stride + token * p.y_stride + row)];
          // Rounding to a whole number takes away up to a half.
          const double apart = std::max(std::abs(got - want) - (is_integer(p.out) ? 0.5 : 0), 0.0);
          worst = std::max(worst, apart / std::max(1.0, std::abs(want)));
        }
      }
    }
    return worst;
  }

  double expected(std::int64_t b, std::int64_t token, std::int64_t row) const {
    double sum = 0;
    for (std::int64_t k = 0; k < p.k; ++k) {
      sum += static_cast<double>(weight[static_cast<std::size_t>(row * p.k + k)]) *
             x[static_cast<std::size_t>(b * p.x_batch_stride + token * p.x_stride + k)];
    }
    sum *= p.scale_per_row ? scale[static_cast<std::size_t>(row)] : alpha;
    const double value = activate(sum + (p.has_bias ? bias[static_cast<std::size_t>(row)] : 0), p);
    return p.out == DType::kInt8 ? std::clamp(value, -128.0, 127.0) : value;
  }

  Product p;
  std::vector<float> weight, x, bias, scale;
  DType bias_type;
  Memory d_weight, d_x, d_bias, d_scale, d_y;
  Sizes needed;
  Memory blob, buffer, workspace;
  BlobKey key;
  float alpha = 1;
};

double tolerance(DType out) {
  switch (out) {
    case DType::kFloat16: return 6e-4;
    case DType::kBFloat16: return 4.5e-3;
    default: return 2e-6;
  }
}

Product product(DType in, DType out, std::int64_t m, std::int64_t n, std::int64_t k) {
  Product p;
  p.in = in;
  p.out = out;
  p.m = m;
  p.n = n;
  p.k = p.x_stride = k;
  p.y_stride = m;
  return p;
}

Product half(std::int64_t m = 64, std::int64_t n = 32, std::int64_t k = 128) {
  return product(DType::kFloat16, DType::kFloat16, m, n, k);
}

void expect_right(const Product& p, float alpha = 1) {
  Case c(p);
  c.alpha = alpha;
  c.compress_weight();
  c.run();
  const double error = c.error();
  expect(error <= tolerance(p.out), message("result of ", describe(p), ": error ", error));
}

// ---- results ----

struct Types {
  DType in, out;
};

std::vector<Types> types_of(int sm, int version) {
  std::vector<Types> all = {{DType::kFloat16, DType::kFloat16}, {DType::kBFloat16, DType::kBFloat16},
                            {DType::kFloat32, DType::kFloat32}, {DType::kInt8, DType::kInt8},
                            {DType::kInt8, DType::kInt32},      {DType::kInt8, DType::kFloat16},
                            {DType::kInt8, DType::kBFloat16}};
  for (const DType in : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (const DType out : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      if (sm >= (version < 800 ? 90 : 89)) all.push_back({in, out});
    }
  }
  return all;
}

void test_results() {
  const int sm = open_device(0).sm;
  for (const auto& [in, out] : types_of(sm, library().version)) {
    for (const bool has_bias : {false, true}) {
      Product p = product(in, out, 64, 32, 128);
      p.has_bias = has_bias;
      expect_right(p);
      p.activation = Activation::kRelu;
      expect_right(p);
      p.relu_threshold = 2;
      p.relu_upper_bound = 6;
      expect_right(p);
    }
    Product wide = product(in, out, 96, 16, 64);
    wide.x_stride = 96;
    wide.y_stride = 128;
    expect_right(wide);
    wide.batches = 3;
    wide.x_batch_stride = 96 * 20;
    wide.y_batch_stride = 128 * 16;
    expect_right(wide, 0.5f);
    wide.x_batch_stride = 0;  // one input for every batch
    expect_right(wide);
    expect_right(product(in, out, 288, 16, 64));  // the blob's layout changes at 256 rows
  }
  Product scaled = product(DType::kInt8, DType::kFloat16, 64, 32, 128);
  scaled.scale_per_row = scaled.has_bias = true;
  expect_right(scaled);
  Product gelu = product(DType::kInt8, DType::kInt8, 64, 32, 128);
  gelu.activation = Activation::kGeluTanh;
  gelu.has_bias = true;
  expect_right(gelu, 0.02f);
}

// ---- what is refused before the library sees it ----

void test_refusals() {
  const int sm = open_device(0).sm;
  struct Row {
    const char* text;
    std::function<void(Product&)> change;
  };
  const std::vector<Row> rows = {
      {"m (output features) must be a positive multiple of 16", [](Product& p) { p.m = 100; }},
      {"nearest legal: 96 and 112", [](Product& p) { p.m = 100; }},
      {"n (tokens) must be a positive multiple of 8", [](Product& p) { p.n = 7; }},
      {"nearest legal: 8", [](Product& p) { p.n = 0; }},
      {"n (tokens)", [](Product& p) { p.n = -8; }},
      {"k (input features) must be a positive multiple of 16", [](Product& p) { p.k = 24; }},
      {"x_stride must be a positive multiple of 8", [](Product& p) { p.x_stride = 129; }},
      {"x_stride must be at least k", [](Product& p) { p.x_stride = 64; }},
      {"y_stride must be a positive multiple of 8", [](Product& p) { p.y_stride = 65; }},
      {"y_stride must be at least m", [](Product& p) { p.y_stride = 32; }},
      {"must not exceed", [](Product& p) { p.k = p.x_stride = std::int64_t{1} << 32; }},
      {"must not exceed 2^63-1", [](Product& p) { p.x_stride = std::int64_t{1} << 60; }},
      {"batches must be", [](Product& p) { p.batches = 0; }},
      {"x_batch_stride", [](Product& p) { p.batches = 2, p.x_batch_stride = 100, p.y_batch_stride = 64 * 32; }},
      {"x_batch_stride", [](Product& p) { p.batches = 2, p.x_batch_stride = -8, p.y_batch_stride = 64 * 32; }},
      {"y_batch_stride must not be 0", [](Product& p) { p.batches = 2; }},
      {"y_batch_stride must be a multiple of 8", [](Product& p) { p.batches = 2, p.y_batch_stride = 64 * 32 + 1; }},
      {"float16 inputs give float16, not float32", [](Product& p) { p.out = DType::kFloat32; }},
      {"int8 inputs give int8, int32, float16, bfloat16",
       [](Product& p) { p.in = DType::kInt8, p.out = DType::kFloat32; }},
      {"inputs of int32 have no sparse product", [](Product& p) { p.in = p.out = DType::kInt32; }},
      {"tanh form of GELU only", [](Product& p) { p.activation = Activation::kGelu; }},
      {"gelu_tanh is fused for int8", [](Product& p) { p.activation = Activation::kGeluTanh; }},
      {"relu_threshold must be finite", [](Product& p) { p.relu_threshold = INFINITY; }},
      {"relu_upper_bound must be", [](Product& p) { p.relu_upper_bound = NAN; }},
      {"id must not be negative", [](Product& p) { p.algorithm.id = -1; }},
      {"algorithm id must be below", [](Product& p) { p.algorithm.id = 1000; }},
      {"split_k", [](Product& p) { p.algorithm.split_k = -2; }},
      {"split_k", [](Product& p) { p.algorithm.split_k = 129; }},
      {"split_k_mode must be", [](Product& p) { p.algorithm.split_k_mode = 7; }},
      {"split_k_buffers must be", [](Product& p) { p.algorithm.split_k_buffers = -2; }},
  };
  for (const Row& row : rows) {
    Product p = half();
    row.change(p);
    expect_throw<InvalidArgument>([&] { sizes(0, p, nullptr); }, row.text, message("refused: ", row.text));
  }
  if (sm != 90) {
    Product segment = half();
    segment.algorithm.split_k = -1;
    expect_throw<InvalidArgument>([&] { sizes(0, segment, nullptr); }, "Segment-K", "Segment-K off sm_90");
  }
  const Product fp8 = product(DType::kFloat8E4M3, DType::kFloat16, 64, 32, 128);
  expect(contains(why_illegal(fp8, 86, 801), "needs an sm_89 GPU"), "fp8 before sm_89");
  expect(contains(why_illegal(fp8, 89, 701), "needs cuSPARSELt 0.8.0"), "fp8 on sm_89 before 0.8");
  expect(why_illegal(fp8, 90, 701).empty(), "fp8 on sm_90 with 0.7.1");
  expect(contains(why_illegal(half(), 100, 603), "nearest: 0.7.1"), "sm_100 with 0.6.3");
  expect(contains(why_illegal(half(), 121, 701), "nearest: 0.8.1"), "sm_121 with 0.7.1");
  expect(contains(why_illegal(product(DType::kInt8, DType::kInt8, 64, 32, 128), 103, 1000), "sm_103"),
         "int8 on sm_103");
}

void test_operand_refusals() {
  Case c(half());
  c.compress_weight();
  const long launches = emulator_launches();
  const auto with = [&](const std::function<void(Operands&)>& change) {
    Operands operands = c.operands();
    change(operands);
    matmul(0, c.p, operands, nullptr);
  };
  const auto off = [](const void* address) { return static_cast<const char*>(address) + 8; };
  using Invalid = InvalidArgument;
  expect_throw<Invalid>([&] { with([](auto& o) { o.x = nullptr; }); }, "x is null", "x null");
  expect_throw<Invalid>([&] { with([](auto& o) { o.y = nullptr; }); }, "y is null", "y null");
  expect_throw<Invalid>([&] { with([](auto& o) { o.blob = nullptr; }); }, "blob is null", "blob null");
  expect_throw<Invalid>([&] { with([&](auto& o) { o.x = off(o.x); }); }, "x must be aligned to 16", "x misaligned");
  if (c.needed.workspace > 0) {  // sm_100 wants none
    expect_throw<Invalid>([&] { with([](auto& o) { o.workspace_bytes = 0; }); }, "the workspace must hold",
                          "workspace");
  }
  expect_throw<Invalid>([&] { compress(0, c.p, nullptr, c.blob.get(), c.buffer.get(), nullptr); }, "dense is null", "");
  expect_throw<Invalid>([&] { compress(0, c.p, c.d_weight.get(), nullptr, c.buffer.get(), nullptr); }, "blob is null",
                        "");
  Product with_bias = c.p;
  with_bias.has_bias = true;
  release_thread();  // and its plans
  expect_throw<Invalid>([&] { matmul(0, with_bias, c.operands(), nullptr); }, "made with its address", "no bias yet");
  sizes(0, with_bias, nullptr, c.d_bias.get());
  expect_throw<Invalid>([&] { matmul(0, with_bias, c.operands(), nullptr); }, "bias is null", "bias null");
  expect_throw<Invalid>([] { set_plan_capacity(0); }, "at least 1 plan", "no capacity");
  expect_throw<Invalid>([&] { search(0, c.p, {}, {}, 0, 1, nullptr); }, "at least 1 launch", "no launches");
  expect(emulator_launches() == launches, "a refused call queues nothing");
}

// ---- blobs ----

void test_blobs() {
  Case c(half(288, 16, 64));
  c.compress_weight();
  Product other = c.p;
  other.algorithm.id = 1;
  expect_throw<InvalidArgument>([&] { matmul(0, other, c.operands(), nullptr); }, "compress the weight again",
                                "a blob of another algorithm");
  other = half(288, 16, 64);
  other.n = 64;  // another number of tokens reads the same blob
  expect(blob_key(0, other) == c.key, "blobs do not depend on the tokens");
  for (const Algorithm& algorithm : algorithms(0, c.p, nullptr)) {
    Product tuned = c.p;
    tuned.algorithm = algorithm;
    Case again(tuned);
    again.compress_weight();
    again.run();
    expect(again.error() <= tolerance(tuned.out), message("algorithm ", algorithm.id, " split_k ", algorithm.split_k));
  }
}

// ---- plans ----

void test_plans() {
  release_thread();
  set_plan_capacity(2);
  Case a(half()), b(half(64, 40, 128)), c(half(64, 48, 128));
  expect(plans_cached() == 2, "the capacity holds");
  a.compress_weight();  // builds its plan again
  a.run();
  expect(a.error() <= tolerance(a.p.out), "a plan that was dropped is built again");
  set_plan_capacity(256);
  sizes(0, b.p, nullptr);
  const int before = plans_cached();
  for (int i = 0; i < 10; ++i) b.compress_weight(), b.run();
  expect(plans_cached() == before, "a plan is built once");
  synchronize(nullptr);
}

void test_host_cost() {
  Product p = half(1024, 512, 1024);
  p.has_bias = true;
  Memory bias(64);
  const Sizes needed = sizes(0, p, nullptr, bias.get());
  // Never run: the queue is dropped by the reset. So the operands can be small.
  Memory blob(needed.blob), x(64), y(64), workspace(needed.workspace);
  const Operands operands{.blob = blob.get(),
                          .key = blob_key(0, p),
                          .x = x.get(),
                          .y = y.get(),
                          .bias = bias.get(),
                          .scale = nullptr,
                          .workspace = workspace.get(),
                          .workspace_bytes = needed.workspace};
  const auto microseconds = [](int calls, const std::function<void()>& call) {
    std::vector<double> times;
    for (int round = 0; round < 21; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) call();
      const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
      times.push_back(spent.count() / calls);
    }
    std::nth_element(times.begin(), times.begin() + 10, times.end());
    return times[10];
  };
  const long allocations = emulator_allocations(), synchronizations = emulator_synchronizations();
  const double hit = microseconds(200, [&] { matmul(0, p, operands, nullptr); });
  expect(emulator_allocations() == allocations && emulator_synchronizations() == synchronizations,
         "a call whose plan exists neither allocates nor synchronises");
  set_plan_capacity(1);
  Product q = p;
  q.n += 8;
  const double build = microseconds(20, [&] {
    sizes(0, q, nullptr, bias.get());
    sizes(0, p, nullptr, bias.get());
  });
  set_plan_capacity(256);
  std::printf("host cost of a call: %.2f us; building its plan each time: %.2f us more\n", hit, build / 2);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  expect(hit <= 3, message("host cost of a call is at most 3 us, not ", hit));
#endif
}

// ---- capture ----

struct Capture {
  abi::CudaError (*begin)(abi::Stream, int);
  abi::CudaError (*end)(abi::Stream, void**);
  abi::CudaError (*instantiate)(void**, void*, unsigned long long);
  abi::CudaError (*launch)(void*, abi::Stream);
  abi::CudaError (*destroy_graph)(void*);
  abi::CudaError (*destroy_exec)(void*);

  template <typename F>
  static void find(const char* name, F*& function) {
    function = reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
    if (function == nullptr) throw Error(message("the emulator has no ", name));
  }
  Capture() {
    find("cudaStreamBeginCapture", begin);
    find("cudaStreamEndCapture", end);
    find("cudaGraphInstantiate", instantiate);
    find("cudaGraphLaunch", launch);
    find("cudaGraphDestroy", destroy_graph);
    find("cudaGraphExecDestroy", destroy_exec);
  }
};

void test_capture() {
  const Capture graph;
  abi::Stream stream = nullptr;
  check_cuda(cuda().StreamCreate(&stream), "cudaStreamCreate");
  Case c(half());
  c.compress_weight(stream);
  c.run(stream);
  synchronize(stream);
  check_cuda(cuda().MemsetAsync(c.d_y.get(), 0xFF, 64 * 32 * 2, stream), "cudaMemsetAsync");
  synchronize(stream);
  check_cuda(graph.begin(stream, 2), "cudaStreamBeginCapture");
  expect(is_capturing(stream), "the stream captures");
  c.run(stream);
  expect_throw<Error>([&] { sizes(0, half(64, 24, 128), stream); }, "run it once before the capture", "no growth");
  SearchBuffers buffers{};
  expect_throw<Error>([&] { search(0, c.p, {}, buffers, 1, 1, stream); }, "while the stream captures", "no search");
  expect_throw<Error>([&] { library_search(0, c.p, buffers, 1, stream); }, "while the stream captures", "no search");
  void *captured = nullptr, *executable = nullptr;
  check_cuda(graph.end(stream, &captured), "cudaStreamEndCapture");
  expect(captured != nullptr, "refusals leave the capture valid");
  check_cuda(graph.instantiate(&executable, captured, 0), "cudaGraphInstantiate");
  check_cuda(graph.launch(executable, stream), "cudaGraphLaunch");
  expect(c.error(stream) <= tolerance(c.p.out), "a replayed graph computes");
  graph.destroy_exec(executable);
  graph.destroy_graph(captured);
  cuda().StreamDestroy(stream);
}

// ---- threads and devices ----

void test_threads() {
  release_thread();
  const long live = emulator_live_objects();
  std::vector<std::thread> threads;
  std::vector<double> errors(4, 1);
  for (std::size_t i = 0; i < errors.size(); ++i) {
    threads.emplace_back([&errors, i] {
      abi::Stream stream = nullptr;
      check_cuda(cuda().StreamCreate(&stream), "cudaStreamCreate");
      {
        // The cases share the random numbers' state, so each thread makes its own weight.
        Product p = half(64, 16 + 8 * static_cast<std::int64_t>(i), 128);
        const Sizes needed = sizes(0, p, stream);
        std::vector<float> weight(static_cast<std::size_t>(p.m * p.k)), x(static_cast<std::size_t>(p.n * p.k), 1);
        for (std::size_t j = 0; j < weight.size(); j += 4) weight[j] = static_cast<float>(i + 1);
        const Memory d_weight(weight, p.in), d_x(x, p.in), blob(needed.blob), buffer(needed.compress_buffer);
        const Memory workspace(needed.workspace), y(static_cast<std::size_t>(p.n * p.m * 2));
        const BlobKey key = compress(0, p, d_weight.get(), blob.get(), buffer.get(), stream);
        for (int round = 0; round < 20; ++round) {
          matmul(0, p,
                 {.blob = blob.get(),
                  .key = key,
                  .x = d_x.get(),
                  .y = y.get(),
                  .bias = nullptr,
                  .scale = nullptr,
                  .workspace = workspace.get(),
                  .workspace_bytes = needed.workspace},
                 stream);
        }
        const std::vector<float> got = y.read(static_cast<std::size_t>(p.n * p.m), p.out, stream);
        const float want = 32 * static_cast<float>(i + 1);
        errors[i] = 0;
        for (const float value : got) errors[i] = std::max<double>(errors[i], std::abs(value - want));
      }
      cuda().StreamDestroy(stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const double error : errors) expect(error == 0, "a thread's products");
  expect(emulator_live_objects() == live, "threads leave nothing behind");
}

void test_devices() {
  release_thread();
  emulator_set_device_count(2);
  open_device(0);
  int current = -1;
  expect(open_device(1).sm == open_device(0).sm, "another device than the current one is asked about");
  expect(cuda().GetDevice(&current) == abi::kCudaSuccess && current == 0, "and the current one stays");
  expect_throw<InvalidArgument>([] { sizes(1, half(), nullptr); }, "the current device must be 1", "a plan elsewhere");
  check_cuda(cuda().SetDevice(1), "cudaSetDevice");
  expect(open_device(0).sm == open_device(1).sm, "the first device from the second");
  expect_throw<InvalidArgument>([] { sizes(0, half(), nullptr); }, "the current device must be 0", "a plan elsewhere");
  expect_throw<InvalidArgument>([] { open_device(7); }, "there is no device 7", "a device that is not there");
  release_thread();
  check_cuda(cuda().SetDevice(0), "cudaSetDevice");
  emulator_set_device_count(1);
}

void test_no_device() {
  release_thread();
  const int sm = open_device(0).sm;
  release_thread();
  emulator_set_driver(0);
  expect(driver().devices == 0 && !driver().problem.empty(), "the driver says why");
  expect_throw<Error>([] { open_device(0); }, "no NVIDIA driver is loaded", "no driver");
  emulator_set_driver(1);
  emulator_set_sm(75);
  expect_throw<Error>([] { open_device(0); }, "sm_75", "too old a GPU");
  emulator_set_sm(sm);
  expect(open_device(0).sm == sm, "a device that came back is used");
}

// ---- search ----

void test_search() {
  for (Product p : {half(), product(DType::kInt8, DType::kInt32, 64, 32, 128)}) {
    p.has_bias = true;
    Case c(p);
    const Sizes most = search_sizes(0, p, nullptr, c.d_bias.get());
    Memory blob(most.blob), buffer(most.compress_buffer), workspace(most.workspace);
    const SearchBuffers buffers{c.d_weight.get(), c.d_x.get(), c.d_y.get(),  c.d_bias.get(),
                                nullptr,          blob.get(),  buffer.get(), workspace.get()};
    const std::vector<Trial> trials = search(0, p, algorithms(0, p, nullptr), buffers, 3, 1e6f, nullptr);
    expect(trials.size() == algorithms(0, p, nullptr).size(), "every algorithm is tried");
    expect(trials.front().algorithm == Algorithm{} && trials.front().refused.empty(), "the default first");
    for (const Trial& trial : trials) {
      expect(trial.refused.empty() ? trial.microseconds > 0 && trial.error <= 2e-3 : trial.microseconds == 0,
             message("trial of ", trial.algorithm.id, ": ", trial.refused));
    }
    expect(search(0, p, {Algorithm{1}}, buffers, 1, -1, nullptr).size() == 1, "a spent budget leaves the default");
    emulator_set_search_winner(1);
    expect(library_search(0, p, buffers, 2, nullptr).id == 1, "the library's own search");
    emulator_set_search_winner(-1);
    // What was searched for runs afterwards as before.
    c.compress_weight();
    c.run();
    expect(c.error() <= tolerance(p.out), "a search leaves the plans as they were");
  }
}

// ---- faults ----

void sequence() {
  Case c(half());
  c.compress_weight();
  c.run();
  c.error();
  // Hundreds of algorithms, each of whose calls would fail in turn, take minutes.
  const Sizes most = algorithms(0, c.p, nullptr).size() < 100 ? search_sizes(0, c.p, nullptr) : c.needed;
  Memory blob(most.blob), buffer(most.compress_buffer), workspace(most.workspace);
  const SearchBuffers buffers{c.d_weight.get(), c.d_x.get(), c.d_y.get(),  nullptr,
                              nullptr,          blob.get(),  buffer.get(), workspace.get()};
  search(0, c.p, {Algorithm{1}}, buffers, 1, 1e6f, nullptr);
  library_search(0, c.p, buffers, 1, nullptr);
}

// Each call of the sequence fails once. What failed reaches the caller, or was one trial of a search, or a release
// that nobody can mend: then at most that one object stays. Everything else is given back, and the next sequence works.
void test_faults() {
  release_thread();
  const long objects = emulator_live_objects();
  const std::size_t memory = emulator_live_memory();
  const long before = emulator_calls();
  sequence();
  release_thread();
  const long calls = emulator_calls() - before;
  expect(emulator_live_objects() == objects && emulator_live_memory() == memory, "nothing leaks without a fault");
  long thrown = 0, swallowed = 0, stray = 0;
  for (long n = 1; n <= calls; ++n) {
    const long live = emulator_live_objects();
    const std::size_t held = emulator_live_memory();
    emulator_fail_at(n, 7);
    bool failed_loudly = false;
    try {
      sequence();
    } catch (const Error&) {
      failed_loudly = true;
    }
    release_thread();
    emulator_fail_at(0, 0);
    const long left = emulator_live_objects() - live;
    const bool kept_memory = emulator_live_memory() != held;
    ++(failed_loudly ? thrown : swallowed);
    if (left + (kept_memory ? 1 : 0) > (failed_loudly ? 0 : 1)) ++stray;
  }
  std::printf("faults: %ld calls made to fail, %ld thrown, %ld in releases or in trials of a search\n", calls, thrown,
              swallowed);
  expect(thrown > 0 && stray == 0, message("a fault leaks: ", stray, " of ", calls));
  emulator_reset();
  expect_right(half());
}

}  // namespace

int main() {
  Dl_info emulator;
  if (dladdr(reinterpret_cast<void*>(&emulator_reset), &emulator) == 0) return 2;
  setenv("SPARSE24_CUSPARSELT", emulator.dli_fname, 1);
  setenv("SPARSE24_CUDART", emulator.dli_fname, 1);
  const Library opened = library();
  std::printf("cuSPARSELt %s emulated, sm_%d\n", version_text(opened.version).c_str(), open_device(0).sm);
  expect(opened.caveat.empty() == (opened.version >= 801), "old versions have a caveat");
  test_results();
  test_refusals();
  test_operand_refusals();
  test_blobs();
  test_plans();
  test_capture();
  test_threads();
  test_devices();
  test_search();
  expect(emulator_refusals() == 0, std::string("the library refused: ") + emulator_last_refusal());
  test_no_device();
  release_thread();
  expect(std::string(emulator_violations()).empty(), std::string("violations: ") + emulator_violations());
  expect(emulator_live_objects() == 0, "objects left");
  expect(emulator_live_memory() == 0, "memory left");
  emulator_reset();
  test_host_cost();
  release_thread();
  emulator_reset();
  test_faults();
  release_thread();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
