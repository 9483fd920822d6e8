// Our own declarations of the C interfaces that the backend calls: cuSPARSELt 0.6.3 to 0.10 and a
// small part of the CUDA runtime. No NVIDIA header is needed to build; tests/abi/check_abi.cpp compares
// every constant and signature here with the real headers.
//
// Enum values are strictly additive from 0.6.3 to 0.10, so one set serves all versions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparse24::abi {

// ---- cuSPARSELt ----

// The opaque structs take 512 bytes aligned to 16 since 0.8, 1024 in 0.7, 13072 in 0.6. They hold
// pointers to each other: never copy or move one after its Init.
constexpr std::size_t kOpaqueBytes = 16 * 1024;
struct alignas(64) Opaque {
  unsigned char data[kOpaqueBytes];
};
struct Handle : Opaque {};
struct MatDescriptor : Opaque {};
struct MatmulDescriptor : Opaque {};
struct AlgSelection : Opaque {};
struct Plan : Opaque {};

enum Status : int {
  kSuccess = 0,
  kNotInitialized = 1,
  kAllocFailed = 2,
  kInvalidValue = 3,
  kArchMismatch = 4,
  kMappingError = 5,
  kExecutionFailed = 6,
  kInternalError = 7,
  kMatrixTypeNotSupported = 8,
  kZeroPivot = 9,
  kNotSupported = 10,
  kInsufficientResources = 11,
};

// cudaDataType
enum DataType : int {
  kReal32F = 0,
  kReal16F = 2,
  kReal8I = 3,
  kReal32I = 10,
  kReal16BF = 14,
  kReal8FE4M3 = 28,
  kReal8FE5M2 = 29,
  kReal4FE2M1 = 33,
};

enum Order : int { kOrderCol = 1, kOrderRow = 2 };
enum Operation : int { kNonTranspose = 0, kTranspose = 1, kConjugateTranspose = 2 };
enum Sparsity : int { kSparsity50Percent = 0 };
enum ComputeType : int { kCompute32I = 0, kCompute16F = 1, kCompute32F = 2 };
enum PruneAlg : int { kPruneTile = 0, kPruneStrip = 1 };
enum MatmulAlg : int { kAlgDefault = 0 };
// libraryPropertyType
enum Property : int { kMajorVersion = 0, kMinorVersion = 1, kPatchLevel = 2 };

enum MatAttribute : int { kNumBatches = 0, kBatchStride = 1 };

enum MatmulAttribute : int {
  kRelu = 0,
  kReluUpperBound = 1,
  kReluThreshold = 2,
  kGelu = 3,
  kGeluScaling = 4,
  kAlphaVectorScaling = 5,
  kBetaVectorScaling = 6,
  kBiasStride = 7,
  kBiasPointer = 8,
  kSparseMatPointer = 9,
  kAScaleMode = 10,
  kBScaleMode = 11,
  kCScaleMode = 12,
  kDScaleMode = 13,
  kDOutScaleMode = 14,
  kAScalePointer = 15,
  kBScalePointer = 16,
  kCScalePointer = 17,
  kDScalePointer = 18,
  kDOutScalePointer = 19,
};

enum ScaleMode : int { kScaleNone = 0, kScaleScalar32F = 1, kScaleVec32UE4M3 = 2, kScaleVec64UE8M0 = 3 };

enum AlgAttribute : int {
  kConfigId = 0,
  kConfigMaxId = 1,
  kSearchIterations = 2,
  kSplitK = 3,
  kSplitKMode = 4,
  kSplitKBuffers = 5,
};

enum SplitKMode : int {
  kSplitKInvalid = 0,
  kSplitKOneKernel = 1,
  kSplitKTwoKernels = 2,
  kSplitKHeuristic = 3,
  kSplitKDataParallel = 4,
  kSplitKSplitK = 5,
  kSplitKStreamK = 6,
};

using Stream = void*;  // cudaStream_t

// X(name, result, parameters): exported as cusparseLt<name> by every version since 0.4.
#define SPARSE24_CUSPARSELT_REQUIRED(X)                                                                               \
  X(Init, Status, (Handle*))                                                                                          \
  X(Destroy, Status, (const Handle*))                                                                                 \
  X(GetVersion, Status, (const Handle*, int*))                                                                        \
  X(GetProperty, Status, (Property, int*))                                                                            \
  X(DenseDescriptorInit, Status,                                                                                      \
    (const Handle*, MatDescriptor*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t, DataType, Order))        \
  X(StructuredDescriptorInit, Status,                                                                                 \
    (const Handle*, MatDescriptor*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t, DataType, Order,         \
     Sparsity))                                                                                                       \
  X(MatDescriptorDestroy, Status, (const MatDescriptor*))                                                             \
  X(MatDescSetAttribute, Status, (const Handle*, MatDescriptor*, MatAttribute, const void*, std::size_t))             \
  X(MatDescGetAttribute, Status, (const Handle*, const MatDescriptor*, MatAttribute, void*, std::size_t))             \
  X(MatmulDescriptorInit, Status,                                                                                     \
    (const Handle*, MatmulDescriptor*, Operation, Operation, const MatDescriptor*, const MatDescriptor*,              \
     const MatDescriptor*, const MatDescriptor*, ComputeType))                                                        \
  X(MatmulDescSetAttribute, Status, (const Handle*, MatmulDescriptor*, MatmulAttribute, const void*, std::size_t))    \
  X(MatmulDescGetAttribute, Status, (const Handle*, const MatmulDescriptor*, MatmulAttribute, void*, std::size_t))    \
  X(MatmulAlgSelectionInit, Status, (const Handle*, AlgSelection*, const MatmulDescriptor*, MatmulAlg))               \
  X(MatmulAlgSetAttribute, Status, (const Handle*, AlgSelection*, AlgAttribute, const void*, std::size_t))            \
  X(MatmulAlgGetAttribute, Status, (const Handle*, const AlgSelection*, AlgAttribute, void*, std::size_t))            \
  X(MatmulGetWorkspace, Status, (const Handle*, const Plan*, std::size_t*))                                           \
  X(MatmulPlanInit, Status, (const Handle*, Plan*, const MatmulDescriptor*, const AlgSelection*))                     \
  X(MatmulPlanDestroy, Status, (const Plan*))                                                                         \
  X(Matmul, Status,                                                                                                   \
    (const Handle*, const Plan*, const void*, const void*, const void*, const void*, const void*, void*, void*,       \
     Stream*, std::int32_t))                                                                                          \
  X(MatmulSearch, Status,                                                                                             \
    (const Handle*, Plan*, const void*, const void*, const void*, const void*, const void*, void*, void*, Stream*,    \
     std::int32_t))                                                                                                   \
  X(SpMMAPrune, Status, (const Handle*, const MatmulDescriptor*, const void*, void*, PruneAlg, Stream))               \
  X(SpMMAPruneCheck, Status, (const Handle*, const MatmulDescriptor*, const void*, int*, Stream))                     \
  X(SpMMAPrune2, Status, (const Handle*, const MatDescriptor*, int, Operation, const void*, void*, PruneAlg, Stream)) \
  X(SpMMAPruneCheck2, Status, (const Handle*, const MatDescriptor*, int, Operation, const void*, int*, Stream))       \
  X(SpMMACompressedSize, Status, (const Handle*, const Plan*, std::size_t*, std::size_t*))                            \
  X(SpMMACompress, Status, (const Handle*, const Plan*, const void*, void*, void*, Stream))                           \
  X(SpMMACompressedSize2, Status, (const Handle*, const MatDescriptor*, std::size_t*, std::size_t*))                  \
  X(SpMMACompress2, Status, (const Handle*, const MatDescriptor*, int, Operation, const void*, void*, void*, Stream))

// Since 0.8 only; the header of 0.7.1 declares the first two, its library lacks them.
#define SPARSE24_CUSPARSELT_OPTIONAL(X)    \
  X(GetErrorName, const char*, (Status))   \
  X(GetErrorString, const char*, (Status)) \
  X(MatmulAlgSelectionDestroy, Status, (const AlgSelection*))

// ---- CUDA runtime: what a client of cuSPARSELt needs beside it, the same in CUDA 12 and 13 ----

using CudaError = int;    // cudaError_t
using CudaEvent = void*;  // cudaEvent_t
constexpr CudaError kCudaSuccess = 0;
constexpr CudaError kCudaInsufficientDriver = 35, kCudaNoDevice = 100;

// cudaDeviceAttr
enum DeviceAttribute : int { kMultiProcessorCount = 16, kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76 };
// cudaMemcpyKind
enum CopyKind : int { kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3 };
// cudaStreamCaptureStatus
enum CaptureStatus : int { kCaptureNone = 0, kCaptureActive = 1, kCaptureInvalidated = 2 };

// X(name, result, parameters): exported as cuda<name>.
#define SPARSE24_CUDA_RUNTIME(X)                                                 \
  X(GetErrorString, const char*, (CudaError))                                    \
  X(GetDeviceCount, CudaError, (int*))                                           \
  X(GetDevice, CudaError, (int*))                                                \
  X(SetDevice, CudaError, (int))                                                 \
  X(DeviceGetAttribute, CudaError, (int*, DeviceAttribute, int))                 \
  X(DriverGetVersion, CudaError, (int*))                                         \
  X(RuntimeGetVersion, CudaError, (int*))                                        \
  X(Malloc, CudaError, (void**, std::size_t))                                    \
  X(Free, CudaError, (void*))                                                    \
  X(MemcpyAsync, CudaError, (void*, const void*, std::size_t, CopyKind, Stream)) \
  X(MemsetAsync, CudaError, (void*, int, std::size_t, Stream))                   \
  X(StreamCreate, CudaError, (Stream*))                                          \
  X(StreamDestroy, CudaError, (Stream))                                          \
  X(StreamSynchronize, CudaError, (Stream))                                      \
  X(StreamIsCapturing, CudaError, (Stream, CaptureStatus*))                      \
  X(EventCreate, CudaError, (CudaEvent*))                                        \
  X(EventRecord, CudaError, (CudaEvent, Stream))                                 \
  X(EventSynchronize, CudaError, (CudaEvent))                                    \
  X(EventElapsedTime, CudaError, (float*, CudaEvent, CudaEvent))                 \
  X(EventDestroy, CudaError, (CudaEvent))

// The functions as pointers, by these names.
#define SPARSE24_POINTER(name, result, parameters) result(*name) parameters = nullptr;
struct CusparseltFunctions {
  SPARSE24_CUSPARSELT_REQUIRED(SPARSE24_POINTER)
  SPARSE24_CUSPARSELT_OPTIONAL(SPARSE24_POINTER)  // null where the library lacks them
};
struct CudaFunctions {
  SPARSE24_CUDA_RUNTIME(SPARSE24_POINTER)
};
#undef SPARSE24_POINTER

}  // namespace sparse24::abi
