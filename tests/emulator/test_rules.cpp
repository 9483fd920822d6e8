// Which status which broken rule gives: the rows of the table of status codes, and the rules by number.
// More than 300 lines: a table, in the order of the one that it checks.
#include <cmath>
#include <limits>

#include "test.h"

namespace emulator::test {

namespace {

template <typename Value>
Status set_matrix(Objects& o, MatDescriptor* matrix, int attribute, Value value) {
  return cusparseLtMatDescSetAttribute(&o.handle, matrix, static_cast<MatAttribute>(attribute), &value, sizeof value);
}
template <typename Value>
Status set_matmul(Objects& o, int attribute, Value value) {
  return cusparseLtMatmulDescSetAttribute(&o.handle, &o.matmul, static_cast<MatmulAttribute>(attribute), &value,
                                          sizeof value);
}
template <typename Value>
Status get_matmul(Objects& o, int attribute, Value* value) {
  return cusparseLtMatmulDescGetAttribute(&o.handle, &o.matmul, static_cast<MatmulAttribute>(attribute), value,
                                          sizeof *value);
}
template <typename Value>
Status set_algorithm(Objects& o, int attribute, Value value) {
  return cusparseLtMatmulAlgSetAttribute(&o.handle, &o.selection, static_cast<AlgAttribute>(attribute), &value,
                                         sizeof value);
}
int get_algorithm(Objects& o, int attribute) {
  int value = -99;
  expect_equal(cusparseLtMatmulAlgGetAttribute(&o.handle, &o.selection, static_cast<AlgAttribute>(attribute), &value,
                                               sizeof value),
               kSuccess, "get algorithm attribute");
  return value;
}

Status describe_fresh(const Shape& shape, int sm = 86, int version = 801) {
  emulator_set_sm(sm);
  emulator_set_version(version);
  auto o = std::make_unique<Objects>();
  expect_equal(cusparseLtInit(&o->handle), kSuccess, "init");
  const Status status = describe(*o, shape);
  const Status planned = status == kSuccess ? plan(*o) : status;
  emulator_reset();
  return planned;
}

void test_handle() {
  auto o = std::make_unique<Objects>();
  int value = -1;
  expect_equal(cusparseLtInit(nullptr), kInvalidValue, "Init(NULL)");
  expect_equal(cusparseLtGetVersion(&o->handle, &value), kInvalidValue, "a zeroed handle");
  emulator_set_driver(0);
  Handle marked;
  std::memset(&marked, 0x5a, sizeof marked);
  expect_equal(cusparseLtInit(&marked), kNotInitialized, "Init without a driver");
  bool untouched = true;
  for (unsigned char byte : marked.data) untouched = untouched && byte == 0x5a;
  expect(untouched, "a failed Init leaves the handle alone");
  expect_equal(cusparseLtGetProperty(kMinorVersion, &value), kSuccess, "GetProperty without a driver");
  expect_equal(value, 8, "minor version");
  emulator_set_driver(1);
  emulator_set_sm(75);
  expect_equal(cusparseLtInit(&marked), kArchMismatch, "Init on SM 75");
  emulator_set_sm(86);
  std::memset(&marked, 0x5a, sizeof marked);
  expect_equal(cusparseLtInit(&marked), kSuccess, "Init");
  untouched = true;
  for (std::size_t i = 512; i < sizeof marked; ++i) untouched = untouched && marked.data[i] == 0x5a;
  expect(untouched && marked.data[511] != 0x5a, "a struct of 0.8 is written to its 512 bytes, and no further");
  expect_equal(cusparseLtGetVersion(&marked, nullptr), kInvalidValue, "GetVersion(NULL)");
  expect_equal(cusparseLtGetVersion(&marked, &value), kSuccess, "GetVersion");
  expect_equal(value, 801, "version");
  expect_equal(cusparseLtGetProperty(static_cast<Property>(3), &value), kInvalidValue, "GetProperty(3)");
  expect_equal(cusparseLtGetProperty(kMajorVersion, nullptr), kInvalidValue, "GetProperty(NULL)");
  emulator_set_version(1000);
  expect_equal(cusparseLtGetProperty(kMinorVersion, &value), kSuccess, "GetProperty");
  expect_equal(value, 10, "minor version of 0.10.0");
  expect_equal(cusparseLtDestroy(&marked), kSuccess, "Destroy");
  expect_equal(cusparseLtDestroy(&marked), kInvalidValue, "Destroy twice");
  expect_clean("handles");
  expect_equal(cusparseLtDestroy(nullptr), kInvalidValue, "Destroy(NULL)");
  expect_violation("null handle", "Destroy(NULL) where the real one crashes");
  emulator_set_version(603);
  expect_equal(cusparseLtDestroy(nullptr), kSuccess, "Destroy(NULL) in 0.6.3");
  expect(std::strcmp(cusparseLtGetErrorName(kNotSupported), "CUSPARSE_STATUS_NOT_SUPPORTED") == 0, "error name");
  expect(std::strcmp(cusparseLtGetErrorString(kNotSupported), "operation not supported") == 0, "error text");
  expect(std::strcmp(cusparseLtGetErrorName(static_cast<Status>(12)), "unrecognized error code") == 0, "status 12");
  emulator_reset();
}

void test_matrices() {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  struct {
    std::int64_t rows, cols, ld;
    unsigned alignment;
    int type, order;
    bool structured;
    Status status;
    const char* what;
  } const cases[] = {
      {32, 64, 64, 16, kReal16F, kOrderRow, true, kSuccess, "structured fp16"},
      {16, 16, 16, 256, kReal16F, kOrderCol, true, kSuccess, "alignment 256"},
      {8, 8, 8, 16, kReal16F, kOrderRow, false, kSuccess, "dense fp16 of 8"},
      {4, 4, 4, 16, kReal32F, kOrderRow, false, kSuccess, "dense fp32 of 4"},
      {16, 16, 16, 16, kReal8I, kOrderRow, false, kSuccess, "dense int8 of 16"},
      {0, 64, 64, 16, kReal16F, kOrderRow, false, kInvalidValue, "no rows"},
      {32, -8, 64, 16, kReal16F, kOrderRow, false, kInvalidValue, "negative cols"},
      {32, 64, 32, 16, kReal16F, kOrderRow, false, kInvalidValue, "ld below cols"},
      {32, 64, 16, 16, kReal16F, kOrderCol, false, kInvalidValue, "ld below rows"},
      {32, 64, 64, 16, 1, kOrderRow, false, kInvalidValue, "fp64"},
      {32, 64, 64, 16, 8, kOrderRow, false, kInvalidValue, "uint8"},
      {32, 64, 64, 16, kReal16F, 3, false, kInvalidValue, "order 3"},
      {4, 64, 64, 16, kReal16F, kOrderRow, false, kNotSupported, "4 rows of fp16"},
      {32, 68, 72, 16, kReal16F, kOrderRow, false, kNotSupported, "68 columns of fp16"},
      {32, 64, 68, 16, kReal16F, kOrderRow, false, kNotSupported, "ld 68 of fp16"},
      {32, 8, 16, 16, kReal16F, kOrderRow, true, kNotSupported, "structured fp16 of 8"},
      {4, 8, 8, 16, kReal32F, kOrderRow, true, kNotSupported, "structured fp32 of 4"},
      {16, 32, 32, 16, kReal8I, kOrderRow, true, kNotSupported, "structured int8 of 16"},
      {32, 64, 64, 0, kReal16F, kOrderRow, false, kNotSupported, "alignment 0"},
      {32, 64, 64, 8, kReal16F, kOrderRow, false, kNotSupported, "alignment 8"},
      {32, 64, 64, 24, kReal16F, kOrderRow, false, kNotSupported, "alignment 24"},
  };
  for (const auto& c : cases) {
    const auto type = static_cast<DataType>(c.type);
    const auto order = static_cast<Order>(c.order);
    const Status status =
        c.structured ? cusparseLtStructuredDescriptorInit(&o->handle, &o->a, c.rows, c.cols, c.ld, c.alignment, type,
                                                          order, kSparsity50Percent)
                     : cusparseLtDenseDescriptorInit(&o->handle, &o->a, c.rows, c.cols, c.ld, c.alignment, type, order);
    expect_equal(status, c.status, c.what);
    if (status == kSuccess) expect_equal(cusparseLtMatDescriptorDestroy(&o->a), kSuccess, "destroy");
  }
  expect_equal(cusparseLtStructuredDescriptorInit(&o->handle, &o->a, 32, 64, 64, 16, kReal16F, kOrderRow,
                                                  static_cast<Sparsity>(1)),
               kInvalidValue, "sparsity 1");
  expect_equal(cusparseLtDenseDescriptorInit(nullptr, &o->a, 32, 64, 64, 16, kReal16F, kOrderRow), kInvalidValue,
               "null handle");
  expect_equal(cusparseLtDenseDescriptorInit(&o->handle, nullptr, 32, 64, 64, 16, kReal16F, kOrderRow), kInvalidValue,
               "null descriptor");
  expect_equal(cusparseLtMatDescriptorDestroy(nullptr), kInvalidValue, "MatDescriptorDestroy(NULL)");
  cusparseLtDenseDescriptorInit(&o->handle, &o->a, 56, 72, 72, 16, kReal16F, kOrderRow);
  std::int64_t stride = 0;
  cusparseLtMatDescGetAttribute(&o->handle, &o->a, kBatchStride, &stride, sizeof stride);
  expect_equal(stride, 56 * 72, "default stride");
  expect_equal(set_matrix(*o, &o->a, kNumBatches, 0), kInvalidValue, "0 batches");
  expect_equal(set_matrix(*o, &o->a, kNumBatches, 4), kSuccess, "4 batches");
  expect_equal(set_matrix(*o, &o->a, kNumBatches, std::int64_t{4}), kInvalidValue, "batches of 8 bytes");
  expect_equal(set_matrix(*o, &o->a, 2, 4), kInvalidValue, "attribute 2");
  for (std::int64_t bad : {100, 4031, -8}) {
    expect_equal(set_matrix(*o, &o->a, kBatchStride, bad), kInvalidValue, "stride " + std::to_string(bad));
  }
  for (std::int64_t good : {0, 4032, 4040}) {
    expect_equal(set_matrix(*o, &o->a, kBatchStride, good), kSuccess, "stride " + std::to_string(good));
  }
  expect_equal(cusparseLtMatDescSetAttribute(&o->handle, &o->a, kBatchStride, nullptr, 8), kInvalidValue, "null data");
  expect_equal(cusparseLtMatDescGetAttribute(&o->handle, &o->a, kBatchStride, nullptr, 8), kInvalidValue, "null data");
  expect_equal(cusparseLtMatDescGetAttribute(&o->handle, &o->a, kBatchStride, &stride, 4), kInvalidValue, "size 4");
  expect_clean("matrices");
  emulator_reset();
}

void test_types_and_layouts() {
  struct {
    DataType ab, c, d;
    ComputeType compute;
    int sm, version;
    Status status;
  } const cases[] = {
      {kReal16F, kReal16F, kReal16F, kCompute32F, 80, 801, kSuccess},
      {kReal16F, kReal16F, kReal16F, kCompute16F, 86, 1000, kNotSupported},
      {kReal16F, kReal16F, kReal16F, kCompute16F, 90, 801, kSuccess},
      {kReal16F, kReal32F, kReal32F, kCompute32F, 86, 801, kNotSupported},
      {kReal16BF, kReal16F, kReal16F, kCompute32F, 86, 801, kNotSupported},
      {kReal32F, kReal32F, kReal32F, kCompute32F, 120, 801, kSuccess},
      {kReal8I, kReal8I, kReal8I, kCompute32I, 86, 801, kSuccess},
      {kReal8I, kReal32I, kReal32I, kCompute32I, 86, 801, kSuccess},
      {kReal8I, kReal16F, kReal16F, kCompute32I, 86, 801, kSuccess},
      {kReal8I, kReal16BF, kReal16BF, kCompute32I, 86, 801, kSuccess},
      {kReal8I, kReal32F, kReal32F, kCompute32I, 86, 801, kNotSupported},
      {kReal8I, kReal8I, kReal8I, kCompute32F, 86, 801, kNotSupported},
      {kReal8FE4M3, kReal16F, kReal16F, kCompute32F, 86, 801, kNotSupported},
      {kReal8FE4M3, kReal16F, kReal16F, kCompute32F, 89, 801, kSuccess},
      {kReal8FE4M3, kReal16F, kReal16F, kCompute32F, 89, 701, kNotSupported},
      {kReal8FE4M3, kReal16BF, kReal8FE4M3, kCompute32F, 90, 801, kSuccess},
      {kReal8FE5M2, kReal32F, kReal32F, kCompute32F, 90, 801, kSuccess},
      {kReal8FE5M2, kReal16F, kReal8FE4M3, kCompute32F, 90, 801, kNotSupported},
      {kReal4FE2M1, kReal16F, kReal16F, kCompute32F, 86, 801, kNotSupported},
      {kReal4FE2M1, kReal16F, kReal16F, kCompute32F, 100, 801, kNotSupported},
  };
  for (const auto& c : cases) {
    Shape shape{.m = 64, .n = 64, .k = 64, .ab = c.ab, .c = c.c, .d = c.d, .compute = c.compute, .order_b = kOrderCol};
    expect_equal(describe_fresh(shape, c.sm, c.version), c.status,
                 "types " + std::to_string(c.ab) + " " + std::to_string(c.d) + " on " + std::to_string(c.sm));
  }
  for (const Order order_a : {kOrderRow, kOrderCol}) {
    for (const Order order_b : {kOrderRow, kOrderCol}) {
      for (const Operation op_a : {kNonTranspose, kTranspose}) {
        for (const Operation op_b : {kNonTranspose, kTranspose}) {
          Shape shape{.m = 32,
                      .n = 64,
                      .k = 96,
                      .ab = kReal8I,
                      .c = kReal8I,
                      .d = kReal8I,
                      .compute = kCompute32I,
                      .op_a = op_a,
                      .op_b = op_b,
                      .order_a = order_a,
                      .order_b = order_b};
          const bool legal =
              (order_a == kOrderRow) == (op_a == kNonTranspose) && (order_b == kOrderCol) == (op_b == kNonTranspose);
          expect_equal(describe_fresh(shape), legal ? kSuccess : kNotSupported, "int8 layout");
        }
      }
    }
  }
}

void test_matmul_descriptors() {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  expect_equal(describe(*o, {}), kSuccess, "describe");
  const auto init = [&](const MatDescriptor* a, const MatDescriptor* b, const MatDescriptor* c, const MatDescriptor* d,
                        int op = kNonTranspose, int compute = kCompute32F) {
    return cusparseLtMatmulDescriptorInit(&o->handle, &o->matmul, static_cast<Operation>(op), kNonTranspose, a, b, c, d,
                                          static_cast<ComputeType>(compute));
  };
  expect_equal(init(nullptr, &o->b, &o->c, &o->d), kInvalidValue, "null A");
  expect_equal(init(&o->a, &o->b, &o->c, nullptr), kInvalidValue, "null D");
  expect_equal(init(&o->a, &o->b, &o->c, &o->d, kConjugateTranspose), kInvalidValue, "conjugate transpose");
  expect_equal(init(&o->a, &o->b, &o->c, &o->d, kNonTranspose, 3), kInvalidValue, "compute 3");
  expect_equal(init(&o->a, &o->b, &o->c, &o->d, kTranspose), kInvalidValue, "inner dimensions");
  auto other = std::make_unique<Objects>();
  const auto dense = [&](std::int64_t rows, std::int64_t cols, std::int64_t ld, Order order = kOrderRow) {
    other->a = {};
    cusparseLtDenseDescriptorInit(&o->handle, &other->a, rows, cols, ld, 16, kReal16F, order);
    return &other->a;
  };
  expect_equal(init(dense(32, 64, 64), &o->b, &o->c, &o->d), kInvalidValue, "no operand structured");
  expect_equal(init(&o->a, &o->b, dense(48, 32, 32), &o->d), kInvalidValue, "outer dimensions");
  expect_equal(init(&o->a, &o->b, &o->c, dense(32, 32, 40)), kNotSupported, "ld of C and D differ");
  expect_equal(init(&o->a, &o->b, &o->c, dense(32, 32, 32, kOrderCol)), kNotSupported, "order of C and D differ");
  cusparseLtStructuredDescriptorInit(&o->handle, &other->b, 64, 32, 32, 16, kReal16F, kOrderRow, kSparsity50Percent);
  expect_equal(init(&o->a, &other->b, &o->c, &o->d), kInvalidValue, "both operands structured");
  set_matrix(*o, dense(64, 32, 32), kNumBatches, 2);
  expect_equal(init(&o->a, &other->a, &o->c, &o->d), kInvalidValue, "batch counts differ");
  expect_equal(init(&o->a, &o->b, &o->c, &o->c), kSuccess, "C and D the same descriptor");

  int flag = -1;
  float number = -1;
  expect_equal(set_matmul(*o, kRelu, 7), kSuccess, "RELU 7");
  expect_equal(get_matmul(*o, kRelu, &flag), kSuccess, "get RELU");
  expect_equal(flag, 1, "RELU reads back 1");
  expect_equal(get_matmul(*o, kReluUpperBound, &number), kSuccess, "get RELU_UPPERBOUND");
  expect_equal(number, std::numeric_limits<float>::max(), "its default");
  expect_equal(set_matmul(*o, kReluUpperBound, std::nanf("")), kInvalidValue, "RELU_UPPERBOUND NaN");
  expect_equal(set_matmul(*o, kReluUpperBound, INFINITY), kSuccess, "RELU_UPPERBOUND infinity");
  expect_equal(set_matmul(*o, kReluThreshold, INFINITY), kInvalidValue, "RELU_THRESHOLD infinity");
  expect_equal(set_matmul(*o, kGelu, 1), kInvalidValue, "GELU of fp16");
  expect_equal(set_matmul(*o, kGeluScaling, 1.0f), kInvalidValue, "GELU_SCALING of fp16");
  expect_equal(set_matmul(*o, kBiasStride, std::int64_t{-1}), kInvalidValue, "negative bias stride");
  expect_equal(set_matmul(*o, kBiasStride, std::int64_t{31}), kInvalidValue, "bias stride below the rows");
  expect_equal(set_matmul(*o, kBiasStride, 32), kInvalidValue, "bias stride of 4 bytes");
  expect_equal(set_matmul(*o, 20, 1), kInvalidValue, "attribute 20");
  expect_equal(cusparseLtMatmulDescSetAttribute(&o->handle, &o->matmul, kBiasPointer, nullptr, 8), kInvalidValue,
               "null data");
  const void* pointer = &number;
  expect_equal(set_matmul(*o, kSparseMatPointer, pointer), kSuccess, "set SPARSE_MAT_POINTER");
  expect_equal(get_matmul(*o, kSparseMatPointer, &pointer), kInternalError, "get SPARSE_MAT_POINTER");
  expect_equal(set_matmul(*o, kAScaleMode, std::int32_t{kScaleScalar32F}), kSuccess, "scale mode of fp16");
  expect_equal(set_matmul(*o, kAScaleMode, std::int32_t{4}), kInvalidValue, "scale mode 4");
  emulator_set_version(603);
  expect_equal(set_matmul(*o, kAScaleMode, std::int32_t{0}), kInvalidValue, "scale mode before 0.7");
  expect_clean("matmul descriptors");
  emulator_reset();
}

void test_gelu_types() {
  struct {
    DataType ab, c, d;
    ComputeType compute;
    Status gelu, scaling;
  } const cases[] = {
      {kReal8I, kReal8I, kReal8I, kCompute32I, kSuccess, kSuccess},
      {kReal8I, kReal16F, kReal16F, kCompute32I, kInvalidValue, kInvalidValue},
      {kReal8FE4M3, kReal16F, kReal16F, kCompute32F, kSuccess, kInvalidValue},
      {kReal8FE4M3, kReal16BF, kReal16BF, kCompute32F, kSuccess, kSuccess},
      {kReal8FE4M3, kReal32F, kReal32F, kCompute32F, kInvalidValue, kInvalidValue},
      {kReal8FE4M3, kReal16F, kReal8FE4M3, kCompute32F, kSuccess, kSuccess},
      {kReal8FE5M2, kReal16F, kReal16F, kCompute32F, kInvalidValue, kInvalidValue},
      {kReal8FE5M2, kReal16F, kReal8FE5M2, kCompute32F, kSuccess, kSuccess},
  };
  for (const auto& c : cases) {
    emulator_set_sm(90);
    auto o = std::make_unique<Objects>();
    cusparseLtInit(&o->handle);
    expect_equal(
        describe(
            *o,
            {.m = 64, .n = 64, .k = 64, .ab = c.ab, .c = c.c, .d = c.d, .compute = c.compute, .order_b = kOrderCol}),
        kSuccess, "describe");
    expect_equal(set_matmul(*o, kGelu, 1), c.gelu, "GELU " + std::to_string(c.ab) + " " + std::to_string(c.d));
    expect_equal(set_matmul(*o, kGeluScaling, 2.0f), c.scaling, "GELU_SCALING " + std::to_string(c.ab));
    emulator_reset();
  }
}

void test_algorithms() {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  describe(*o, {});
  expect_equal(cusparseLtMatmulAlgSelectionInit(&o->handle, &o->selection, &o->matmul, static_cast<MatmulAlg>(1)),
               kInvalidValue, "alg 1");
  expect_equal(plan(*o), kSuccess, "plan");
  const int defaults[] = {0, 4, 5, 1, 1, 0};
  for (int attribute = 0; attribute < 6; ++attribute) {
    expect_equal(get_algorithm(*o, attribute), defaults[attribute], "default " + std::to_string(attribute));
  }
  struct {
    int attribute, value;
    Status status;
  } const cases[] = {
      {kConfigId, 3, kSuccess},
      {kConfigId, 4, kInvalidValue},
      {kConfigId, -1, kInvalidValue},
      {kConfigId, 0, kSuccess},
      {kConfigMaxId, 4, kInvalidValue},
      {kSearchIterations, 0, kSuccess},
      {kSearchIterations, 100, kSuccess},
      {kSearchIterations, 5, kSuccess},
      {kSplitK, 0, kInvalidValue},
      {kSplitK, -1, kInvalidValue},
      {kSplitK, 65, kInvalidValue},
      {kSplitK, 64, kSuccess},
      {kSplitK, 1, kSuccess},
      {kSplitKMode, 0, kInvalidValue},
      {kSplitKMode, 2, kSuccess},
      {kSplitKMode, 3, kInvalidValue},
      {kSplitKMode, 1, kSuccess},
      {kSplitKBuffers, -1, kInvalidValue},
      {kSplitKBuffers, 17, kSuccess},
      {kSplitKBuffers, 0, kSuccess},
      {6, 1, kInvalidValue},
  };
  for (const auto& c : cases) {
    expect_equal(set_algorithm(*o, c.attribute, c.value), c.status,
                 "attribute " + std::to_string(c.attribute) + " = " + std::to_string(c.value));
  }
  expect_equal(set_algorithm(*o, kConfigId, std::int64_t{0}), kInvalidValue, "8 bytes");
  expect_equal(cusparseLtMatmulAlgSetAttribute(&o->handle, &o->selection, kConfigId, nullptr, 4), kInvalidValue,
               "null");
  std::size_t size = 0, buffer = 0;
  expect_equal(cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, nullptr), kInvalidValue, "GetWorkspace(NULL)");
  expect_equal(cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &size), kSuccess, "GetWorkspace");
  expect_equal(size, 256u, "the least workspace of fp16");
  expect_equal(cusparseLtSpMMACompressedSize(&o->handle, &o->plan, nullptr, &buffer), kInvalidValue, "null size");
  expect_equal(cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, nullptr), kInvalidValue, "null buffer size");
  expect_equal(cusparseLtMatmulPlanDestroy(nullptr), kInvalidValue, "PlanDestroy(NULL)");
  expect_equal(cusparseLtMatmulAlgSelectionDestroy(nullptr), kInvalidValue, "AlgSelectionDestroy(NULL)");
  expect_clean("algorithms");
  destroy_all(*o);
  emulator_set_sm(90);
  cusparseLtInit(&o->handle);
  describe(*o, {});
  plan(*o);
  expect_equal(get_algorithm(*o, kSplitK), -1, "Segment-K by default on SM 90");
  expect_equal(set_algorithm(*o, kSplitK, 2), kInvalidValue, "split-K 2 on SM 90");
  expect_equal(set_algorithm(*o, kSplitK, 1), kSuccess, "split-K 1 on SM 90");
  expect_equal(set_algorithm(*o, kSplitKBuffers, 1), kInvalidValue, "buffers on SM 90");
  emulator_reset();
}

void test_execution_arguments() {
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  describe(*o, {});
  plan(*o);
  alignas(16) static unsigned char memory[65536];
  float one = 1, zero = 0;
  Stream* none = nullptr;
  const auto call = [&](const void* alpha, const void* a, const void* b, const void* beta, const void* c, void* d,
                        Stream* streams, int count) {
    return cusparseLtMatmul(&o->handle, &o->plan, alpha, a, b, beta, c, d, nullptr, streams, count);
  };
  void* p = memory;
  expect_equal(call(nullptr, p, p, &zero, p, p, none, 0), kInvalidValue, "null alpha");
  expect_equal(call(&one, nullptr, p, &zero, p, p, none, 0), kInvalidValue, "null A");
  expect_equal(call(&one, p, nullptr, &zero, p, p, none, 0), kInvalidValue, "null B");
  expect_equal(call(&one, p, p, nullptr, p, p, none, 0), kInvalidValue, "null beta");
  expect_equal(call(&one, p, p, &zero, nullptr, p, none, 0), kInvalidValue, "null C");
  expect_equal(call(&one, p, p, &zero, p, nullptr, none, 0), kInvalidValue, "null D");
  expect_equal(call(&one, p, p, &zero, p, p, none, 1), kInvalidValue, "a stream without streams");
  expect_equal(call(&one, p, p, &zero, p, p, none, -1), kInvalidValue, "-1 streams");
  expect_equal(call(&one, memory + 8, p, &zero, p, p, none, 0), kInvalidValue, "A misaligned");
  Stream wrong = reinterpret_cast<Stream>(0x77);
  expect_equal(call(&one, p, p, &zero, p, p, &wrong, 1), kExecutionFailed, "no such stream");
  expect_equal(cusparseLtMatmul(nullptr, &o->plan, &one, p, p, &zero, p, p, nullptr, none, 0), kInvalidValue, "handle");
  expect_equal(cusparseLtMatmul(&o->handle, nullptr, &one, p, p, &zero, p, p, nullptr, none, 0), kInvalidValue, "plan");
  expect_equal(cusparseLtSpMMAPrune(&o->handle, &o->matmul, nullptr, p, kPruneTile, nullptr), kInvalidValue,
               "prune null");
  expect_equal(cusparseLtSpMMAPrune(&o->handle, &o->matmul, p, p, static_cast<PruneAlg>(2), nullptr), kInvalidValue,
               "prune algorithm 2");
  expect_equal(cusparseLtSpMMAPruneCheck(&o->handle, &o->matmul, p, nullptr, nullptr), kInvalidValue, "check null");
  expect_equal(cusparseLtSpMMACompress(&o->handle, &o->plan, nullptr, p, p, nullptr), kInvalidValue, "compress null");
  expect_equal(cusparseLtSpMMACompress(&o->handle, &o->plan, p, nullptr, p, nullptr), kInvalidValue,
               "compress to null");
  expect_equal(cusparseLtSpMMACompress(&o->handle, &o->plan, p, memory + 32768, nullptr, nullptr), kSuccess,
               "no buffer");
  expect_equal(cusparseLtSpMMAPrune2(&o->handle, &o->a, 1, kConjugateTranspose, p, p, kPruneTile, nullptr),
               kInvalidValue, "prune with op 2");
  expect_clean("arguments");
  expect(emulator_refusals() > 10 && std::strlen(emulator_last_refusal()) > 0, "refusals are told");
  emulator_reset();
}

}  // namespace

void test_rules() {
  test_handle();
  test_matrices();
  test_types_and_layouts();
  test_matmul_descriptors();
  test_gelu_types();
  test_algorithms();
  test_execution_arguments();
}

}  // namespace emulator::test
