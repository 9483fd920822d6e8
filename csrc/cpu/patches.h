// A convolution of channels_last pixels as a linear layer of their windows, for kernels that only linear layers have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sparse24.h"

namespace sparse24::cpu {

// The windows of a convolution of one group: rows of [kernel_h][kernel_w][channels rounded up to 4].
struct Patches {
  const Conv2d* conv;
  std::int64_t number_bytes;  // of a number of x
  std::int64_t out_h, out_w;

  Patches(const Conv2d& conv, std::int64_t number_bytes);
  std::int64_t channels() const;
  std::int64_t columns() const;  // of a row
  bool is_input() const;         // whether x itself is the rows, but for the rounding up of channels
  // The windows of the output pixels [first, first + count), all images one after the other.
  void write(std::int64_t first, std::int64_t count, std::byte* to) const;
};

}  // namespace sparse24::cpu
