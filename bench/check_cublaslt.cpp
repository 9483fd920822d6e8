// Compiled, never run: our declarations in cublaslt.h against NVIDIA's own header.
//   c++ -std=c++20 -fsyntax-only -Icsrc -Ibench -I<cublas> -I<cuda runtime> bench/check_cublaslt.cpp
#include <cublasLt.h>

#include <type_traits>

#include "cublaslt.h"

template <typename Ours, typename Theirs>
constexpr bool passed_alike =
    std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> && sizeof(Ours) == sizeof(Theirs) &&
    (std::is_integral_v<Ours> || std::is_enum_v<Ours>) == (std::is_integral_v<Theirs> || std::is_enum_v<Theirs>);

template <typename Ours, typename Theirs>
struct same_call : std::false_type {};
template <typename R1, typename... A1, typename R2, typename... A2>
  requires(sizeof...(A1) == sizeof...(A2))
struct same_call<R1(A1...), R2(A2...)> : std::bool_constant<passed_alike<R1, R2> && (passed_alike<A1, A2> && ...)> {};

namespace cublaslt {
#define CHECK_CUBLASLT(name, result, parameters) \
  static_assert(same_call<result parameters, decltype(cublasLt##name)>::value, "cublasLt" #name);
CUBLASLT_FUNCTIONS(CHECK_CUBLASLT)

#define SAME(ours, theirs) static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs)
SAME(kSuccess, CUBLAS_STATUS_SUCCESS);
SAME(kCompute32F, CUBLAS_COMPUTE_32F);
SAME(kCompute32I, CUBLAS_COMPUTE_32I);
SAME(kCompute32FFastTf32, CUBLAS_COMPUTE_32F_FAST_TF32);
SAME(kTransA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(kMaxWorkspaceBytes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(kTranspose, CUBLAS_OP_T);

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Heuristic, workspace_bytes) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(Heuristic, status) == offsetof(cublasLtMatmulHeuristicResult_t, state));
}  // namespace cublaslt
