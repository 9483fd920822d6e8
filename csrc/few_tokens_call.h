// How the extension _C launches the kernel for few tokens, which is in another one (_CUDA): an address, asked for once.
#pragma once

#include <cstdint>

namespace sparse24 {

// What cuda::few_tokens takes, the enums as their numbers.
struct FewTokensCall {
  const void* x;
  std::int64_t n, k, x_stride;
  const void* values;
  const std::uint8_t* indices;
  std::int64_t m;
  const void* bias;  // null: none
  void* y;
  void* stream;
  std::int32_t dtype, activation;  // of x, values, bias and y
};

// False: nothing was launched.
using FewTokensFunction = bool (*)(const FewTokensCall* call) noexcept;

}  // namespace sparse24
