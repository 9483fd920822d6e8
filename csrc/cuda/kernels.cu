// Indexing and launches of the kernels whose bodies are in the .cuh files (a little over 300 lines: one launch a
// kernel), but few_tokens.cu: its many kernels take nvcc minutes on six architectures, beside these.

#include <algorithm>

#include "epilogue.cuh"
#include "format.cuh"
#include "im2col.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "mask.cuh"
#include "quantize.cuh"
#include "transposable.cuh"

namespace sparse24::cuda {
namespace {

// ---- tuning ----

// Threads of a block: 8 blocks fill the 2048 threads of a multiprocessor of sm_80, sm_90 and sm_100, 6 the 1536 of
// sm_86, sm_89 and sm_120, as long as a thread needs at most 32 registers; more registers leave fewer blocks.
constexpr int kBlockThreads = 256;
static_assert(kBlockThreads % kWarp == 0 && kBlockThreads <= 1024, "whole warps, and CUDA's limit");
static_assert(kBlockThreads / kWarp <= kWarp, "one warp reduces what the warps of a block found");

// Blocks of a launch: several times what the largest GPU runs at once (about 1200), so that the last ones even out;
// beyond that the threads take another round.
constexpr std::int64_t kMaxBlocks = 8192;
static_assert(kMaxBlocks <= 65535, "CUDA's limit in y, where one row is cut into blocks");

// Rows up to this many columns are quantized by a warp: four 16-byte accesses of fp16 a lane.
constexpr std::int64_t kWarpRowColumns = 1024;

// ---- indexing ----

// A launch covers rows x items. At least a warp runs along the items of a row where there are so many, so that
// neighbours touch neighbouring memory; the rest of a block takes further rows, or more items where rows are few.
constexpr int power_of_two(std::int64_t wanted, int most) {
  int power = 1;
  while (power < most && power < wanted) power *= 2;
  return power;
}

Threads threads_for(std::int64_t rows, std::int64_t items) {
  const int down = power_of_two(rows, kBlockThreads / power_of_two(items, kWarp)), across = kBlockThreads / down;
  const std::int64_t row_blocks = std::min((rows + down - 1) / down, kMaxBlocks);
  const std::int64_t item_blocks = std::min((items + across - 1) / across, kMaxBlocks / row_blocks);
  return {dim3(static_cast<unsigned>(row_blocks), static_cast<unsigned>(item_blocks)),
          dim3(static_cast<unsigned>(across), static_cast<unsigned>(down))};
}

template <typename Body>
__device__ __forceinline__ void for_each_item(std::int64_t rows, std::int64_t items, Body body) {
  const std::int64_t row_step = std::int64_t{gridDim.x} * blockDim.y;
  const std::int64_t item_step = std::int64_t{gridDim.y} * blockDim.x;
  for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    for (std::int64_t item = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x; item < items; item += item_step) {
      body(row, item);
    }
  }
}

template <typename Bits, Access kAccess, Prune kPrune>
__global__ void mask24_kernel(Mask24 a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items,
                [&](std::int64_t row, std::int64_t item) { mask24_item<Bits, kAccess, kPrune>(a, row, item); });
}

template <typename Float, Access kAccess>
__global__ void transposable_kernel(Transposable a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items,
                [&](std::int64_t row, std::int64_t item) { transposable_item<Float, kAccess>(a, row, item); });
}

template <typename Bits, Zeros kZeros, Access kAccess>
__global__ void compress_kernel(Compress a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items, [&](std::int64_t row, std::int64_t item) {
    const std::int64_t crowded = compress_item<Bits, kZeros, kAccess>(a, row, item);
    if (crowded >= 0) atomicMin(reinterpret_cast<long long*>(a.first_crowded), static_cast<long long>(crowded));
  });
}

template <typename Bits, Access kAccess>
__global__ void expand_kernel(Expand a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items, [&](std::int64_t row, std::int64_t item) { expand_item<Bits, kAccess>(a, row, item); });
}

template <typename In, typename Out, Access kAccess>
__global__ void epilogue_kernel(Epilogue a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items,
                [&](std::int64_t row, std::int64_t item) { epilogue_item<In, Out, kAccess>(a, row, item); });
}

template <typename Bits, int kCount, Access kAccess>
__global__ void im2col_kernel(Patches a, std::int64_t rows, std::int64_t items) {
  for_each_item(rows, items,
                [&](std::int64_t row, std::int64_t item) { im2col_item<Bits, kCount, kAccess>(a, row, item); });
}

// The largest value of the threads that share a row: a warp, or the whole block.
template <int kRowThreads>
__device__ __forceinline__ unsigned row_max(unsigned value) {
  value = __reduce_max_sync(0xffffffffu, value);
  if constexpr (kRowThreads > kWarp) {
    __shared__ unsigned of_warps[kBlockThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    const unsigned lane = threadIdx.x % kWarp;
    value = __reduce_max_sync(0xffffffffu, lane < kBlockThreads / kWarp ? of_warps[lane] : 0u);
    __syncthreads();  // before the next row writes of_warps
  }
  return value;
}

// threadIdx.x runs along a row in kRowThreads; each row is read twice, the second time from the cache.
template <typename Float, typename To, Access kAccess, int kRowThreads>
__global__ void quantize_kernel(Quantize a) {
  constexpr int kCount = kQuantizeCount<Float>;
  const std::int64_t row_step = std::int64_t{gridDim.x} * blockDim.y;
  const float given = a.given == nullptr ? 0.0f : *a.given;
  for (std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < a.n; row += row_step) {
    unsigned largest = 0;
    for (std::int64_t item = threadIdx.x; item * kCount < a.k; item += kRowThreads) {
      const unsigned of_item = absmax_item<Float, kAccess>(a, row, item);
      largest = of_item > largest ? of_item : largest;
    }
    const RowScale scale = row_scale<Float, To>(row_max<kRowThreads>(largest), given);
    if (threadIdx.x == 0) a.scale[row] = scale.scale;
    for (std::int64_t item = threadIdx.x; item * kCount < a.k_padded; item += kRowThreads) {
      quantize_item<Float, To, kAccess>(a, row, item, scale.inverse);
    }
  }
}

// ---- launches ----

template <typename Args>
void launch_items(const char* name, void (*kernel)(Args, std::int64_t, std::int64_t), const Args& args,
                  std::int64_t rows, std::int64_t items, void* stream) {
  if (rows > 0 && items > 0) launch(name, kernel, threads_for(rows, items), stream, args, rows, items);
}

std::int64_t items_of(std::int64_t columns, std::int64_t count) { return (columns + count - 1) / count; }

// Calls f with a constant Access as its template argument.
template <typename F>
void with_access(Access access, F f) {
  access == Access::kVector ? f.template operator()<Access::kVector>() : f.template operator()<Access::kElements>();
}

// Calls f with the type of a floating dtype.
template <typename F>
void with_float(const char* name, DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32: return f.template operator()<Float32>();
    case DType::kFloat16: return f.template operator()<Float16>();
    case DType::kBFloat16: return f.template operator()<BFloat16>();
    default: refuse_dtype(name, "fp32, fp16 and bf16");
  }
}

template <Prune kPrune>
void mask_launch(const char* name, Mask24 a, DType dtype, void* stream) {
  with_float(name, dtype, [&]<typename Float>() {
    using Bits = typename Float::Bits;
    if (a.cols % 4 == 0) a = {a.weight, 1, a.rows * a.cols, a.mask};  // no group crosses rows: one long row
    const bool ragged = a.rows > 1;
    with_access(ragged ? Access::kElements : access_for({a.weight, a.mask}, {}), [&]<Access kAccess>() {
      launch_items(name, mask24_kernel<Bits, kAccess, kPrune>, a, a.rows, items_of(a.cols, kMaskWeights<Bits>), stream);
    });
  });
}

}  // namespace

void mask24(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, void* stream) {
  mask_launch<Prune::kNo>("mask24", {const_cast<void*>(weight), rows, cols, mask}, dtype, stream);
}

void prune24(void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask, void* stream) {
  mask_launch<Prune::kInPlace>("prune24", {weight, rows, cols, mask}, dtype, stream);
}

void transposable_mask(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                       void* stream) {
  if (rows % 4 != 0 || cols % 4 != 0) {
    throw InvalidArgument(message("transposable_mask needs rows and columns in multiples of 4, not ", rows, " x ", cols,
                                  "; the next ones are ", round_up(rows, 4), " x ", round_up(cols, 4)));
  }
  with_float("transposable_mask", dtype, [&]<typename Float>() {
    const std::int64_t stride = cols * static_cast<std::int64_t>(sizeof(typename Float::Bits));
    with_access(access_for({weight, mask}, {stride}), [&]<Access kAccess>() {
      launch_items("transposable_mask", transposable_kernel<Float, kAccess>, Transposable{weight, rows, cols, mask},
                   rows / 4, items_of(cols, kTileColumns<Float>), stream);
    });
  });
}

void compress(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
              void* values, std::uint8_t* indices, std::int64_t* first_crowded, void* stream) {
  const Compress a{dense, rows, cols, row_stride, round_up(cols, 8), values, indices, first_crowded};
  const auto as = [&]<typename Bits, Zeros kZeros>() {
    const std::int64_t size = sizeof(Bits);
    with_access(access_for({dense, values, indices}, {row_stride * size, a.padded / 2 * size}), [&]<Access kAccess>() {
      launch_items("compress", compress_kernel<Bits, kZeros, kAccess>, a, rows,
                   items_of(a.padded, kFormatColumns<Bits>), stream);
    });
  };
  switch (dtype) {
    case DType::kFloat32: return as.template operator()<std::uint32_t, Zeros::kSigned>();
    case DType::kFloat16:
    case DType::kBFloat16: return as.template operator()<std::uint16_t, Zeros::kSigned>();
    case DType::kInt32: return as.template operator()<std::uint32_t, Zeros::kPlain>();
    case DType::kInt8: return as.template operator()<std::uint8_t, Zeros::kPlain>();
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2: return as.template operator()<std::uint8_t, Zeros::kSigned>();
  }
}

void expand(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
            void* dense, std::int64_t dense_rows, std::int64_t dense_cols, void* stream) {
  if (dense_rows < rows || dense_cols < padded) {
    throw InvalidArgument(message("expand needs a dense of at least ", rows, " x ", padded, ", the weight's size, not ",
                                  dense_rows, " x ", dense_cols));
  }
  const Expand a{values, indices, rows, padded, dense, dense_rows, dense_cols};
  const auto as = [&]<typename Bits>() {
    const std::int64_t size = sizeof(Bits);
    with_access(access_for({values, indices, dense}, {padded / 2 * size, dense_cols * size}), [&]<Access kAccess>() {
      launch_items("expand", expand_kernel<Bits, kAccess>, a, dense_rows, items_of(dense_cols, kFormatColumns<Bits>),
                   stream);
    });
  };
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32: return as.template operator()<std::uint32_t>();
    case DType::kFloat16:
    case DType::kBFloat16: return as.template operator()<std::uint16_t>();
    case DType::kInt8:
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2: return as.template operator()<std::uint8_t>();
  }
}

void im2col(const Im2col& a, void* stream) {
  const OutSize out = check_im2col(a);
  if (a.tokens == 0) return;
  const auto as = [&]<typename Bits, int kCount>() {
    const bool whole = a.group_channels % kCount == 0 && a.first_channel % kCount == 0 && a.channels % kCount == 0;
    const bool aligned = reinterpret_cast<std::uintptr_t>(a.x) % (kCount * sizeof(Bits)) == 0;
    with_access(whole && aligned ? Access::kVector : Access::kElements, [&]<Access kAccess>() {
      launch_items("im2col", im2col_kernel<Bits, kCount, kAccess>, Patches(a, out, kCount), a.tokens,
                   a.k_padded / kCount, stream);
    });
  };
  const std::int64_t in_access = kAccessBytes / a.element_size;
  const bool wide = round_up(a.group_channels, 4) % in_access == 0 && a.k_padded % in_access == 0;
  if (a.element_size == 4) return as.template operator()<std::uint32_t, 4>();
  if (a.element_size == 2 && wide) return as.template operator()<std::uint16_t, 8>();
  if (a.element_size == 2) return as.template operator()<std::uint16_t, 4>();
  if (wide) return as.template operator()<std::uint8_t, 16>();
  return as.template operator()<std::uint8_t, 4>();
}

void quantize_per_token(const void* x, DType dtype, std::int64_t n, std::int64_t k, std::int64_t row_stride, void* out,
                        DType out_dtype, std::int64_t k_padded, const float* given, float* scale, void* stream) {
  if (k_padded < k) throw InvalidArgument(message("quantize_per_token: k_padded ", k_padded, " is less than k ", k));
  if (n == 0) return;
  const Quantize a{x, n, k, row_stride, static_cast<std::uint8_t*>(out), k_padded, given, scale};
  const auto as = [&]<typename Float, typename To>() {
    const std::int64_t stride = row_stride * static_cast<std::int64_t>(sizeof(typename Float::Bits));
    with_access(access_for({x, out}, {stride, k_padded}), [&]<Access kAccess>() {
      const bool by_warp = k <= kWarpRowColumns;
      const unsigned across = by_warp ? kWarp : kBlockThreads, down = kBlockThreads / across;
      const std::int64_t blocks = std::min((n + down - 1) / down, kMaxBlocks);
      launch("quantize_per_token",
             by_warp ? quantize_kernel<Float, To, kAccess, kWarp> : quantize_kernel<Float, To, kAccess, kBlockThreads>,
             {dim3(static_cast<unsigned>(blocks)), dim3(across, down)}, stream, a);
    });
  };
  with_float("quantize_per_token", dtype, [&]<typename Float>() {
    switch (out_dtype) {
      case DType::kInt8: return as.template operator()<Float, ToInt8>();
      case DType::kFloat8E4M3: return as.template operator()<Float, ToE4M3>();
      default: refuse_dtype("quantize_per_token", "outputs of int8 and float8_e4m3fn");
    }
  });
}

void epilogue(const Epilogue& a, DType product, DType out, void* stream) {
  const auto as = [&]<typename In, typename Out>() {
    const std::int64_t in_bytes = a.m * 4, out_bytes = a.m * static_cast<std::int64_t>(sizeof(typename Out::Bits));
    const bool whole = out_bytes % (kEpilogueCount * static_cast<std::int64_t>(sizeof(typename Out::Bits))) == 0;
    with_access(whole ? access_for({a.product, a.out}, {in_bytes}) : Access::kElements, [&]<Access kAccess>() {
      launch_items("epilogue", epilogue_kernel<In, Out, kAccess>, a, a.n, items_of(a.m, kEpilogueCount), stream);
    });
  };
  const auto from = [&]<typename In>() {
    switch (out) {
      case DType::kFloat32: return as.template operator()<In, Float32>();
      case DType::kFloat16: return as.template operator()<In, Float16>();
      case DType::kBFloat16: return as.template operator()<In, BFloat16>();
      case DType::kInt8: return as.template operator()<In, Int8>();
      default: refuse_dtype("epilogue", "outputs of fp32, fp16, bf16 and int8");
    }
  };
  switch (product) {
    case DType::kInt32: return from.template operator()<Int32>();
    case DType::kFloat32: return from.template operator()<Float32>();
    default: refuse_dtype("epilogue", "products of int32 and fp32");
  }
}

}  // namespace sparse24::cuda
