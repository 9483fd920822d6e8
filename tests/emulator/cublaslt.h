// The part of cuBLASLt that one dense product with an epilogue needs. Values as in its public interface.
#pragma once

#include "state.h"

namespace emulator {

enum BlasStatus : int {
  kBlasSuccess = 0,
  kBlasNotInitialized = 1,
  kBlasInvalidValue = 7,
  kBlasExecutionFailed = 13,
  kBlasNotSupported = 15,
};

enum BlasCompute : int { kBlas16F = 64, kBlas32F = 68, kBlas32I = 72, kBlas32FFastTf32 = 77 };
enum BlasOrder : int { kBlasCol = 0, kBlasRow = 1 };
enum BlasEpilogue : unsigned {
  kBlasDefault = 1,
  kBlasRelu = 2,
  kBlasBias = 4,
  kBlasGelu = 32,
};
enum BlasMatmulAttribute : int {
  kBlasComputeType = 0,
  kBlasScaleType = 1,
  kBlasPointerMode = 2,
  kBlasTransA = 3,
  kBlasTransB = 4,
  kBlasTransC = 5,
  kBlasEpilogue = 7,
  kBlasBiasPointer = 8,
  kBlasBiasBatchStride = 10,
  kBlasBiasDataType = 26,
};
enum BlasLayoutAttribute : int {
  kBlasType = 0,
  kBlasLayoutOrder = 1,
  kBlasRows = 2,
  kBlasCols = 3,
  kBlasLd = 4,
  kBlasBatchCount = 5,
  kBlasBatchOffset = 6,
};
enum BlasPreferenceAttribute : int { kBlasSearchMode = 0, kBlasMaxWorkspace = 1 };

struct BlasAlgorithm {
  std::uint64_t data[8];
};
struct BlasHeuristic {
  BlasAlgorithm algorithm;
  std::size_t workspace;
  BlasStatus state;
  float waves;
  int reserved[4];
};

// Pointers of the client's side; what they point at is never looked into by it.
struct BlasHandle;
struct BlasMatmul;
struct BlasLayout;
struct BlasPreference;

// X(name, result, parameters): exported as cublasLt<name>.
#define EMULATOR_CUBLASLT(X)                                                                                        \
  X(Create, BlasStatus, (BlasHandle**))                                                                             \
  X(Destroy, BlasStatus, (BlasHandle*))                                                                             \
  X(GetVersion, std::size_t, ())                                                                                    \
  X(GetCudartVersion, std::size_t, ())                                                                              \
  X(GetStatusName, const char*, (BlasStatus))                                                                       \
  X(GetStatusString, const char*, (BlasStatus))                                                                     \
  X(MatmulDescCreate, BlasStatus, (BlasMatmul**, BlasCompute, DataType))                                            \
  X(MatmulDescDestroy, BlasStatus, (BlasMatmul*))                                                                   \
  X(MatmulDescSetAttribute, BlasStatus, (BlasMatmul*, BlasMatmulAttribute, const void*, std::size_t))               \
  X(MatrixLayoutCreate, BlasStatus, (BlasLayout**, DataType, std::uint64_t, std::uint64_t, std::int64_t))           \
  X(MatrixLayoutDestroy, BlasStatus, (BlasLayout*))                                                                 \
  X(MatrixLayoutSetAttribute, BlasStatus, (BlasLayout*, BlasLayoutAttribute, const void*, std::size_t))             \
  X(MatmulPreferenceCreate, BlasStatus, (BlasPreference**))                                                         \
  X(MatmulPreferenceDestroy, BlasStatus, (BlasPreference*))                                                         \
  X(MatmulPreferenceSetAttribute, BlasStatus, (BlasPreference*, BlasPreferenceAttribute, const void*, std::size_t)) \
  X(MatmulAlgoGetHeuristic, BlasStatus,                                                                             \
    (BlasHandle*, BlasMatmul*, BlasLayout*, BlasLayout*, BlasLayout*, BlasLayout*, BlasPreference*, int,            \
     BlasHeuristic*, int*))                                                                                         \
  X(Matmul, BlasStatus,                                                                                             \
    (BlasHandle*, BlasMatmul*, const void*, const void*, BlasLayout*, const void*, BlasLayout*, const void*,        \
     const void*, BlasLayout*, void*, BlasLayout*, const BlasAlgorithm*, void*, std::size_t, Stream))

#define EMULATOR_DECLARE_CUBLASLT(name, result, parameters) EMULATOR_EXPORT result cublasLt##name parameters;
EMULATOR_CUBLASLT(EMULATOR_DECLARE_CUBLASLT)

void forget_blas();
long live_blas_objects();

}  // namespace emulator
