// The tests of the emulator itself. Closes with a line "N passed, N failed".
#include "test.h"

namespace emulator::test {

namespace {

struct Stored {
  std::int64_t rows, cols;
};

Stored stored(const Shape& s, char matrix) {
  const bool transposed = (matrix == 'a' ? s.op_a : matrix == 'b' ? s.op_b : kNonTranspose) == kTranspose;
  const std::int64_t rows = matrix == 'b' ? s.k : s.m, cols = matrix == 'a' ? s.k : s.n;
  return transposed ? Stored{cols, rows} : Stored{rows, cols};
}

Status describe_matrix(Objects& o, MatDescriptor* descriptor, const Shape& s, char matrix, DataType type, Order order) {
  const auto [rows, cols] = stored(s, matrix);
  const std::int64_t ld = (order == kOrderRow ? cols : rows) + s.padding;
  const bool structured = matrix == 'a' ? s.sparse_a : matrix == 'b' && !s.sparse_a;
  const Status status = structured
                            ? cusparseLtStructuredDescriptorInit(&o.handle, descriptor, rows, cols, ld, 16, type, order,
                                                                 kSparsity50Percent)
                            : cusparseLtDenseDescriptorInit(&o.handle, descriptor, rows, cols, ld, 16, type, order);
  if (status != kSuccess || s.batches == 1) return status;
  const Status batches =
      cusparseLtMatDescSetAttribute(&o.handle, descriptor, kNumBatches, &s.batches, sizeof s.batches);
  if (batches != kSuccess || !structured || !s.broadcast) return batches;
  const std::int64_t stride = 0;
  return cusparseLtMatDescSetAttribute(&o.handle, descriptor, kBatchStride, &stride, sizeof stride);
}

}  // namespace

std::int64_t stored_rows(const Shape& shape, char matrix) { return stored(shape, matrix).rows; }
std::int64_t stored_cols(const Shape& shape, char matrix) { return stored(shape, matrix).cols; }

Status describe(Objects& o, const Shape& s) {
  struct {
    MatDescriptor* descriptor;
    char name;
    DataType type;
    Order order;
  } const matrices[] = {{&o.a, 'a', s.ab, s.order_a},
                        {&o.b, 'b', s.ab, s.order_b},
                        {&o.c, 'c', s.c, s.order_c},
                        {&o.d, 'd', s.d, s.order_c}};
  for (const auto& m : matrices) {
    if (const Status status = describe_matrix(o, m.descriptor, s, m.name, m.type, m.order)) return status;
  }
  return cusparseLtMatmulDescriptorInit(&o.handle, &o.matmul, s.op_a, s.op_b, &o.a, &o.b, &o.c, &o.d, s.compute);
}

Status plan(Objects& o) {
  if (const Status status = cusparseLtMatmulAlgSelectionInit(&o.handle, &o.selection, &o.matmul, kAlgDefault)) {
    return status;
  }
  return cusparseLtMatmulPlanInit(&o.handle, &o.plan, &o.matmul, &o.selection);
}

void destroy_all(Objects& o) {
  expect_equal(cusparseLtMatmulPlanDestroy(&o.plan), kSuccess, "destroy plan");
  expect_equal(cusparseLtMatmulAlgSelectionDestroy(&o.selection), kSuccess, "destroy selection");
  for (MatDescriptor* matrix : {&o.a, &o.b, &o.c, &o.d}) {
    expect_equal(cusparseLtMatDescriptorDestroy(matrix), kSuccess, "destroy matrix");
  }
  expect_equal(cusparseLtDestroy(&o.handle), kSuccess, "destroy handle");
}

}  // namespace emulator::test

int main() {
  using namespace emulator::test;
  for (const auto test : {test_facts, test_rules, test_lifetimes, test_products, test_sparsity, test_runtime,
                          test_graphs, test_cublaslt, test_cost}) {
    emulator_reset();
    test();
  }
  emulator_reset();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
