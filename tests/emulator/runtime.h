// The CUDA runtime: the exports beyond csrc/cusparselt/abi.h, and what its files share.
#pragma once

#include "cusparselt/abi.h"
#include "state.h"
#include "streams.h"

namespace emulator {

struct DeviceProperties;    // cudaDeviceProp
struct PointerAttributes {  // cudaPointerAttributes of CUDA 13, whose first fields are those of CUDA 12
  int type, device;
  void *device_pointer, *host_pointer;
  long reserved[8];
};
using GraphHandle = void*;      // cudaGraph_t
using GraphExecHandle = void*;  // cudaGraphExec_t

// X(name, result, parameters): exported as cuda<name>.
#define EMULATOR_CUDA_RUNTIME(X)                                                                             \
  X(GetErrorName, const char*, (CudaError))                                                                  \
  X(GetLastError, CudaError, ())                                                                             \
  X(PeekAtLastError, CudaError, ())                                                                          \
  X(DeviceSynchronize, CudaError, ())                                                                        \
  X(DeviceReset, CudaError, ())                                                                              \
  X(DeviceCanAccessPeer, CudaError, (int*, int, int))                                                        \
  X(DeviceGetStreamPriorityRange, CudaError, (int*, int*))                                                   \
  X(GetDeviceProperties, CudaError, (DeviceProperties*, int))                                                \
  X(GetDeviceProperties_v2, CudaError, (DeviceProperties*, int))                                             \
  X(MemGetInfo, CudaError, (std::size_t*, std::size_t*))                                                     \
  X(PointerGetAttributes, CudaError, (PointerAttributes*, const void*))                                      \
  X(Memcpy, CudaError, (void*, const void*, std::size_t, CopyKind))                                          \
  X(Memcpy2D, CudaError, (void*, std::size_t, const void*, std::size_t, std::size_t, std::size_t, CopyKind)) \
  X(Memset, CudaError, (void*, int, std::size_t))                                                            \
  X(MallocHost, CudaError, (void**, std::size_t))                                                            \
  X(HostAlloc, CudaError, (void**, std::size_t, unsigned))                                                   \
  X(FreeHost, CudaError, (void*))                                                                            \
  X(MallocManaged, CudaError, (void**, std::size_t, unsigned))                                               \
  X(MallocAsync, CudaError, (void**, std::size_t, Stream))                                                   \
  X(FreeAsync, CudaError, (void*, Stream))                                                                   \
  X(StreamCreateWithFlags, CudaError, (Stream*, unsigned))                                                   \
  X(StreamCreateWithPriority, CudaError, (Stream*, unsigned, int))                                           \
  X(StreamQuery, CudaError, (Stream))                                                                        \
  X(StreamWaitEvent, CudaError, (Stream, CudaEvent, unsigned))                                               \
  X(EventCreateWithFlags, CudaError, (CudaEvent*, unsigned))                                                 \
  X(EventRecordWithFlags, CudaError, (CudaEvent, Stream, unsigned))                                          \
  X(EventQuery, CudaError, (CudaEvent))                                                                      \
  X(StreamBeginCapture, CudaError, (Stream, CaptureMode))                                                    \
  X(StreamEndCapture, CudaError, (Stream, GraphHandle*))                                                     \
  X(StreamGetCaptureInfo, CudaError,                                                                         \
    (Stream, CaptureStatus*, unsigned long long*, GraphHandle*, const void**, const void**, std::size_t*))   \
  X(ThreadExchangeStreamCaptureMode, CudaError, (CaptureMode*))                                              \
  X(GraphInstantiate, CudaError, (GraphExecHandle*, GraphHandle, unsigned long long))                        \
  X(GraphInstantiateWithFlags, CudaError, (GraphExecHandle*, GraphHandle, unsigned long long))               \
  X(GraphUpload, CudaError, (GraphExecHandle, Stream))                                                       \
  X(GraphLaunch, CudaError, (GraphExecHandle, Stream))                                                       \
  X(GraphGetNodes, CudaError, (GraphHandle, void**, std::size_t*))                                           \
  X(GraphDestroy, CudaError, (GraphHandle))                                                                  \
  X(GraphExecDestroy, CudaError, (GraphExecHandle))

#define EMULATOR_DECLARE_RUNTIME(name, result, parameters) EMULATOR_EXPORT result cuda##name parameters;
#ifndef CUDART_VERSION  // clients/check_prototypes.cpp has the real declarations beside it
SPARSE24_CUDA_RUNTIME(EMULATOR_DECLARE_RUNTIME)
EMULATOR_CUDA_RUNTIME(EMULATOR_DECLARE_RUNTIME)
#endif

// This thread's last error, as cudaGetLastError gives it.
CudaError& last_error();

// A call of the runtime: needs the driver, and remembers its error.
template <typename Body>
CudaError runtime_call(const char* function, Body&& body) {
  const CudaError error = guarded<CudaError>(function, [&] {
    require(state().config.driver, kCudaInsufficientDriver, kMeasured, "there is no driver");
    require(state().config.devices > 0, kCudaNoDevice, kDocumented, "there is no device");
    require(!state().context_is_dead, kCudaIllegalInstruction, kDocumented, "the context is dead");
    return body();
  });
  if (error != kCudaSuccess && error != kCudaNotReady) last_error() = error;
  return error;
}

// Faults of queued work show at the next synchronisation (documented), once (the real error stays for good); an illegal
// instruction does stay.
inline CudaError faulted(bool fault) {
  if (state().context_is_dead) return kCudaIllegalInstruction;
  return fault ? kCudaIllegalAddress : kCudaSuccess;
}

void forget_runtime();
long live_runtime_objects();

}  // namespace emulator
