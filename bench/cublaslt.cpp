#include "cublaslt.h"

#include <dlfcn.h>

#include "cusparselt/api.h"
#include "cusparselt/types.h"

namespace cublaslt {
namespace {

using sparse24::DType, sparse24::Error, sparse24::message;
using sparse24::cusparselt::traits;

void check(Status status, const char* function) {
  if (status != kSuccess) throw Error(message(function, " failed: status ", int{status}, "; cuBLASLt ", api().path));
}

Api open_api() {
  Api api;
  void* library = sparse24::cusparselt::open_library(
      {.what = "cuBLASLt", .variable = "SPARSE24_CUBLASLT", .names = {"libcublasLt.so.13", "libcublasLt.so.12"}},
      &api.path);
#define CUBLASLT_FIND(name, result, parameters)                                      \
  api.name = reinterpret_cast<decltype(api.name)>(dlsym(library, "cublasLt" #name)); \
  if (api.name == nullptr) throw Error(message(api.path, " has no function cublasLt" #name));
  CUBLASLT_FUNCTIONS(CUBLASLT_FIND)
#undef CUBLASLT_FIND
  const Status status = api.Create(&api.handle);
  if (status != kSuccess) throw Error(message("cublasLtCreate failed: status ", int{status}, "; cuBLASLt ", api.path));
  return api;
}

ComputeType compute_type(DType in) {
  if (in == DType::kInt8) return kCompute32I;
  return in == DType::kFloat32 ? kCompute32FFastTf32 : kCompute32F;
}

}  // namespace

const Api& api() {
  static const Api opened = open_api();
  return opened;
}

DenseProduct::Object DenseProduct::layout(int type, std::int64_t rows, std::int64_t cols) {
  Layout layout = nullptr;
  check(
      api().MatrixLayoutCreate(&layout, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols), rows),
      "cublasLtMatrixLayoutCreate");
  return Object(layout, api().MatrixLayoutDestroy);
}

// Column-major throughout, which is what the library's 8-bit kernels need: y^T [m, n] = (W^T [k, m])^T x^T [k, n].
DenseProduct::DenseProduct(DType in, DType out, std::int64_t m, std::int64_t n, std::int64_t k)
    : descriptor_(nullptr, api().MatmulDescDestroy),
      w_(layout(traits(in).type, k, m)),
      x_(layout(traits(in).type, k, n)),
      y_(layout(traits(out).type, m, n)) {
  Descriptor descriptor = nullptr;
  check(api().MatmulDescCreate(&descriptor, compute_type(in), traits(DType::kFloat32).type),
        "cublasLtMatmulDescCreate");
  descriptor_.reset(descriptor);
  check(api().MatmulDescSetAttribute(descriptor, kTransA, &kTranspose, sizeof kTranspose),
        "cublasLtMatmulDescSetAttribute");
}

std::vector<Heuristic> DenseProduct::heuristics(std::size_t workspace_bytes, int most) const {
  Preference raw = nullptr;
  check(api().MatmulPreferenceCreate(&raw), "cublasLtMatmulPreferenceCreate");
  const Object preference(raw, api().MatmulPreferenceDestroy);
  const std::uint64_t bytes = workspace_bytes;
  check(api().MatmulPreferenceSetAttribute(raw, kMaxWorkspaceBytes, &bytes, sizeof bytes),
        "cublasLtMatmulPreferenceSetAttribute");
  std::vector<Heuristic> found(static_cast<std::size_t>(most));
  int count = 0;
  const Status status = api().MatmulAlgoGetHeuristic(api().handle, descriptor_.get(), w_.get(), x_.get(), y_.get(),
                                                     y_.get(), raw, most, found.data(), &count);
  found.resize(status == kSuccess ? static_cast<std::size_t>(count) : 0);
  std::erase_if(found, [](const Heuristic& heuristic) { return heuristic.status != kSuccess; });
  return found;
}

void DenseProduct::run(const Heuristic& choice, float alpha, const void* w, const void* x, void* y, void* workspace,
                       Stream stream) const {
  const float beta = 0;
  check(api().Matmul(api().handle, descriptor_.get(), &alpha, w, w_.get(), x, x_.get(), &beta, y, y_.get(), y, y_.get(),
                     &choice.algorithm, workspace, choice.workspace_bytes, stream),
        "cublasLtMatmul");
}

}  // namespace cublaslt
