// The windows of a convolution's output pixels, as rows of a matrix in the order of its weight.

#include "patches.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace sparse24::cpu {
namespace {

// One window: taps outside the image are zeros, as are the channels that round up to a multiple of four.
void write_window(const Patches& p, std::int64_t pixel, std::byte* to) {
  const Conv2d& a = *p.conv;
  const std::int64_t image = pixel / (p.out_h * p.out_w), at = pixel % (p.out_h * p.out_w);
  const std::int64_t top = at / p.out_w * a.stride_h - a.pad_h, left = at % p.out_w * a.stride_w - a.pad_w;
  const auto own = static_cast<std::size_t>(a.in_channels * p.number_bytes);
  const auto tap = static_cast<std::size_t>(p.channels() * p.number_bytes);
  const auto row_taps = static_cast<std::size_t>(a.kernel_w);
  const auto* x = static_cast<const std::byte*>(a.x);
  for (std::int64_t r = 0; r < a.kernel_h; ++r, to += row_taps * tap) {
    const std::int64_t y = top + r * a.dilation_h;
    if (y < 0 || y >= a.height) {
      std::memset(to, 0, row_taps * tap);
      continue;
    }
    const std::byte* line = x + static_cast<std::size_t>((image * a.height + y) * a.width) * own;
    if (own == tap && a.dilation_w == 1 && left >= 0 && left + a.kernel_w <= a.width) {
      std::memcpy(to, line + static_cast<std::size_t>(left) * own, row_taps * tap);
      continue;
    }
    for (std::int64_t s = 0; s < a.kernel_w; ++s) {
      std::byte* place = to + static_cast<std::size_t>(s) * tap;
      const std::int64_t column = left + s * a.dilation_w;
      const bool is_inside = column >= 0 && column < a.width;
      if (is_inside) std::memcpy(place, line + static_cast<std::size_t>(column) * own, own);
      std::memset(place + (is_inside ? own : 0), 0, is_inside ? tap - own : tap);
    }
  }
}

}  // namespace

Patches::Patches(const Conv2d& conv, std::int64_t bytes) : conv(&conv), number_bytes(bytes) {
  const auto out = [](std::int64_t size, std::int64_t pad, std::int64_t dilation, std::int64_t kernel,
                      std::int64_t stride) { return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; };
  out_h = out(conv.height, conv.pad_h, conv.dilation_h, conv.kernel_h, conv.stride_h);
  out_w = out(conv.width, conv.pad_w, conv.dilation_w, conv.kernel_w, conv.stride_w);
}

std::int64_t Patches::channels() const { return round_up(conv->in_channels, 4); }

std::int64_t Patches::columns() const { return conv->kernel_h * conv->kernel_w * channels(); }

bool Patches::is_input() const {
  const Conv2d& a = *conv;
  return a.kernel_h == 1 && a.kernel_w == 1 && a.stride_h == 1 && a.stride_w == 1 && a.pad_h == 0 && a.pad_w == 0;
}

void Patches::write(std::int64_t first, std::int64_t count, std::byte* to) const {
  const std::int64_t bytes = columns() * number_bytes;
  const int threads =
      static_cast<int>(std::min<std::int64_t>(usable_threads(conv->threads), count * bytes / (1 << 17) + 1));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) write_window(*this, first + i, to + i * bytes);
}

}  // namespace sparse24::cpu
