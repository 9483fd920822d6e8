// Compiled, never run: our declarations in csrc/cusparselt/abi.h against NVIDIA's own headers.
//   c++ -std=c++20 -fsyntax-only -Icsrc -I<cusparseLt> -I<cuda runtime> [-I<cusparse>] tests/abi/check_abi.cpp
#include <cuda_runtime_api.h>
#include <cusparseLt.h>  // cu12 0.8.1: needs cusparse.h beside it

#include <tuple>
#include <type_traits>

#include "cusparselt/abi.h"

namespace abi = sparse24::abi;

// ---- storage ----

template <typename Theirs>
constexpr bool fits = sizeof(Theirs) <= abi::kOpaqueBytes && alignof(Theirs) <= alignof(abi::Opaque);
static_assert(fits<cusparseLtHandle_t> && fits<cusparseLtMatDescriptor_t> && fits<cusparseLtMatmulDescriptor_t> &&
              fits<cusparseLtMatmulAlgSelection_t> && fits<cusparseLtMatmulPlan_t>);

// ---- signatures: the same number of arguments, each passed in the same way ----

template <typename T>
constexpr std::size_t integer_size() {
  if constexpr (std::is_enum_v<T> || std::is_integral_v<T>) return sizeof(T);
  return 0;
}

template <typename Ours, typename Theirs>
constexpr bool passed_alike =
    std::is_pointer_v<Ours> ? std::is_pointer_v<Theirs>
                            : integer_size<Ours>() != 0 && integer_size<Ours>() == integer_size<Theirs>();

template <typename Ours, typename Theirs>
struct same_call : std::false_type {};
template <typename R1, typename... A1, typename R2, typename... A2>
  requires(sizeof...(A1) == sizeof...(A2))
struct same_call<R1(A1...), R2(A2...)> : std::bool_constant<passed_alike<R1, R2> && (passed_alike<A1, A2> && ...)> {};

namespace sparse24::abi {
#define CHECK_CUSPARSELT(name, result, parameters) \
  static_assert(same_call<result parameters, decltype(cusparseLt##name)>::value, "cusparseLt" #name);
SPARSE24_CUSPARSELT_REQUIRED(CHECK_CUSPARSELT)
SPARSE24_CUSPARSELT_OPTIONAL(CHECK_CUSPARSELT)

#define CHECK_CUDA(name, result, parameters) \
  static_assert(same_call<result parameters, std::remove_pointer_t<decltype(+cuda##name)>>::value, "cuda" #name);
SPARSE24_CUDA_RUNTIME(CHECK_CUDA)
}  // namespace sparse24::abi

// ---- constants ----

#define SAME(ours, theirs) static_assert(static_cast<int>(abi::ours) == static_cast<int>(theirs), #theirs)

SAME(kSuccess, CUSPARSE_STATUS_SUCCESS);
SAME(kNotInitialized, CUSPARSE_STATUS_NOT_INITIALIZED);
SAME(kAllocFailed, CUSPARSE_STATUS_ALLOC_FAILED);
SAME(kInvalidValue, CUSPARSE_STATUS_INVALID_VALUE);
SAME(kArchMismatch, CUSPARSE_STATUS_ARCH_MISMATCH);
SAME(kMappingError, CUSPARSE_STATUS_MAPPING_ERROR);
SAME(kExecutionFailed, CUSPARSE_STATUS_EXECUTION_FAILED);
SAME(kInternalError, CUSPARSE_STATUS_INTERNAL_ERROR);
SAME(kMatrixTypeNotSupported, CUSPARSE_STATUS_MATRIX_TYPE_NOT_SUPPORTED);
SAME(kZeroPivot, CUSPARSE_STATUS_ZERO_PIVOT);
SAME(kNotSupported, CUSPARSE_STATUS_NOT_SUPPORTED);
SAME(kInsufficientResources, CUSPARSE_STATUS_INSUFFICIENT_RESOURCES);

SAME(kReal32F, CUDA_R_32F);
SAME(kReal16F, CUDA_R_16F);
SAME(kReal8I, CUDA_R_8I);
SAME(kReal32I, CUDA_R_32I);
SAME(kReal16BF, CUDA_R_16BF);
SAME(kReal8FE4M3, CUDA_R_8F_E4M3);
SAME(kReal8FE5M2, CUDA_R_8F_E5M2);

SAME(kOrderCol, CUSPARSE_ORDER_COL);
SAME(kOrderRow, CUSPARSE_ORDER_ROW);
SAME(kNonTranspose, CUSPARSE_OPERATION_NON_TRANSPOSE);
SAME(kTranspose, CUSPARSE_OPERATION_TRANSPOSE);
SAME(kSparsity50Percent, CUSPARSELT_SPARSITY_50_PERCENT);
SAME(kCompute32I, CUSPARSE_COMPUTE_32I);
SAME(kCompute16F, CUSPARSE_COMPUTE_16F);
SAME(kCompute32F, CUSPARSE_COMPUTE_32F);
SAME(kPruneTile, CUSPARSELT_PRUNE_SPMMA_TILE);
SAME(kPruneStrip, CUSPARSELT_PRUNE_SPMMA_STRIP);
SAME(kAlgDefault, CUSPARSELT_MATMUL_ALG_DEFAULT);
SAME(kMajorVersion, MAJOR_VERSION);
SAME(kMinorVersion, MINOR_VERSION);
SAME(kPatchLevel, PATCH_LEVEL);
SAME(kNumBatches, CUSPARSELT_MAT_NUM_BATCHES);
SAME(kBatchStride, CUSPARSELT_MAT_BATCH_STRIDE);

SAME(kRelu, CUSPARSELT_MATMUL_ACTIVATION_RELU);
SAME(kReluUpperBound, CUSPARSELT_MATMUL_ACTIVATION_RELU_UPPERBOUND);
SAME(kReluThreshold, CUSPARSELT_MATMUL_ACTIVATION_RELU_THRESHOLD);
SAME(kGelu, CUSPARSELT_MATMUL_ACTIVATION_GELU);
SAME(kGeluScaling, CUSPARSELT_MATMUL_ACTIVATION_GELU_SCALING);
SAME(kAlphaVectorScaling, CUSPARSELT_MATMUL_ALPHA_VECTOR_SCALING);
SAME(kBetaVectorScaling, CUSPARSELT_MATMUL_BETA_VECTOR_SCALING);
SAME(kBiasStride, CUSPARSELT_MATMUL_BIAS_STRIDE);
SAME(kBiasPointer, CUSPARSELT_MATMUL_BIAS_POINTER);
SAME(kSparseMatPointer, CUSPARSELT_MATMUL_SPARSE_MAT_POINTER);
SAME(kAScaleMode, CUSPARSELT_MATMUL_A_SCALE_MODE);
SAME(kBScaleMode, CUSPARSELT_MATMUL_B_SCALE_MODE);
SAME(kCScaleMode, CUSPARSELT_MATMUL_C_SCALE_MODE);
SAME(kDScaleMode, CUSPARSELT_MATMUL_D_SCALE_MODE);
SAME(kDOutScaleMode, CUSPARSELT_MATMUL_D_OUT_SCALE_MODE);
SAME(kAScalePointer, CUSPARSELT_MATMUL_A_SCALE_POINTER);
SAME(kBScalePointer, CUSPARSELT_MATMUL_B_SCALE_POINTER);
SAME(kCScalePointer, CUSPARSELT_MATMUL_C_SCALE_POINTER);
SAME(kDScalePointer, CUSPARSELT_MATMUL_D_SCALE_POINTER);
SAME(kDOutScalePointer, CUSPARSELT_MATMUL_D_OUT_SCALE_POINTER);
SAME(kScaleNone, CUSPARSELT_MATMUL_SCALE_NONE);
SAME(kScaleScalar32F, CUSPARSELT_MATMUL_MATRIX_SCALE_SCALAR_32F);
SAME(kScaleVec32UE4M3, CUSPARSELT_MATMUL_MATRIX_SCALE_VEC32_UE4M3);
SAME(kScaleVec64UE8M0, CUSPARSELT_MATMUL_MATRIX_SCALE_VEC64_UE8M0);
SAME(kConfigId, CUSPARSELT_MATMUL_ALG_CONFIG_ID);
SAME(kConfigMaxId, CUSPARSELT_MATMUL_ALG_CONFIG_MAX_ID);
SAME(kSearchIterations, CUSPARSELT_MATMUL_SEARCH_ITERATIONS);
SAME(kSplitK, CUSPARSELT_MATMUL_SPLIT_K);
SAME(kSplitKMode, CUSPARSELT_MATMUL_SPLIT_K_MODE);
SAME(kSplitKBuffers, CUSPARSELT_MATMUL_SPLIT_K_BUFFERS);
SAME(kSplitKOneKernel, CUSPARSELT_SPLIT_K_MODE_ONE_KERNEL);
SAME(kSplitKTwoKernels, CUSPARSELT_SPLIT_K_MODE_TWO_KERNELS);
SAME(kSplitKHeuristic, CUSPARSELT_HEURISTIC);
SAME(kSplitKDataParallel, CUSPARSELT_DATAPARALLEL);
SAME(kSplitKSplitK, CUSPARSELT_SPLITK);
SAME(kSplitKStreamK, CUSPARSELT_STREAMK);

SAME(kMultiProcessorCount, cudaDevAttrMultiProcessorCount);
SAME(kComputeCapabilityMajor, cudaDevAttrComputeCapabilityMajor);
SAME(kComputeCapabilityMinor, cudaDevAttrComputeCapabilityMinor);
SAME(kHostToDevice, cudaMemcpyHostToDevice);
SAME(kDeviceToHost, cudaMemcpyDeviceToHost);
SAME(kDeviceToDevice, cudaMemcpyDeviceToDevice);
SAME(kCaptureNone, cudaStreamCaptureStatusNone);
SAME(kCaptureActive, cudaStreamCaptureStatusActive);
SAME(kCaptureInvalidated, cudaStreamCaptureStatusInvalidated);
SAME(kCudaSuccess, cudaSuccess);
