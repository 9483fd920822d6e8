// Patches of a channels_last image as rows of a matrix.
#pragma once

#include "access.cuh"
#include "error.h"
#include "kernels.h"

namespace sparse24::cuda {

// Division of numbers below 2^31 by one divisor, as a multiplication and a shift (Granlund and Montgomery,
// "Division by invariant integers using multiplication", 1994).
class Divider {
 public:
  explicit Divider(std::uint32_t divisor) : divisor_(divisor), shift_(0) {
    while (std::uint64_t{1} << shift_ < divisor) ++shift_;
    const std::uint64_t excess = (std::uint64_t{1} << shift_) - divisor;
    factor_ = static_cast<std::uint32_t>((excess << 32) / divisor + 1);
  }
  // The quotient; *number becomes the remainder.
  SPARSE24_BODY std::uint32_t divide(std::uint32_t* number) const {
    const std::uint32_t high = static_cast<std::uint32_t>(std::uint64_t{factor_} * *number >> 32);
    const std::uint32_t quotient = (high + *number) >> shift_;
    *number -= quotient * divisor_;
    return quotient;
  }

 private:
  std::uint32_t divisor_, factor_;
  int shift_;
};

struct OutSize {
  std::int64_t h, w;
};

// The output size of a call whose arguments the kernel can take; throws InvalidArgument for others.
inline OutSize check_im2col(const Im2col& a) {
  const auto need = [](bool ok, auto... what) {
    if (!ok) throw InvalidArgument(message("im2col: ", what...));
  };
  const auto in_range = [](std::int64_t least, auto... sizes) { return ((sizes >= least && sizes < 1 << 29) && ...); };
  need(a.element_size == 1 || a.element_size == 2 || a.element_size == 4, "elements have 1, 2 or 4 bytes, not ",
       a.element_size);
  need(in_range(1, a.height, a.width, a.channels, a.group_channels, a.kernel_h, a.kernel_w, a.stride_h, a.stride_w,
                a.dilation_h, a.dilation_w) &&
           in_range(0, a.batch, a.pad_h, a.pad_w, a.first_channel),
       "image, slice, kernel, stride and dilation must be positive, batch and padding not negative, all below 2^29");
  need(a.first_channel + a.group_channels <= a.channels, "a slice of channels ", a.first_channel, " to ",
       a.first_channel + a.group_channels, " of ", a.channels);
  const std::int64_t room_h = a.height + 2 * a.pad_h - a.dilation_h * (a.kernel_h - 1) - 1;
  const std::int64_t room_w = a.width + 2 * a.pad_w - a.dilation_w * (a.kernel_w - 1) - 1;
  need(room_h >= 0 && room_w >= 0, "the window does not fit the padded image of ", a.height, " x ", a.width);
  const OutSize out{room_h / a.stride_h + 1, room_w / a.stride_w + 1};
  need(a.batch <= INT32_MAX / (out.h * out.w), a.batch, " x ", out.h, " x ", out.w,
       " outputs are more than 2^31 - 1 tokens; split the batch");
  const std::int64_t all = a.batch * out.h * out.w;
  need(a.first_token >= 0 && a.first_token <= all && a.tokens >= 0 && a.tokens <= all - a.first_token, a.tokens,
       " tokens from ", a.first_token, " on, of ", all);
  const std::int64_t channels = round_up(a.group_channels, 4);
  need(a.k_padded % 4 == 0 && a.k_padded <= INT32_MAX && a.k_padded / channels / a.kernel_w >= a.kernel_h,
       "k_padded must be a multiple of 4, and at least kernel * channels = ", a.kernel_h, " * ", a.kernel_w, " * ",
       channels, ", not ", a.k_padded);
  need(a.ld >= a.k_padded && a.ld * a.element_size % kAccessBytes == 0, "ld must be at least k_padded = ", a.k_padded,
       " and a multiple of ", kAccessBytes / a.element_size, ", not ", a.ld);
  need(reinterpret_cast<std::uintptr_t>(a.matrix) % kAccessBytes == 0, "the matrix must start at a multiple of 16");
  return out;
}

// What a thread needs of a call: sizes as 32-bit numbers, divisions prepared. An item is `count` columns of
// one tap.
struct Patches {
  Patches(const Im2col& a, OutSize out, int count)
      : x(a.x),
        matrix(a.matrix),
        channels(a.channels),
        first_channel(a.first_channel),
        group_channels(a.group_channels),
        ld(a.ld),
        first_token(a.first_token),
        height(static_cast<int>(a.height)),
        width(static_cast<int>(a.width)),
        stride_h(static_cast<int>(a.stride_h)),
        stride_w(static_cast<int>(a.stride_w)),
        pad_h(static_cast<int>(a.pad_h)),
        pad_w(static_cast<int>(a.pad_w)),
        dilation_h(static_cast<int>(a.dilation_h)),
        dilation_w(static_cast<int>(a.dilation_w)),
        kernel_h(static_cast<std::uint32_t>(a.kernel_h)),
        by_image(static_cast<std::uint32_t>(out.h * out.w)),
        by_line(static_cast<std::uint32_t>(out.w)),
        by_tap(static_cast<std::uint32_t>(round_up(a.group_channels, 4) / count)),
        by_kernel_w(static_cast<std::uint32_t>(a.kernel_w)) {}

  const void* x;
  void* matrix;
  std::int64_t channels, first_channel, group_channels, ld, first_token;
  int height, width, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::uint32_t kernel_h;
  Divider by_image, by_line, by_tap, by_kernel_w;
};

// Columns [item * kCount, + kCount) of row `row`. kAccess is how x is read; the matrix is always written in one
// access.
template <typename Bits, int kCount, Access kAccess>
SPARSE24_BODY void im2col_item(const Patches& a, std::int64_t row, std::int64_t item) {
  std::uint32_t column = static_cast<std::uint32_t>(a.first_token + row), channel = static_cast<std::uint32_t>(item);
  const std::uint32_t image = a.by_image.divide(&column), line = a.by_line.divide(&column);
  std::uint32_t tap = a.by_tap.divide(&channel);
  const std::uint32_t r = a.by_kernel_w.divide(&tap);  // tap is s from here on
  const bool is_tap = r < a.kernel_h;                  // else the columns beyond the last
  const int y = is_tap ? static_cast<int>(line) * a.stride_h - a.pad_h + static_cast<int>(r) * a.dilation_h : -1;
  const int x = static_cast<int>(column) * a.stride_w - a.pad_w + static_cast<int>(tap) * a.dilation_w;
  const bool inside = y >= 0 && y < a.height && x >= 0 && x < a.width;
  const std::int64_t first = std::int64_t{channel} * kCount;
  const std::int64_t pixel = (std::int64_t{image} * a.height + y) * a.width + x;
  Bits patch[kCount];
  load<kAccess>(static_cast<const Bits*>(a.x) + (inside ? pixel * a.channels + a.first_channel + first : 0),
                inside ? a.group_channels - first : 0, patch);
  store<Access::kVector>(static_cast<Bits*>(a.matrix) + row * a.ld + item * kCount, kCount, patch);
}

}  // namespace sparse24::cuda
