// Dense products through cuBLASLt, which is opened at run time as cuSPARSELt is (SPARSE24_CUBLASLT names a file).
// Our own declarations of the little that one product needs, the same in CUDA 12 and 13; check_cublaslt.cpp
// compares them with NVIDIA's header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sparse24.h"

namespace cublaslt {

enum Status : int { kSuccess = 0 };
enum ComputeType : int { kCompute32F = 68, kCompute32I = 72, kCompute32FFastTf32 = 77 };
enum DescriptorAttribute : int { kTransA = 3 };
enum PreferenceAttribute : int { kMaxWorkspaceBytes = 1 };
constexpr int kTranspose = 1;  // cublasOperation_t

using Handle = void*;
using Descriptor = void*;
using Layout = void*;
using Preference = void*;
using Stream = void*;

struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace_bytes;
  Status status;
  float waves;
  int reserved[4];
};

// X(name, result, parameters): exported as cublasLt<name>.
#define CUBLASLT_FUNCTIONS(X)                                                                                     \
  X(Create, Status, (Handle*))                                                                                    \
  X(Destroy, Status, (Handle))                                                                                    \
  X(GetVersion, std::size_t, ())                                                                                  \
  X(MatmulDescCreate, Status, (Descriptor*, ComputeType, int))                                                    \
  X(MatmulDescDestroy, Status, (Descriptor))                                                                      \
  X(MatmulDescSetAttribute, Status, (Descriptor, DescriptorAttribute, const void*, std::size_t))                  \
  X(MatrixLayoutCreate, Status, (Layout*, int, std::uint64_t, std::uint64_t, std::int64_t))                       \
  X(MatrixLayoutDestroy, Status, (Layout))                                                                        \
  X(MatmulPreferenceCreate, Status, (Preference*))                                                                \
  X(MatmulPreferenceDestroy, Status, (Preference))                                                                \
  X(MatmulPreferenceSetAttribute, Status, (Preference, PreferenceAttribute, const void*, std::size_t))            \
  X(MatmulAlgoGetHeuristic, Status,                                                                               \
    (Handle, Descriptor, Layout, Layout, Layout, Layout, Preference, int, Heuristic*, int*))                      \
  X(Matmul, Status,                                                                                               \
    (Handle, Descriptor, const void*, const void*, Layout, const void*, Layout, const void*, const void*, Layout, \
     void*, Layout, const Algorithm*, void*, std::size_t, Stream))

struct Api {
#define CUBLASLT_POINTER(name, result, parameters) result(*name) parameters = nullptr;
  CUBLASLT_FUNCTIONS(CUBLASLT_POINTER)
#undef CUBLASLT_POINTER
  Handle handle = nullptr;  // of the device that is current at the first call; lives as long as the process
  std::string path;
};
const Api& api();

// y [n, m] = alpha * x [n, k] W^T, W [m, k], all contiguous. float32 is computed as TF32.
class DenseProduct {
 public:
  DenseProduct(sparse24::DType in, sparse24::DType out, std::int64_t m, std::int64_t n, std::int64_t k);

  // What the library would try, best guess first; empty: it has no kernel for this product.
  std::vector<Heuristic> heuristics(std::size_t workspace_bytes, int most) const;

  void run(const Heuristic& choice, float alpha, const void* w, const void* x, void* y, void* workspace,
           Stream stream) const;

 private:
  // An object of the library: destroyed by the function of its kind.
  using Object = std::unique_ptr<void, Status (*)(void*)>;
  static Object layout(int type, std::int64_t rows, std::int64_t cols);

  Object descriptor_, w_, x_, y_;
};

}  // namespace cublaslt
