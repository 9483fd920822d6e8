// How a thread reads and writes memory, and what the bits of a weight mean. The bodies of the kernels are
// functions of host and device: the tests run on a CPU what the GPU runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__CUDACC__)
#define SPARSE24_BODY __host__ __device__ __forceinline__
#else
#define SPARSE24_BODY inline
#endif

// Before a loop over elements that have to be in registers.
#if defined(__CUDA_ARCH__)
#define SPARSE24_UNROLL _Pragma("unroll")
#else
#define SPARSE24_UNROLL
#endif

namespace sparse24::cuda {

constexpr int kAccessBytes = 16;

// kVector: whole runs move in accesses of up to 16 bytes, and start at a multiple of that many.
enum class Access { kVector, kElements };

// Elements of one access to a run of kCount.
template <int kCount, typename T>
constexpr int kAccessElements =
    kCount * static_cast<int>(sizeof(T)) < kAccessBytes ? kCount : kAccessBytes / static_cast<int>(sizeof(T));

// Memory at a multiple of kBytes, said to the compiler: one access moves that much. (nvcc 13.0 miscompiles the
// builtin where its argument needs a conversion.)
template <std::size_t kBytes>
SPARSE24_BODY void* aligned(const void* memory) {
#if !defined(__CUDACC__)
  if (reinterpret_cast<std::uintptr_t>(memory) % kBytes != 0) std::abort();  // a GPU would trap
#endif
  return __builtin_assume_aligned(memory, kBytes);
}

#if !defined(__CUDACC__)
// What a test counts: each access of a body on the CPU, in order. Null: nobody does.
struct AccessLog {
  virtual void note(const void* memory, std::size_t bytes) = 0;

 protected:
  ~AccessLog() = default;
};
inline thread_local AccessLog* access_log = nullptr;
#endif

SPARSE24_BODY void note_access([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t bytes) {
#if !defined(__CUDACC__)
  if (access_log != nullptr) access_log->note(memory, bytes);
#endif
}

// to = the `live` elements at `from`, then zeros. Memory beyond the live ones is not touched.
template <Access kAccess, int kCount, typename T>
SPARSE24_BODY void load(const T* from, std::int64_t live, T (&to)[kCount]) {
  constexpr int kStep = kAccessElements<kCount, T>;
  static_assert(kCount % kStep == 0);
  if (kAccess == Access::kVector && live >= kCount) {
    for (int i = 0; i < kCount; i += kStep) {
      note_access(from + i, kStep * sizeof(T));
#if defined(__CUDA_ARCH__)
      if constexpr (kStep * sizeof(T) == kAccessBytes) {  // as one number: a copy may be cut into what is used of it
        const uint4 whole = *static_cast<const uint4*>(aligned<kAccessBytes>(from + i));
        std::memcpy(to + i, &whole, kAccessBytes);
        continue;
      }
#endif
      std::memcpy(to + i, aligned<kStep * sizeof(T)>(from + i), kStep * sizeof(T));
    }
  } else {
    for (int i = 0; i < kCount; ++i) to[i] = i < live ? from[i] : T{0};
  }
}

// The first `live` elements of `from`.
template <Access kAccess, int kCount, typename T>
SPARSE24_BODY void store(T* to, std::int64_t live, const T (&from)[kCount]) {
  constexpr int kStep = kAccessElements<kCount, T>;
  static_assert(kCount % kStep == 0);
  if (kAccess == Access::kVector && live >= kCount) {
    for (int i = 0; i < kCount; i += kStep) {
      std::memcpy(aligned<kStep * sizeof(T)>(to + i), from + i, kStep * sizeof(T));
    }
  } else {
    for (int i = 0; i < kCount; ++i) {
      if (i < live) to[i] = from[i];
    }
  }
}

SPARSE24_BODY float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SPARSE24_BODY std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Bits without the sign. Floats of one type order by them as integers, NaN above Inf.
template <typename Bits>
SPARSE24_BODY Bits magnitude(Bits bits) {
  return static_cast<Bits>(bits & (static_cast<Bits>(~Bits{0}) >> 1));
}

struct Float32 {
  using Bits = std::uint32_t;
  static constexpr Bits kInfinity = 0x7f800000;
  static SPARSE24_BODY float to_float(Bits bits) { return bits_to_float(bits); }
};

struct BFloat16 {
  using Bits = std::uint16_t;
  static constexpr Bits kInfinity = 0x7f80;
  static SPARSE24_BODY float to_float(Bits bits) { return bits_to_float(std::uint32_t{bits} << 16); }
};

struct Float16 {
  using Bits = std::uint16_t;
  static constexpr Bits kInfinity = 0x7c00;
  // The fraction lands where fp32 has it; a product with 2^112 mends the exponent, of subnormals too.
  static SPARSE24_BODY float to_float(Bits bits) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));  // exact, as what follows
    return value;
#endif
    const std::uint32_t sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    const float finite = bits_to_float(sign | rest) * bits_to_float(0x77800000);
    return magnitude(bits) < kInfinity ? finite : bits_to_float(sign | 0x7f800000u | rest);
  }
};

}  // namespace sparse24::cuda
