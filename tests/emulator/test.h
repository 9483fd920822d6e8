// What the tests of the emulator share. They call the interfaces as a client does, through our own declarations.
#pragma once

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cublaslt.h"
#include "emulator.h"
#include "exports.h"
#include "runtime.h"

namespace emulator::test {

inline int passed = 0, failed = 0;

inline void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

template <typename Got, typename Wanted>
void expect_equal(const Got& got, const Wanted& wanted, const std::string& what) {
  expect(got == wanted, what + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted));
}

// One violation at least, all of them holding `text`; clears them.
inline void expect_violation(const char* text, const std::string& what) {
  const std::string all = emulator_violations();
  bool every = !all.empty();
  for (std::size_t at = 0; at < all.size();
       at = all.find('\n', at) == std::string::npos ? all.size() : all.find('\n', at) + 1) {
    every = every && all.substr(at, all.find('\n', at) - at).find(text) != std::string::npos;
  }
  expect(every, what + ": wanted a violation of '" + text + "', got '" + all + "'");
  emulator_clear_violations();
}

inline void expect_clean(const std::string& what) {
  const std::string all = emulator_violations();
  expect(all.empty(), what + ": " + all);
  emulator_clear_violations();
}

// The objects of one product. Immovable, as the library wants it.
struct Objects {
  Handle handle{};
  MatDescriptor a{}, b{}, c{}, d{};
  MatmulDescriptor matmul{};
  AlgSelection selection{};
  Plan plan{};
  Objects() = default;
  Objects(const Objects&) = delete;
};

struct Shape {
  std::int64_t m = 32, n = 32, k = 64;
  DataType ab = kReal16F, c = kReal16F, d = kReal16F;
  ComputeType compute = kCompute32F;
  bool sparse_a = true;
  Operation op_a = kNonTranspose, op_b = kNonTranspose;
  Order order_a = kOrderRow, order_b = kOrderRow, order_c = kOrderRow;
  std::int64_t padding = 0;  // elements beyond each line
  int batches = 1;
  bool broadcast = false;  // one structured matrix for all batches
};

// The first status that is not success.
Status describe(Objects& objects, const Shape& shape);  // up to the matmul descriptor; needs a handle
Status plan(Objects& objects);
void destroy_all(Objects& objects);  // plan, selection, matrices and handle, all expected to be there

std::int64_t stored_rows(const Shape& shape, char matrix);
std::int64_t stored_cols(const Shape& shape, char matrix);

void test_facts();
void test_rules();
void test_lifetimes();
void test_products();
void test_sparsity();
void test_runtime();
void test_graphs();
void test_cublaslt();
void test_cost();

}  // namespace emulator::test
