// Compares what the emulator exports of the CUDA runtime with the real headers: the number of parameters and the
// size and kind of each. Nothing to run; it compiles or not. (csrc/cusparselt/abi.h has its own check.)
#include <cuda_runtime_api.h>

#include <type_traits>

#include "../runtime.h"

namespace {

template <typename A, typename B>
constexpr bool same_value() {
  if constexpr (std::is_void_v<A> || std::is_void_v<B>) {
    return std::is_void_v<A> && std::is_void_v<B>;
  } else {
    return sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;
  }
}

template <typename A, typename B>
struct Same : std::false_type {};
template <typename A, typename... As, typename B, typename... Bs>
  requires(sizeof...(As) == sizeof...(Bs))
struct Same<A(As...), B(Bs...)> : std::bool_constant<same_value<A, B>() && (same_value<As, Bs>() && ...)> {};

namespace ours {
using namespace emulator;
#define FUNCTION_TYPE(name, result, parameters) using name = result parameters;
SPARSE24_CUDA_RUNTIME(FUNCTION_TYPE)
EMULATOR_CUDA_RUNTIME(FUNCTION_TYPE)
}  // namespace ours

// The symbol of CUDA 12 for the same declaration.
using RealGetDeviceProperties_v2 = decltype(cudaGetDeviceProperties);
#define CHECK_PROTOTYPE(name, result, parameters) \
  static_assert(Same<ours::name, decltype(::cuda##name)>::value, "cuda" #name " differs from the real header");
#define cudaGetDeviceProperties_v2 cudaGetDeviceProperties
SPARSE24_CUDA_RUNTIME(CHECK_PROTOTYPE)
EMULATOR_CUDA_RUNTIME(CHECK_PROTOTYPE)

static_assert(sizeof(emulator::PointerAttributes) >= sizeof(cudaPointerAttributes) ||
              offsetof(cudaPointerAttributes, hostPointer) + sizeof(void*) <= sizeof(emulator::PointerAttributes));

}  // namespace

int main() {}
