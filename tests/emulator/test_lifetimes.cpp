// Objects that were moved, destroyed or shared; search; faults at every call; what a call costs.
#include <chrono>
#include <thread>

#include "test.h"

namespace emulator::test {

namespace {

// fp16 64 x 32 x 64 on device memory, ready to multiply.
struct Ready {
  std::unique_ptr<Objects> o = std::make_unique<Objects>();
  void *dense = nullptr, *blob = nullptr, *right = nullptr, *out = nullptr, *workspace = nullptr;
  float one = 1, zero = 0;

  // The first status that is not success, of either library.
  int prepare(const Shape& shape = {.m = 64, .n = 32, .k = 64}) {
    int status = cusparseLtInit(&o->handle);
    if (!status) status = describe(*o, shape);
    if (!status) status = plan(*o);
    std::size_t size = 0, buffer = 0, work = 0;
    const auto bytes = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b * 2); };
    if (!status) status = cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer);
    if (!status) status = cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &work);
    if (!status) status = cudaMalloc(&dense, bytes(shape.m, shape.k));
    if (!status) status = cudaMalloc(&blob, size);
    if (!status) status = cudaMalloc(&right, bytes(shape.k, shape.n));
    if (!status) status = cudaMalloc(&out, bytes(shape.m, shape.n));
    if (!status) status = cudaMalloc(&workspace, work);
    if (!status) status = cudaMemset(dense, 0, bytes(shape.m, shape.k));
    if (!status) status = cudaMemset(right, 0, bytes(shape.k, shape.n));
    if (!status) status = cusparseLtSpMMACompress(&o->handle, &o->plan, dense, blob, nullptr, nullptr);
    return status;
  }
  Status multiply() {
    return cusparseLtMatmul(&o->handle, &o->plan, &one, blob, right, &zero, out, out, workspace, nullptr, 0);
  }
  void release() {
    for (void* memory : {dense, blob, right, out, workspace}) cudaFree(memory);
    cusparseLtMatmulPlanDestroy(&o->plan);
    cusparseLtMatmulAlgSelectionDestroy(&o->selection);
    for (MatDescriptor* matrix : {&o->a, &o->b, &o->c, &o->d}) cusparseLtMatDescriptorDestroy(matrix);
    cusparseLtDestroy(&o->handle);
  }
};

template <typename Break>
void expect_refused(const char* text, Status status, const Break& breaking) {
  emulator_reset();
  Ready r;
  expect_equal(r.prepare(), 0, "prepare");
  breaking(r);
  expect_equal(r.multiply(), status, std::string("refused: ") + text);
  expect_violation(text, text);
  emulator_reset();
}

void test_broken_lifetimes() {
  expect_refused("copied or moved", kInvalidValue, [](Ready& r) {
    auto moved = std::make_unique<Objects>();
    std::memcpy(&moved->plan, &r.o->plan, sizeof moved->plan);
    std::memcpy(&moved->handle, &r.o->handle, sizeof moved->handle);
    r.o = std::move(moved);
  });
  expect_refused("matrix descriptor of the product is destroyed", kInvalidValue,
                 [](Ready& r) { cusparseLtMatDescriptorDestroy(&r.o->b); });
  expect_refused("algorithm selection of the plan is destroyed", kInvalidValue,
                 [](Ready& r) { cusparseLtMatmulAlgSelectionDestroy(&r.o->selection); });
  expect_refused("matmul descriptor is gone", kInvalidValue, [](Ready& r) { r.o->matmul = {}; });
  expect_refused("another device", kInvalidValue, [](Ready&) {
    emulator_set_device_count(2);
    cudaSetDevice(1);
  });
  cudaSetDevice(0);
  Ready r;
  r.prepare();
  expect_equal(cusparseLtMatmulPlanDestroy(&r.o->plan), kSuccess, "destroy");
  expect_equal(r.multiply(), kInvalidValue, "a destroyed plan");
  expect_equal(cusparseLtMatmulPlanDestroy(&r.o->plan), kInvalidValue, "destroyed twice");
  expect_clean("a destroyed plan is refused by its status alone");
  emulator_reset();
}

void test_threads() {
  Ready r;
  r.prepare();
  std::thread([&] { expect_equal(r.multiply(), kInternalError, "a handle of another thread"); }).join();
  expect_violation("another thread", "a handle of another thread");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      Ready own;
      int status = own.prepare();
      for (int j = 0; j < 20 && !status; ++j) status = own.multiply();
      if (!status) status = cudaDeviceSynchronize();
      own.release();
      static std::mutex mutex;
      const std::lock_guard lock(mutex);
      expect_equal(status, 0, "a handle of its own for each thread");
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect_clean("threads");
  r.release();
  expect_equal(emulator_live_objects(), 0, "live objects");
  emulator_reset();
}

void test_late_settings() {
  Ready r;
  r.prepare();
  const int on = 1;
  cusparseLtMatmulDescSetAttribute(&r.o->handle, &r.o->matmul, kRelu, &on, sizeof on);
  expect_equal(r.multiply(), kSuccess, "ReLU set after PlanInit");
  expect_violation("after PlanInit", "ReLU set after PlanInit");
  emulator_reset();
  Ready s;
  s.prepare();
  cusparseLtMatmulAlgSetAttribute(&s.o->handle, &s.o->selection, kConfigId, &on, sizeof on);
  s.multiply();
  expect_violation("after PlanInit", "algorithm set after PlanInit");
  emulator_reset();
}

void test_search() {
  Ready r;
  r.prepare();
  cudaDeviceSynchronize();
  const long launches = emulator_launches();
  Stream stream = nullptr;
  expect_equal(cusparseLtMatmulSearch(&r.o->handle, &r.o->plan, &r.one, r.blob, r.right, &r.zero, r.out, r.out, nullptr,
                                      &stream, 1),
               kSuccess, "search without a workspace");
  expect_equal(emulator_launches() - launches, 4 * 6, "every configuration, iterations + 1 times");
  int id = -1;
  cusparseLtMatmulAlgGetAttribute(&r.o->handle, &r.o->selection, kConfigId, &id, sizeof id);
  expect_equal(id, 3, "the winner is in the selection");
  float first = -1;
  cudaMemcpy(&first, r.out, sizeof first, kDeviceToHost);
  expect_equal(first, 0, "the search overwrote D");
  expect_equal(r.multiply(), kSuccess, "multiply");
  emulator_set_search_winner(2);
  cusparseLtMatmulSearch(&r.o->handle, &r.o->plan, &r.one, r.blob, r.right, &r.zero, r.out, r.out, nullptr, nullptr, 0);
  cusparseLtMatmulAlgGetAttribute(&r.o->handle, &r.o->selection, kConfigId, &id, sizeof id);
  expect_equal(id, 2, "the winner asked for");
  expect_clean("search");
  r.release();
  // From 256 rows on the winner is another one than the blob was made for, and reads it wrongly.
  Ready large;
  emulator_set_search_winner(-1);
  large.prepare({.m = 256, .n = 32, .k = 64});
  cusparseLtMatmulSearch(&large.o->handle, &large.o->plan, &r.one, large.blob, large.right, &r.zero, large.out,
                         large.out, nullptr, nullptr, 0);
  cusparseLtMatmulAlgGetAttribute(&large.o->handle, &large.o->selection, kConfigId, &id, sizeof id);
  expect_equal(id, 3, "another configuration than the blob's wins");
  large.multiply();
  cudaDeviceSynchronize();
  expect_violation("made for another algorithm", "the same blob after a search");
  large.release();
  emulator_reset();
}

// Every call fails in turn: the others go on, and nothing is left but what the failing destroy was to release.
void test_faults() {
  const long before = emulator_calls();
  Ready whole;
  whole.prepare();
  whole.multiply();
  cudaDeviceSynchronize();
  whole.release();
  const long calls = emulator_calls() - before;
  expect(calls > 30, "calls are counted");
  bool failed_each_time = true, clean = true;
  for (long n = 1; n <= calls; ++n) {
    emulator_reset();
    emulator_fail_at(n, 7);
    Ready r;
    int status = r.prepare();
    if (!status) status = r.multiply();
    if (!status) status = cudaDeviceSynchronize();
    failed_each_time = failed_each_time && (status == 7 || n > calls - 12);
    r.release();
    emulator_fail_at(0, 0);
    r.release();  // again, for the destroy that failed
    clean = clean && emulator_live_objects() == 0 && emulator_live_memory() == 0;
  }
  expect(failed_each_time, "the n-th call fails");
  expect(clean, "a failure leaves nothing behind");
  emulator_reset();
}

void test_bounds() {
  Ready r;
  r.prepare();
  cudaDeviceSynchronize();
  void* small = nullptr;
  cudaMalloc(&small, 64);
  std::swap(r.out, small);
  expect_equal(r.multiply(), kSuccess, "the call cannot know");
  expect_equal(cudaDeviceSynchronize(), kCudaIllegalAddress, "the fault shows at the next wait");
  expect_violation("D takes", "D too small");
  expect_equal(cudaDeviceSynchronize(), kCudaSuccess, "once");
  std::swap(r.out, small);
  cudaFree(small);
  cudaFree(r.right);
  r.multiply();
  cudaDeviceSynchronize();
  expect_violation("freed", "B was freed");
  cudaMalloc(&r.right, 64 * 32 * 2);
  std::memset(static_cast<char*>(r.out) + 64 * 32 * 2, 0, 1);
  cudaDeviceSynchronize();
  expect_violation("after the block", "a byte written beyond a block");
  std::memset(static_cast<char*>(r.out) - 1, 0, 1);
  cudaFree(r.out);
  expect_violation("before the block", "a byte written before a block");
  cudaMalloc(&r.out, 64 * 32 * 2);
  cudaMemset(r.workspace, 0, 4);
  r.multiply();
  cudaDeviceSynchronize();
  unsigned word;
  cudaMemcpy(&word, r.workspace, sizeof word, kDeviceToHost);
  expect_equal(word, 0xffffffffu, "the workspace is overwritten");
  expect_clean("workspace");
  emulator_reset();
}

double seconds(const auto& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void test_lifetimes() {
  test_broken_lifetimes();
  test_threads();
  test_late_settings();
  test_search();
  test_faults();
  test_bounds();
}

// Printed, with wide bounds: a sanitizer costs a factor of twenty.
void test_cost() {
  Ready r;
  expect_equal(r.prepare(), 0, "prepare");
  cudaDeviceSynchronize();
  constexpr int kCalls = 2000;
  const long allocations = emulator_allocations(), synchronizations = emulator_synchronizations();
  const double call = seconds([&] {
                        for (int i = 0; i < kCalls; ++i) r.multiply();
                      }) /
                      kCalls;
  expect_equal(emulator_allocations(), allocations, "a call allocates nothing");
  expect_equal(emulator_synchronizations(), synchronizations, "a call waits for nothing");
  const double run = seconds([] { cudaDeviceSynchronize(); }) / kCalls;
  const double build = seconds([&] {
                         for (int i = 0; i < 100; ++i) {
                           Objects o;
                           cusparseLtInit(&o.handle);
                           describe(o, {.m = 64, .n = 32, .k = 64});
                           plan(o);
                           destroy_all(o);
                         }
                       }) /
                       100;
  r.release();
  Ready large;
  large.prepare({.m = 1024, .n = 1024, .k = 1024});
  cudaDeviceSynchronize();
  large.multiply();
  const double product = seconds([] { cudaDeviceSynchronize(); });
  large.release();
  std::printf("matmul call %.3f us, small product %.0f us, describe and plan %.1f us, fp16 1024^3 %.2f s\n", call * 1e6,
              run * 1e6, build * 1e6, product);
  expect(call < 50e-6, "a call is cheap");
  expect(product < 60, "a product of 1024^3 is quick");
  expect_clean("cost");
}

}  // namespace emulator::test
