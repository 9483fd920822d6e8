// The part of CUDA that csrc/cuda/kernels.cu uses, on the CPU, so that a test compiles and runs that very
// file: a launch calls the kernel for every thread of every block, one after the other, and checks CUDA's
// limits on a launch. Kernels whose threads talk to each other (__syncthreads, __reduce_max_sync, __shfl_xor_sync) run
// with a real thread for each, while `concurrent` is set. What it cannot show: data races between blocks, speed.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time

struct dim3 {
  constexpr dim3(unsigned across = 1, unsigned down = 1, unsigned deep = 1) : x(across), y(down), z(deep) {}
  unsigned x, y, z;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorNoKernelImageForDevice = 209 };
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration" : "cudaErrorNoKernelImageForDevice";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                : "no kernel image is available for execution on the device";
}

using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_emulated {

inline bool concurrent = false;                // set while kernels with collectives are launched
inline cudaError_t next_launch = cudaSuccess;  // the status of the next launch; other than success, it does nothing
inline cudaError_t last_error = cudaSuccess;
inline cudaStream_t last_stream = nullptr;
inline int launches = 0;

// What the threads of a running block share.
struct Block {
  explicit Block(unsigned threads) : whole(static_cast<std::ptrdiff_t>(threads)), values(threads) {
    for (unsigned first = 0; first < threads; first += 32) warps.push_back(std::make_unique<std::barrier<>>(32));
  }
  std::barrier<> whole;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<unsigned> values;
};
inline Block* block = nullptr;

template <typename Kernel>
void run_thread(const cudaLaunchConfig_t& config, unsigned thread, Kernel kernel) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x);
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      kernel();
      if (block != nullptr) block->whole.arrive_and_wait();
    }
  }
}

}  // namespace cuda_emulated

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulated::last_error;
  cuda_emulated::last_error = cudaSuccess;
  return error;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  using namespace cuda_emulated;
  const dim3 grid = config->gridDim, threads = config->blockDim;
  const bool legal = grid.x >= 1 && grid.x <= 2147483647 && grid.y >= 1 && grid.y <= 65535 && grid.z == 1 &&
                     threads.x >= 1 && threads.y >= 1 && threads.x * threads.y <= 1024 && threads.z == 1;
  last_error = legal ? next_launch : cudaErrorInvalidConfiguration;
  next_launch = cudaSuccess;
  if (last_error != cudaSuccess) return last_error;
  ++launches;
  last_stream = config->stream;
  const unsigned count = threads.x * threads.y;
  const auto call = [&] { kernel(arguments...); };
  if (!concurrent) {
    for (unsigned thread = 0; thread < count; ++thread) run_thread(*config, thread, call);
    return cudaSuccess;
  }
  Block shared(count);
  block = &shared;
  std::vector<std::thread> workers;
  for (unsigned thread = 0; thread < count; ++thread) {
    workers.emplace_back([&, thread] { run_thread(*config, thread, call); });
  }
  for (std::thread& worker : workers) worker.join();
  block = nullptr;
  return cudaSuccess;
}

inline void __syncthreads() {
  if (cuda_emulated::block == nullptr) std::abort();  // a collective in a launch that is not concurrent
  cuda_emulated::block->whole.arrive_and_wait();
}

inline unsigned __reduce_max_sync(unsigned lanes, unsigned value) {
  cuda_emulated::Block* const block = cuda_emulated::block;
  if (block == nullptr || lanes != 0xffffffffu) std::abort();
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, first = thread / 32 * 32;
  std::barrier<>& warp = *block->warps[thread / 32];
  block->values[thread] = value;
  warp.arrive_and_wait();
  const unsigned largest = *std::max_element(block->values.begin() + first, block->values.begin() + first + 32);
  warp.arrive_and_wait();  // before the next reduction writes
  return largest;
}

inline float __shfl_xor_sync(unsigned lanes, float value, int apart) {
  cuda_emulated::Block* const block = cuda_emulated::block;
  if (block == nullptr || lanes != 0xffffffffu) std::abort();
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, other = thread ^ static_cast<unsigned>(apart);
  if (other / 32 != thread / 32) std::abort();  // beyond the warp
  std::barrier<>& warp = *block->warps[thread / 32];
  std::memcpy(&block->values[thread], &value, sizeof value);
  warp.arrive_and_wait();
  float found;
  std::memcpy(&found, &block->values[other], sizeof found);
  warp.arrive_and_wait();  // before the next exchange writes
  return found;
}

inline long long atomicMin(long long* at, long long value) {
  const long long before = *at;
  *at = std::min(before, value);
  return before;
}
