// The runtime: devices, memory, streams, events, captures; and cuBLASLt. More than 300 lines: a list of small cases,
// a function each, in the order of the runtime's documents.
#include <cmath>
#include <vector>

#include "test.h"

namespace emulator::test {

namespace {

void test_devices() {
  int value = -1;
  expect_equal(cudaGetDeviceCount(&value), kCudaSuccess, "count");
  expect_equal(value, 1, "one device");
  expect_equal(cudaDeviceGetAttribute(&value, kComputeCapabilityMinor, 0), kCudaSuccess, "attribute");
  expect_equal(value, 6, "minor of SM 86");
  expect_equal(cudaSetDevice(1), kCudaInvalidDevice, "device 1 of 1");
  expect_equal(cudaPeekAtLastError(), kCudaInvalidDevice, "the last error stays");
  expect_equal(cudaGetLastError(), kCudaInvalidDevice, "and is taken");
  expect_equal(cudaGetLastError(), kCudaSuccess, "once");
  std::vector<unsigned char> properties(1032);
  expect_equal(cudaGetDeviceProperties(reinterpret_cast<DeviceProperties*>(properties.data()), 0), kCudaSuccess,
               "properties");
  int major;
  std::memcpy(&major, &properties[360], sizeof major);
  expect_equal(major, 8, "major in the properties");
  emulator_set_driver(0);
  expect_equal(cudaGetDeviceCount(&value), kCudaInsufficientDriver, "count without a driver");
  expect_equal(cudaDriverGetVersion(&value), kCudaSuccess, "driver version without a driver");
  expect_equal(value, 0, "is 0");
  expect_equal(cudaRuntimeGetVersion(&value), kCudaSuccess, "runtime version");
  expect_equal(value, 13000, "is 13.0");
  expect(std::strcmp(cudaGetErrorName(kCudaInsufficientDriver), "cudaErrorInsufficientDriver") == 0, "error name");
  emulator_reset();
  emulator_set_device_count(0);
  expect_equal(cudaGetDeviceCount(&value), kCudaNoDevice, "no device");
  emulator_reset();
}

void test_memory() {
  void *memory = nullptr, *pinned = nullptr;
  std::size_t total = 0, free_bytes = 0;
  expect_equal(cudaMalloc(&memory, 1000), kCudaSuccess, "malloc");
  expect_equal(reinterpret_cast<std::uintptr_t>(memory) % 256, 0u, "aligned to 256");
  expect_equal(emulator_live_memory(), 1000u, "live memory");
  unsigned word = 0;
  expect_equal(cudaMemcpy(&word, memory, 4, kDeviceToHost), kCudaSuccess, "copy");
  expect_equal(word, 0xffffffffu, "fresh memory is NaN");
  expect_equal(cudaMemcpy(&word, static_cast<char*>(memory) + 997, 4, kDeviceToHost), kCudaIllegalAddress, "beyond");
  expect_violation("source of the copy", "a copy beyond the block");
  expect_equal(cudaMallocHost(&pinned, 64), kCudaSuccess, "pinned");
  PointerAttributes attributes;
  expect_equal(cudaPointerGetAttributes(&attributes, pinned), kCudaSuccess, "attributes");
  expect_equal(attributes.type, 1, "host memory");
  expect_equal(cudaPointerGetAttributes(&attributes, static_cast<char*>(memory) + 10), kCudaSuccess, "attributes");
  expect_equal(attributes.type, 2, "device memory");
  expect_equal(cudaPointerGetAttributes(&attributes, &word), kCudaSuccess, "attributes");
  expect_equal(attributes.type, 0, "unknown memory");
  expect_equal(cudaMemGetInfo(&free_bytes, &total), kCudaSuccess, "info");
  expect_equal(total - free_bytes, 1064u, "bytes in use");
  expect_equal(cudaFree(static_cast<char*>(memory) + 256), kCudaInvalidValue, "free inside a block");
  expect_violation("not allocated", "free inside a block");
  expect_equal(cudaFree(memory), kCudaSuccess, "free");
  expect_equal(cudaFree(memory), kCudaInvalidValue, "free twice");
  expect_violation("twice", "free twice");
  expect_equal(cudaFree(nullptr), kCudaSuccess, "free(NULL)");
  Stream stream;
  cudaStreamCreate(&stream);
  expect_equal(cudaMallocAsync(&memory, 64, stream), kCudaSuccess, "malloc async");
  expect_equal(cudaFreeAsync(memory, stream), kCudaSuccess, "free async");
  expect_equal(cudaFreeAsync(memory, stream), kCudaInvalidValue, "free async twice");
  expect_violation("not live", "free async twice");
  expect_equal(cudaStreamSynchronize(stream), kCudaSuccess, "wait");
  cudaFreeHost(pinned);
  cudaStreamDestroy(stream);
  expect_equal(emulator_live_memory(), 0u, "all freed");
  emulator_reset();
}

// Bytes of device memory, set one after the other by the queue.
struct Byte {
  void* memory = nullptr;
  Byte() {
    cudaMalloc(&memory, 16);
    cudaMemset(memory, 0, 16);
    cudaDeviceSynchronize();
  }
  // Looks at what the device would see, without waiting for anything.
  int now() const { return *static_cast<volatile unsigned char*>(memory); }
  void set(int value, Stream stream) const { cudaMemsetAsync(memory, value, 16, stream); }
};

void test_order() {
  Stream first, second, free_stream;
  cudaStreamCreate(&first);
  cudaStreamCreate(&second);
  cudaStreamCreateWithFlags(&free_stream, 1);
  Byte byte;
  byte.set(1, first);
  expect_equal(byte.now(), 0, "nothing runs before a wait");
  cudaStreamSynchronize(second);
  expect_equal(byte.now(), 0, "another stream's wait does not run it");
  expect_equal(cudaStreamQuery(first), kCudaNotReady, "not ready");
  expect_equal(cudaStreamQuery(first), kCudaSuccess, "the question lets it run");
  expect_equal(byte.now(), 1, "it ran");
  byte.set(2, first);
  byte.set(3, nullptr);
  cudaStreamSynchronize(nullptr);
  expect_equal(byte.now(), 3, "the default stream waits for blocking ones");
  byte.set(4, nullptr);
  byte.set(5, second);
  cudaStreamSynchronize(second);
  expect_equal(byte.now(), 5, "and they for it");
  byte.set(6, free_stream);
  cudaStreamSynchronize(nullptr);
  expect_equal(byte.now(), 5, "but not the non-blocking ones");
  CudaEvent event, later;
  cudaEventCreate(&event);
  cudaEventCreate(&later);
  expect_equal(cudaEventQuery(event), kCudaSuccess, "an event never recorded is done");
  byte.set(7, first);
  cudaEventRecord(event, first);
  byte.set(8, first);
  cudaStreamWaitEvent(free_stream, event, 0);
  byte.set(9, free_stream);
  cudaEventRecord(later, free_stream);
  float elapsed = -1;
  expect_equal(cudaEventElapsedTime(&elapsed, event, later), kCudaNotReady, "no time yet");
  expect_equal(cudaEventSynchronize(later), kCudaSuccess, "wait for the event");
  expect_equal(byte.now(), 9, "the waited-for work ran first");
  expect_equal(cudaEventElapsedTime(&elapsed, event, later), kCudaSuccess, "time");
  expect(elapsed > 0, "is positive");
  cudaStreamSynchronize(first);
  expect_equal(byte.now(), 8, "what nobody ordered runs late");
  emulator_set_deferred(0);
  byte.set(10, first);
  expect_equal(byte.now(), 10, "undeferred work runs at once");
  // Pageable memory: read by the call, written before it returns.
  emulator_set_deferred(1);
  unsigned char host = 11, back = 0;
  cudaMemcpyAsync(byte.memory, &host, 1, kHostToDevice, first);
  host = 12;
  cudaMemcpyAsync(&back, byte.memory, 1, kDeviceToHost, first);
  expect_equal(static_cast<int>(back), 11, "a pageable copy");
  expect_equal(cudaStreamDestroy(reinterpret_cast<Stream>(0x99)), kCudaInvalidHandle, "no such stream");
  expect_clean("order");
  emulator_reset();
}

void test_captures() {
  Stream stream, other;
  cudaStreamCreateWithFlags(&stream, 1);
  cudaStreamCreateWithFlags(&other, 1);
  Byte byte;
  GraphHandle graph = nullptr;
  GraphExecHandle executable = nullptr;
  CaptureStatus status;
  expect_equal(cudaStreamBeginCapture(nullptr, CaptureMode::kGlobal), kCudaCaptureUnsupported, "the default stream");
  expect_equal(cudaStreamBeginCapture(stream, CaptureMode::kGlobal), kCudaSuccess, "begin");
  cudaStreamIsCapturing(stream, &status);
  expect_equal(status, kCaptureActive, "capturing");
  byte.set(1, stream);
  CudaEvent fork, join;
  cudaEventCreate(&fork);
  cudaEventCreate(&join);
  cudaEventRecord(fork, stream);
  cudaStreamWaitEvent(other, fork, 0);
  byte.set(2, other);
  cudaEventRecord(join, other);
  cudaStreamWaitEvent(stream, join, 0);
  expect_equal(cudaStreamEndCapture(stream, &graph), kCudaSuccess, "end");
  cudaDeviceSynchronize();
  expect_equal(byte.now(), 0, "captured work does not run");
  expect_equal(cudaGraphInstantiate(&executable, graph, 0), kCudaSuccess, "instantiate");
  cudaGraphDestroy(graph);
  for (int i = 0; i < 2; ++i) {
    byte.set(9, stream);
    expect_equal(cudaGraphLaunch(executable, stream), kCudaSuccess, "launch");
    cudaStreamSynchronize(stream);
    expect_equal(byte.now(), 2, "the graph ran");
  }
  cudaGraphExecDestroy(executable);
  expect_equal(cudaGraphLaunch(executable, stream), kCudaInvalidHandle, "a destroyed graph");

  // What invalidates a capture.
  void* memory = nullptr;
  const auto invalidated = [&](const char* what, const auto& body, CudaError error) {
    cudaStreamBeginCapture(stream, CaptureMode::kGlobal);
    byte.set(3, stream);
    expect_equal(body(), error, what);
    cudaStreamIsCapturing(stream, &status);
    expect_equal(status, kCaptureInvalidated, what);
    expect_equal(cudaStreamEndCapture(stream, &graph), kCudaCaptureInvalidated, what);
    expect(graph == nullptr, "no graph");
  };
  invalidated("cudaMalloc", [&] { return cudaMalloc(&memory, 16); }, kCudaCaptureUnsupported);
  invalidated("cudaStreamSynchronize", [&] { return cudaStreamSynchronize(stream); }, kCudaCaptureUnsupported);
  invalidated("cudaDeviceSynchronize", [&] { return cudaDeviceSynchronize(); }, kCudaCaptureUnsupported);
  invalidated("cudaFree", [&] { return cudaFree(byte.memory); }, kCudaCaptureUnsupported);
  invalidated("cudaStreamQuery", [&] { return cudaStreamQuery(stream); }, kCudaCaptureUnsupported);
  cudaStreamBeginCapture(stream, CaptureMode::kRelaxed);
  expect_equal(cudaMalloc(&memory, 16), kCudaSuccess, "a relaxed capture allows allocation");
  cudaEventRecord(fork, stream);
  cudaStreamWaitEvent(other, fork, 0);
  expect_equal(cudaStreamEndCapture(stream, &graph), kCudaCaptureUnjoined, "a fork that was not joined");
  expect_equal(cudaStreamEndCapture(stream, &graph), kCudaCaptureUnmatched, "end without begin");
  Stream blocking;
  cudaStreamCreate(&blocking);
  cudaStreamBeginCapture(blocking, CaptureMode::kRelaxed);
  expect_equal(cudaMemsetAsync(byte.memory, 0, 16, nullptr), kCudaCaptureImplicit, "the default stream meanwhile");
  expect_equal(cudaStreamEndCapture(blocking, &graph), kCudaCaptureInvalidated, "is the end of it");
  expect_clean("captures");
  emulator_reset();
}

// A product is recorded with the scalars and the bias pointer of the call, and reads memory at each launch.
void test_captured_product() {
  Objects o;
  Stream stream;
  cudaStreamCreateWithFlags(&stream, 1);
  cusparseLtInit(&o.handle);
  describe(o, {.m = 16, .n = 8, .k = 16, .ab = kReal32F, .c = kReal32F, .d = kReal32F});
  plan(o);
  void *dense, *blob, *right, *out;
  std::size_t size, buffer;
  cusparseLtSpMMACompressedSize(&o.handle, &o.plan, &size, &buffer);
  cudaMalloc(&dense, 16 * 16 * 4);
  cudaMalloc(&blob, size);
  cudaMalloc(&right, 16 * 8 * 4);
  cudaMalloc(&out, 16 * 8 * 4);
  std::vector<float> a(256), b(128, 1.0f), d(128);
  for (std::size_t i = 0; i < 256; i += 2) a[i] = 1;
  cudaMemcpy(dense, a.data(), 1024, kHostToDevice);
  cudaMemcpy(right, b.data(), 512, kHostToDevice);
  GraphHandle graph;
  GraphExecHandle executable;
  float alpha = 2, beta = 0;
  cudaStreamBeginCapture(stream, CaptureMode::kGlobal);
  expect_equal(cusparseLtSpMMACompress(&o.handle, &o.plan, dense, blob, nullptr, stream), kSuccess,
               "captured compress");
  expect_equal(cusparseLtMatmul(&o.handle, &o.plan, &alpha, blob, right, &beta, out, out, nullptr, &stream, 1),
               kSuccess, "captured matmul");
  alpha = 100;
  expect_equal(cudaStreamEndCapture(stream, &graph), kCudaSuccess, "end");
  cudaGraphInstantiate(&executable, graph, 0);
  for (const float value : {1.0f, 3.0f}) {
    for (float& entry : b) entry = value;
    cudaMemcpyAsync(right, b.data(), 512, kHostToDevice, stream);
    cudaGraphLaunch(executable, stream);
    cudaMemcpyAsync(d.data(), out, 512, kDeviceToHost, stream);
    expect_equal(d[17], 2 * 8 * value, "a replayed product");
  }
  cudaStreamBeginCapture(stream, CaptureMode::kGlobal);
  expect_equal(cusparseLtMatmulSearch(&o.handle, &o.plan, &alpha, blob, right, &beta, out, out, nullptr, &stream, 1),
               kExecutionFailed, "a search cannot be captured");
  expect_equal(cudaStreamEndCapture(stream, &graph), kCudaCaptureInvalidated, "and ends the capture");
  expect_clean("captured product");
  emulator_reset();
}

}  // namespace

void test_runtime() {
  test_devices();
  test_memory();
  test_order();
}

void test_graphs() {
  test_captures();
  test_captured_product();
}

// fp32 row-major with bias and ReLU, and int8.
void test_cublaslt() {
  BlasHandle* handle = nullptr;
  BlasMatmul* matmul = nullptr;
  BlasPreference* preference = nullptr;
  BlasLayout *a = nullptr, *b = nullptr, *c = nullptr;
  expect_equal(cublasLtCreate(&handle), kBlasSuccess, "create");
  expect_equal(cublasLtMatmulDescCreate(&matmul, kBlas32F, kReal32F), kBlasSuccess, "descriptor");
  expect_equal(cublasLtMatmulPreferenceCreate(&preference), kBlasSuccess, "preference");
  expect_equal(cublasLtMatrixLayoutCreate(&a, kReal32F, 3, 5, 5), kBlasSuccess, "A");
  expect_equal(cublasLtMatrixLayoutCreate(&b, kReal32F, 5, 20, 20), kBlasSuccess, "B");
  expect_equal(cublasLtMatrixLayoutCreate(&c, kReal32F, 3, 20, 20), kBlasSuccess, "C");
  const int row = kBlasRow;
  for (BlasLayout* layout : {a, b, c}) {
    expect_equal(cublasLtMatrixLayoutSetAttribute(layout, kBlasLayoutOrder, &row, sizeof row), kBlasSuccess, "order");
  }
  alignas(16) float left[15], right[100], out[60] = {}, bias[3] = {-4, 0.5f, 1};
  for (int i = 0; i < 15; ++i) left[i] = 0.25f * static_cast<float>(i - 7);
  for (int i = 0; i < 100; ++i) right[i] = 0.5f * static_cast<float>(i % 7 - 3);
  const unsigned epilogue = kBlasRelu | kBlasBias;
  const void* pointer = bias;
  cublasLtMatmulDescSetAttribute(matmul, kBlasEpilogue, &epilogue, sizeof epilogue);
  cublasLtMatmulDescSetAttribute(matmul, kBlasBiasPointer, &pointer, sizeof pointer);
  BlasHeuristic heuristic;
  int found = 0;
  expect_equal(cublasLtMatmulAlgoGetHeuristic(handle, matmul, a, b, c, c, preference, 1, &heuristic, &found),
               kBlasSuccess, "heuristic");
  expect_equal(found, 1, "one algorithm");
  const float one = 1, zero = 0;
  expect_equal(cublasLtMatmul(handle, matmul, &one, left, a, right, b, &zero, out, c, out, c, &heuristic.algorithm,
                              nullptr, 0, nullptr),
               kBlasSuccess, "matmul");
  expect_equal(out[21], 0, "asynchronous");
  cudaDeviceSynchronize();
  bool good = true;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 20; ++j) {
      double sum = bias[i];
      for (int k = 0; k < 5; ++k) sum += double{left[i * 5 + k]} * double{right[k * 20 + j]};
      good = good && std::abs(out[i * 20 + j] - std::max(sum, 0.0)) < 1e-6;
    }
  }
  expect(good, "a dense product with bias and ReLU");
  expect_equal(cublasLtMatmulAlgoGetHeuristic(handle, matmul, a, a, c, c, preference, 1, &heuristic, &found),
               kBlasInvalidValue, "dimensions");
  cublasLtMatmulDescDestroy(matmul);
  expect_equal(
      cublasLtMatmul(handle, matmul, &one, left, a, right, b, &zero, out, c, out, c, nullptr, nullptr, 0, nullptr),
      kBlasInvalidValue, "destroyed");
  for (BlasLayout* layout : {a, b, c}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtDestroy(handle);
  expect_equal(emulator_live_objects(), 0, "live objects");
  expect_clean("cublasLt");
  emulator_reset();
}

}  // namespace emulator::test
