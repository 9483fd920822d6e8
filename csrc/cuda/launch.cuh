// What every launch of a kernel shares: how it fails, and which access memory allows.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>

#include "access.cuh"
#include "error.h"
#include "sparse24.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "2:4 products and __reduce_max_sync need compute capability 8.0 or newer"
#endif

namespace sparse24::cuda {

constexpr int kWarp = 32;

struct Threads {
  dim3 grid, block;
};

template <typename... Args>
void launch(const char* name, void (*kernel)(Args...), Threads threads, void* stream, const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = threads.grid;
  config.blockDim = threads.block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, args...);
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // torch would report it again at its next call
  throw Error(message(name, ": the launch of ", config.gridDim.x, " x ", config.gridDim.y, " blocks of ",
                      config.blockDim.x, " x ", config.blockDim.y, " threads failed: ", cudaGetErrorName(status), ": ",
                      cudaGetErrorString(status)));
}

// Whether pointers and strides (in bytes) allow accesses of 16 bytes.
inline Access access_for(std::initializer_list<const void*> pointers, std::initializer_list<std::int64_t> strides) {
  bool aligned = true;
  for (const void* pointer : pointers) aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  for (const std::int64_t stride : strides) aligned = aligned && stride % 16 == 0;
  return aligned ? Access::kVector : Access::kElements;
}

[[noreturn]] inline void refuse_dtype(const char* name, const char* supported) {
  throw InvalidArgument(message(name, " supports ", supported, "; convert the tensor first"));
}

}  // namespace sparse24::cuda
