// Devices, errors, and what nvcc's host code calls at start.
#include "runtime.h"

#include <cstring>
#include <utility>

#include "memory.h"

namespace emulator {

namespace {

struct ErrorText {
  CudaError error;
  const char *name, *description;
};
constexpr ErrorText kErrors[] = {
    {kCudaSuccess, "cudaSuccess", "no error"},
    {kCudaInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {kCudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {kCudaInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {kCudaNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {kCudaInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {kCudaNoKernelImage, "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"},
    {kCudaInvalidHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {kCudaNotReady, "cudaErrorNotReady", "device not ready"},
    {kCudaIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {kCudaIllegalInstruction, "cudaErrorIllegalInstruction", "an illegal instruction was encountered"},
    {kCudaNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {kCudaCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {kCudaCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {kCudaCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {kCudaCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"},
    {kCudaCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {kCudaCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {kCudaCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {kCudaCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const ErrorText& text_of(CudaError error) {
  static constexpr ErrorText kUnknown{-1, "unrecognized error code", "unrecognized error code"};
  for (const ErrorText& text : kErrors) {
    if (text.error == error) return text;
  }
  return kUnknown;
}

void require_device(int device) {
  require(device >= 0 && device < state().config.devices, kCudaInvalidDevice, kDocumented, "no such device");
}

// The attributes that clients ask for, by cudaDeviceAttr, with the values of a card of that SM (assumed).
int attribute_of(int attribute) {
  const int sm = state().config.sm;
  const bool server = sm == 80 || sm == 90 || sm == 100;
  switch (attribute) {
    case 1: return 1024;      // threads a block
    case 8: return 49152;     // shared memory a block
    case 10: return 32;       // warp size
    case 12: return 65536;    // registers a block
    case 13: return 1500000;  // clock, kHz
    case kMultiProcessorCount: return server ? 108 : 28;
    case 36: return server ? 1500000 : 7000000;  // memory clock, kHz
    case 37: return server ? 5120 : 192;         // memory bus, bits
    case 38: return (server ? 40 : 3) << 20;     // L2 bytes
    case 39: return server ? 2048 : 1536;        // threads a multiprocessor
    case kComputeCapabilityMajor: return sm / 10;
    case kComputeCapabilityMinor: return sm % 10;
    case 81: return server ? 167936 : 102400;  // shared memory a multiprocessor
    case 97: return server ? 166912 : 101376;  // shared memory a block, opted in
    case 40: return 2;                         // copy engines
    case 41:
    case 83:
    case 115: return 1;  // unified addressing, managed memory, memory pools
  }
  throw Refusal{kCudaInvalidValue, kAssumed, "the emulator does not know this device attribute"};
}

// Field offsets of cudaDeviceProp that CUDA 12 (its _v2 layout) and 13 share.
void fill_properties(unsigned char* properties) {
  const auto put = [&](std::size_t offset, auto value) { std::memcpy(properties + offset, &value, sizeof value); };
  const std::string name = "Emulated SM " + std::to_string(state().config.sm);
  std::memset(properties, 0, 1008);
  std::memcpy(properties, name.c_str(), name.size() + 1);
  put(288, std::size_t{8} << 30);
  put(296, std::size_t{49152});
  put(304, 65536);
  put(308, 32);
  put(320, 1024);
  put(352, std::size_t{65536});
  put(360, attribute_of(kComputeCapabilityMajor));
  put(364, attribute_of(kComputeCapabilityMinor));
}

// And those that moved: the multiprocessor count.
constexpr std::size_t kCount13 = 384, kCount12 = 388;

}  // namespace

CudaError& last_error() {
  thread_local CudaError error = kCudaSuccess;
  return error;
}

const char* cudaGetErrorName(CudaError error) { return text_of(error).name; }
const char* cudaGetErrorString(CudaError error) { return text_of(error).description; }
CudaError cudaGetLastError() { return std::exchange(last_error(), kCudaSuccess); }
CudaError cudaPeekAtLastError() { return last_error(); }

CudaError cudaGetDeviceCount(int* count) {
  if (count) *count = 0;
  return runtime_call("cudaGetDeviceCount", [&] {
    require(count != nullptr, kCudaInvalidValue, kDocumented, "count is a null pointer");
    *count = state().config.devices;
    return kCudaSuccess;
  });
}

CudaError cudaGetDevice(int* device) {
  return runtime_call("cudaGetDevice", [&] {
    require(device != nullptr, kCudaInvalidValue, kDocumented, "device is a null pointer");
    *device = current_device();
    return kCudaSuccess;
  });
}

CudaError cudaSetDevice(int device) {
  return runtime_call("cudaSetDevice", [&] {
    require_device(device);
    current_device() = device;
    return kCudaSuccess;
  });
}

CudaError cudaDeviceGetAttribute(int* value, DeviceAttribute attribute, int device) {
  return runtime_call("cudaDeviceGetAttribute", [&] {
    require(value != nullptr, kCudaInvalidValue, kDocumented, "value is a null pointer");
    require_device(device);
    *value = attribute_of(attribute);
    return kCudaSuccess;
  });
}

CudaError cudaGetDeviceProperties(DeviceProperties* properties, int device) {
  return runtime_call("cudaGetDeviceProperties", [&] {
    require(properties != nullptr, kCudaInvalidValue, kDocumented, "properties is a null pointer");
    require_device(device);
    auto* raw = reinterpret_cast<unsigned char*>(properties);
    fill_properties(raw);
    const int count = attribute_of(kMultiProcessorCount);
    std::memcpy(raw + kCount13, &count, sizeof count);
    return kCudaSuccess;
  });
}

CudaError cudaGetDeviceProperties_v2(DeviceProperties* properties, int device) {
  return runtime_call("cudaGetDeviceProperties_v2", [&] {
    require(properties != nullptr, kCudaInvalidValue, kDocumented, "properties is a null pointer");
    require_device(device);
    auto* raw = reinterpret_cast<unsigned char*>(properties);
    fill_properties(raw);
    const int count = attribute_of(kMultiProcessorCount);
    std::memcpy(raw + kCount12, &count, sizeof count);
    return kCudaSuccess;
  });
}

// measured: without a driver its version is 0, and both calls succeed.
CudaError cudaDriverGetVersion(int* version) {
  return guarded<CudaError>("cudaDriverGetVersion", [&] {
    require(version != nullptr, kCudaInvalidValue, kDocumented, "version is a null pointer");
    *version = state().config.driver ? 13000 : 0;
    return kCudaSuccess;
  });
}

CudaError cudaRuntimeGetVersion(int* version) {
  return guarded<CudaError>("cudaRuntimeGetVersion", [&] {
    require(version != nullptr, kCudaInvalidValue, kDocumented, "version is a null pointer");
    *version = 13000;
    return kCudaSuccess;
  });
}

CudaError cudaDeviceSynchronize() {
  return runtime_call("cudaDeviceSynchronize", [&] {
    refuse_unsafe_call_while_capturing();
    return faulted(synchronize_device());
  });
}

CudaError cudaDeviceReset() {
  return runtime_call("cudaDeviceReset", [&] {
    refuse_unsafe_call_while_capturing();
    synchronize_device();
    forget_memory();
    return kCudaSuccess;
  });
}

CudaError cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return runtime_call("cudaDeviceCanAccessPeer", [&] {
    require(can != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    require_device(device);
    require_device(peer);
    *can = 0;
    return kCudaSuccess;
  });
}

CudaError cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return runtime_call("cudaDeviceGetStreamPriorityRange", [&] {
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return kCudaSuccess;
  });
}

// Kernels of the client cannot run here: their registration is accepted, their launch refused.
extern "C" {
#define HOST_CODE __attribute__((visibility("default")))
HOST_CODE void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
HOST_CODE void __cudaRegisterFatBinaryEnd(void**) {}
HOST_CODE void __cudaUnregisterFatBinary(void**) {}
HOST_CODE char __cudaInitModule(void**) { return 1; }
HOST_CODE void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
HOST_CODE void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
struct Dimensions {
  unsigned x, y, z;
};
HOST_CODE unsigned __cudaPushCallConfiguration(Dimensions, Dimensions, std::size_t, Stream) { return 0; }
HOST_CODE CudaError __cudaPopCallConfiguration(Dimensions*, Dimensions*, std::size_t*, void*) { return kCudaSuccess; }
HOST_CODE CudaError cudaLaunchKernel(const void*, Dimensions, Dimensions, void**, std::size_t, Stream) {
  return runtime_call("cudaLaunchKernel", [&]() -> CudaError {
    throw Refusal{kCudaNoKernelImage, kAssumed, "the emulator runs no kernels of the client"};
  });
}
}

}  // namespace emulator
