// Allocation, copies and fills.
#include <cstring>

#include "memory.h"
#include "runtime.h"

namespace emulator {

namespace {

CudaError allocate_for(const char* function, void** pointer, std::size_t size, MemoryKind kind) {
  return runtime_call(function, [&] {
    require(pointer != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    refuse_unsafe_call_while_capturing();
    ++state().allocations;
    *pointer = size ? allocate(size, kind, current_device()) : nullptr;
    return kCudaSuccess;
  });
}

// Freeing waits for the device (documented).
CudaError free_for(const char* function, void* pointer) {
  return runtime_call(function, [&] {
    refuse_unsafe_call_while_capturing();
    if (!pointer) return kCudaSuccess;
    const CudaError error = faulted(synchronize_device());
    release(pointer);
    return error;
  });
}

constexpr int kHostToHost = 0, kDefault = 4;
void require_kind(CopyKind kind) {
  require(kind >= kHostToHost && kind <= kDefault, kCudaInvalidValue, kDocumented, "unknown kind of copy");
}

// Memory of the host that is not pinned. What the arena does not know counts by the kind of the copy, because tests
// pass ordinary memory as the device's.
bool pageable(const void* pointer, CopyKind kind, bool source) {
  if (in_arena(pointer)) return false;
  return kind == kHostToHost || kind == kDefault || kind == (source ? kHostToDevice : kDeviceToHost);
}

Work copy_work(const char* function, void* to, const void* from, std::size_t size) {
  return make_work(function, [=] {
    if (!check_range(from, size, "the source of the copy") || !check_range(to, size, "the destination of the copy")) {
      return false;
    }
    std::memmove(to, from, size);
    return true;
  });
}

CudaError copy_now(const char* function, StreamObject& stream, Work work) {
  refuse_on_capturing_stream(stream, "a synchronous copy cannot be captured");
  refuse_unsafe_call_while_capturing();
  state().function = function;
  enqueue(stream, std::move(work));
  return faulted(synchronize(stream));
}

CudaError set_memory(const char* function, void* to, int value, std::size_t size, Stream stream) {
  return runtime_call(function, [&] {
    if (size == 0) return kCudaSuccess;
    require(to != nullptr, kCudaInvalidValue, kDocumented, "the memory is a null pointer");
    enqueue(find_stream(stream), make_work(function, [=] {
              if (!check_range(to, size, "the memory to set")) return false;
              std::memset(to, value, size);
              return true;
            }));
    return kCudaSuccess;
  });
}

}  // namespace

CudaError cudaMalloc(void** pointer, std::size_t size) {
  return allocate_for("cudaMalloc", pointer, size, MemoryKind::kDevice);
}
CudaError cudaMallocHost(void** pointer, std::size_t size) {
  return allocate_for("cudaMallocHost", pointer, size, MemoryKind::kPinned);
}
CudaError cudaHostAlloc(void** pointer, std::size_t size, unsigned) {
  return allocate_for("cudaHostAlloc", pointer, size, MemoryKind::kPinned);
}
CudaError cudaMallocManaged(void** pointer, std::size_t size, unsigned) {
  return allocate_for("cudaMallocManaged", pointer, size, MemoryKind::kManaged);
}
CudaError cudaFree(void* pointer) { return free_for("cudaFree", pointer); }
CudaError cudaFreeHost(void* pointer) { return free_for("cudaFreeHost", pointer); }

CudaError cudaMallocAsync(void** pointer, std::size_t size, Stream stream) {
  return runtime_call("cudaMallocAsync", [&] {
    require(pointer != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    refuse_on_capturing_stream(find_stream(stream), "the emulator does not capture allocations");
    ++state().allocations;
    *pointer = allocate(size, MemoryKind::kDevice, current_device());
    return kCudaSuccess;
  });
}

CudaError cudaFreeAsync(void* pointer, Stream stream) {
  return runtime_call("cudaFreeAsync", [&] {
    if (!pointer) return kCudaSuccess;
    StreamObject& queue = find_stream(stream);
    refuse_on_capturing_stream(queue, "the emulator does not capture allocations");
    Block* block = find_block(pointer);
    if (!block || block->freeing) violate_and_refuse(kCudaInvalidValue, kDocumented, "freed memory that is not live");
    block->freeing = true;
    enqueue(queue, make_work("cudaFreeAsync", [pointer] {
              release(pointer);
              return true;
            }));
    return kCudaSuccess;
  });
}

CudaError cudaMemcpy(void* to, const void* from, std::size_t size, CopyKind kind) {
  return runtime_call("cudaMemcpy", [&] {
    require_kind(kind);
    if (size == 0) return kCudaSuccess;
    require(to && from, kCudaInvalidValue, kDocumented, "a pointer is null");
    return copy_now("cudaMemcpy", find_stream(nullptr), copy_work("cudaMemcpy", to, from, size));
  });
}

CudaError cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                       std::size_t height, CopyKind kind) {
  return runtime_call("cudaMemcpy2D", [&] {
    require_kind(kind);
    if (width == 0 || height == 0) return kCudaSuccess;
    require(to && from && width <= to_pitch && width <= from_pitch, kCudaInvalidValue, kDocumented,
            "a pointer is null or a pitch below the width");
    return copy_now("cudaMemcpy2D", find_stream(nullptr), make_work("cudaMemcpy2D", [=] {
                      if (!check_range(from, (height - 1) * from_pitch + width, "the source of the copy") ||
                          !check_range(to, (height - 1) * to_pitch + width, "the destination of the copy")) {
                        return false;
                      }
                      for (std::size_t row = 0; row < height; ++row) {
                        std::memcpy(static_cast<char*>(to) + row * to_pitch,
                                    static_cast<const char*>(from) + row * from_pitch, width);
                      }
                      return true;
                    }));
  });
}

// documented: from pageable memory the source has been read when the call returns; into pageable memory the copy
// has been done.
CudaError cudaMemcpyAsync(void* to, const void* from, std::size_t size, CopyKind kind, Stream stream) {
  static constexpr char kName[] = "cudaMemcpyAsync";
  return runtime_call(kName, [&] {
    require_kind(kind);
    StreamObject& queue = find_stream(stream);
    if (size == 0) return kCudaSuccess;
    require(to && from, kCudaInvalidValue, kDocumented, "a pointer is null");
    if (capturing(queue)) {
      enqueue(queue, copy_work(kName, to, from, size));
    } else if (pageable(to, kind, false)) {
      return copy_now(kName, queue, copy_work(kName, to, from, size));
    } else if (pageable(from, kind, true)) {
      const auto* bytes = static_cast<const unsigned char*>(from);
      const auto staged = std::make_shared<std::vector<unsigned char>>(bytes, bytes + size);
      enqueue(queue, make_work(kName, [=] {
                if (!check_range(to, size, "the destination of the copy")) return false;
                std::memcpy(to, staged->data(), size);
                return true;
              }));
    } else {
      enqueue(queue, copy_work(kName, to, from, size));
    }
    return kCudaSuccess;
  });
}

CudaError cudaMemset(void* to, int value, std::size_t size) {
  return set_memory("cudaMemset", to, value, size, nullptr);
}
CudaError cudaMemsetAsync(void* to, int value, std::size_t size, Stream stream) {
  return set_memory("cudaMemsetAsync", to, value, size, stream);
}

CudaError cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
  return runtime_call("cudaMemGetInfo", [&] {
    require(free_bytes && total, kCudaInvalidValue, kDocumented, "a result is a null pointer");
    *total = std::size_t{8} << 30;
    *free_bytes = *total - std::min(*total, live_memory());
    return kCudaSuccess;
  });
}

CudaError cudaPointerGetAttributes(PointerAttributes* attributes, const void* pointer) {
  return runtime_call("cudaPointerGetAttributes", [&] {
    require(attributes && pointer, kCudaInvalidValue, kDocumented, "a pointer is null");
    constexpr int kUnregistered = 0, kHost = 1, kDevice = 2, kManaged = 3;
    const Block* block = find_block(pointer);
    void* address = const_cast<void*>(pointer);
    const auto host = [&] { return block && block->kind == MemoryKind::kDevice ? nullptr : address; };
    std::memset(attributes, 0, offsetof(PointerAttributes, reserved));
    attributes->type = !block                                ? kUnregistered
                       : block->kind == MemoryKind::kPinned  ? kHost
                       : block->kind == MemoryKind::kManaged ? kManaged
                                                             : kDevice;
    attributes->device = block ? block->device : -2;
    attributes->device_pointer = block ? address : nullptr;
    attributes->host_pointer = host();
    return kCudaSuccess;
  });
}

}  // namespace emulator
