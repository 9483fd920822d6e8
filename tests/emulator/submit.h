// How cuSPARSELt and cuBLASLt put work on a stream.
#pragma once

#include "memory.h"
#include "streams.h"

namespace emulator {

// A stream that cannot take work is a launch failure: the CUDA code becomes `status`.
inline void submit(Stream handle, int device, int status, Work work) {
  require(!state().context_is_dead, status, kDocumented, "the context is dead");
  try {
    StreamObject& stream = find_stream(handle);
    if (stream.device != device) violate(kAssumed, "the stream belongs to another device than the handle");
    enqueue(stream, std::move(work));
  } catch (const Refusal& refusal) {
    throw Refusal{status, refusal.label, refusal.rule};
  }
}

inline void require_aligned(const void* pointer, const char* rule) {
  require(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0, kInvalidValue, kAssumed, rule);
}

}  // namespace emulator
