// The C++ API of sparse24. Knows pointers, sizes and threads; nothing of torch or Python. A little over 300 lines:
// all of it in one place.
//
// Canonical compressed layout of a weight [rows, cols] (the same on every device):
//   values   [rows, padded/2]  the two kept values of every group of four, in column order
//   indices  [rows, padded/8]  2 bits a kept value, low bits first
// with padded = cols rounded up to 8. A group with fewer than two non-zeros is filled with zero
// slots at its lowest free columns, so the two indices of a group always increase.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace sparse24 {

enum class DType { kFloat32, kFloat16, kBFloat16, kInt8, kFloat8E4M3, kFloat8E5M2, kInt32 };
enum class Activation { kNone, kRelu, kGelu, kGeluTanh };
enum class MemoryFormat { kContiguous, kChannelsLast };

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// ---- canonical format (format.cpp: scalar, the definition of correct) ----

// dense [rows, cols] with row_stride elements between rows. Throws InvalidArgument that names the
// row and the group when a group holds more than two non-zeros. Negative zero counts as zero.
void compress(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
              void* values, std::uint8_t* indices);

// The first group of a dense weight that holds more than two non-zeros, as row * (padded / 4) + group;
// -1: it is 2:4.
std::int64_t find_crowded(const void* dense, DType dtype, std::int64_t rows, std::int64_t cols,
                          std::int64_t row_stride);

// Throws sparse24::InvalidArgument when the two indices of a group do not increase (a damaged
// checkpoint), naming the row and the group.
void check_indices(const std::uint8_t* indices, std::int64_t rows, std::int64_t padded);

// dense [rows, padded], contiguous. Checks the indices.
void expand(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows, std::int64_t padded,
            void* dense);

// ---- masks (kept = 1). Groups of m run along the middle axis of [outer, length, inner]. ----
// Magnitudes compare by their bits: NaN ranks above Inf, so it is never pruned silently; ties go to
// the lower index. A last group shorter than m keeps its min(n, size) largest.

void nm_mask(const void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
             std::uint8_t* mask, int threads);

// Zeroes what the mask prunes, in place and in the same pass; mask may be null.
void nm_prune(void* weight, DType dtype, std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m,
              std::uint8_t* mask, int threads);

// The 4x4 pattern with two kept per row and per column (90 of them) of largest sum of magnitudes.
// weight [rows, cols], both multiples of 4.
void transposable_mask(const void* weight, DType dtype, std::int64_t rows, std::int64_t cols, std::uint8_t* mask,
                       int threads);

// A mask as bits, eight to a byte, the first in the lowest bit; bits has count / 8 bytes, rounded up.
void pack_mask(const std::uint8_t* mask, std::int64_t count, std::uint8_t* bits, int threads);
void unpack_mask(const std::uint8_t* bits, std::int64_t count, std::uint8_t* mask, int threads);

// Zeroes the numbers, of 2, 4 or 8 bytes each, that the mask prunes.
void apply_mask_bits(void* numbers, int bytes_each, std::int64_t count, const std::uint8_t* bits, int threads);

// ---- one-shot pruning ----

// A block of columns of a weight, pruned to 2:4 from left to right. error [rows, cols] is what the columns behind the
// block have to be lessened by, times their part of the factor. (cpu/prune/sparsegpt.cpp)
struct SparseGptBlock {
  float* weight;  // [rows, cols], weight_stride between rows; kept weights are changed, pruned ones become 0
  std::int64_t rows, cols, weight_stride;  // cols at most 256, from a multiple of four on
  const float* factor;                     // [cols, cols], upper: U^T U is the inverse of the Hessian
  std::int64_t factor_stride;
  float* error;
  std::uint8_t* mask;  // [rows, cols], mask_stride between rows: kept = 1
  std::int64_t mask_stride;
  bool choose;  // the mask; false: it is given
  int threads;
};
void sparsegpt_block(const SparseGptBlock& block);

// An order of the columns of a score in which 2:4 keeps more of it: iterated linear assignment. No step lessens what is
// kept, and the same seed gives the same order on one instruction set, whatever the threads.
// (cpu/prune/permutation.cpp)
struct ColumnSearch {
  const float* score;  // [rows, cols], finite and not negative, row_stride between rows
  std::int64_t rows, cols, row_stride;
  std::int64_t block;  // columns stay in their block of so many: a multiple of 4 that divides cols
  std::uint64_t seed;
  double tolerance;     // ends when eight steps gained less than this share of what is kept
  std::int64_t steps;   // at most, for each block
  std::int64_t* order;  // [cols], written: the column that comes to each place
  void (*poll)();       // called between steps; may throw; null: none
  int threads;
};
void search_columns(const ColumnSearch& search);

// The sum of the two largest of every four columns, taken in an order (null: as they lie), over all rows; a last group
// may be shorter.
double kept_sum(const float* score, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                const std::int64_t* order, int threads);

// ---- products on the CPU ----

// The instruction set whose kernels run: the best that the machine has, or SPARSE24_CPU_ISA ("amx",
// "avx512_vnni", "avx512", "avx2", "neon" or "scalar"). Throws InvalidArgument where that names none, or one that
// cannot run here.
std::string cpu_isa();

// All that this build has, best first, and why one cannot run here (empty: it can).
struct CpuIsa {
  std::string name, problem;
};
std::vector<CpuIsa> cpu_isas();

// A weight in the canonical layout, which the kernels read as it lies: nothing is packed, so nothing goes
// stale. padded is a multiple of 8.
struct Weight {
  const void* values;  // [rows, padded/2], kFloat32, kFloat16, kBFloat16 or kInt8
  const std::uint8_t* indices;
  DType dtype;  // of values
  std::int64_t rows, padded;
  const float* scale = nullptr;  // [rows], of kInt8: what a row is multiplied by
};

// How exactly float32 is multiplied where tiles of bfloat16 do it (AMX): as float32 itself; to about 16 bits; or
// to bfloat16's 8. Other instruction sets multiply float32.
enum class Precision { kHighest, kHigh, kMedium };

// What becomes of x before it meets an int8 weight: nothing, or int8, to nearest, with input_scale or with a scale
// of its own for every token (for every image of a convolution): its largest magnitude over 127. kGiven: x is int8
// already, by input_scale.
enum class Quantize { kNone, kByToken, kByScale, kGiven };

// y [n, m] = activation(x [n, k] W^T + bias). x rows have x_stride elements between them. Sums are float32, and
// int32 where both are int8. A token or a weight that is not finite makes its token's or its row's outputs NaN or
// infinite, and no others.
// Throws InvalidArgument, after the product, when the two indices of a group do not increase; y then holds
// no result.
struct Linear {
  Weight weight;  // [m, k rounded up to 8]
  DType dtype;    // of x, bias and y: kFloat32, kFloat16 or kBFloat16
  const void* x;
  const void* bias;  // null: none
  void* y;
  std::int64_t n, m, k, x_stride;
  Activation activation;
  int threads;  // at most; fewer where they do not pay. Results do not depend on it
  Precision precision = Precision::kHighest;
  Quantize quantize = Quantize::kNone;  // of an int8 weight
  float input_scale = 0;                // of kByScale and kGiven
  float output_scale = 0;               // positive: y is int8 by it, rounded from `dtype`
  const float* x_scale = nullptr;       // [n], for the kernels: x is int8 already, with a scale a token
};
void linear(const Linear& args);

// y = activation(conv2d(x, W) + bias), W [out_channels, R*S*C] with k ordered (r, s, c), the C
// input channels of a group padded to a multiple of 4. x and y have the same memory format. Throws as linear.
struct Conv2d {
  Weight weight;
  DType dtype;
  const void* x;
  const void* bias;
  void* y;
  std::int64_t batch, in_channels, height, width, out_channels;
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::int64_t groups;
  MemoryFormat format;
  Activation activation;
  int threads;
  Precision precision = Precision::kHighest;
  Quantize quantize = Quantize::kNone;
  float input_scale = 0;
  float output_scale = 0;
  const float* x_scale = nullptr;  // [batch * output pixels], for the kernels
};
void conv2d(const Conv2d& args);

// ---- products on NVIDIA sparse tensor cores, through cuSPARSELt (csrc/cusparselt) ----
// Nothing here allocates device memory: sizes are reported, the caller brings buffers. Calls are
// asynchronous on `stream` (a cudaStream_t) unless they say otherwise, and may come from any thread:
// each thread has its own handles. The current device must be `device`.
namespace cusparselt {

// Folders or files to try, in order, after SPARSE24_CUSPARSELT and a copy that the process has loaded
// already, and before the system's: for the wheels, which lie outside the loader's path.
void set_search_paths(std::vector<std::string> cusparselt, std::vector<std::string> cudart);

// What was opened, at the first call. Throws Error with every attempt and its reason.
struct Library {
  int version;  // 801 is 0.8.1, 1000 is 0.10.0
  std::string path, cudart_path;
  std::string caveat;  // empty, or why another version would be better
};
Library library();

// The CUDA driver and runtime, without creating a context.
struct Driver {
  int driver_version = 0, runtime_version = 0;  // 13000 is CUDA 13.0; driver 0: none is loaded
  int devices = 0;
  std::string problem;    // CUDA's text where it cannot count devices
  bool may_pass = false;  // that problem is neither a driver nor devices that are not there
};
Driver driver();

// What keeps this process from ever using the device: no driver, no devices, an architecture before sm_80; empty:
// nothing does. Throws Error for what may be otherwise the next time, InvalidArgument for a device that is not there.
std::string why_unusable(int device);

// Creates this thread's handle; any device may be current. Throws Error: see why_unusable.
struct Device {
  int sm;  // 86 is compute capability 8.6
  int multiprocessors;
};
Device open_device(int device);

// How the library computes a product. Ids have a meaning for one version, GPU and problem only.
struct Algorithm {
  int id = 0;
  int split_k = 0;           // 0: the library's default; -1: Segment-K, sm_90 only
  int split_k_mode = 0;      // of abi::SplitKMode; 0: the library's default
  int split_k_buffers = -1;  // -1: the library's default
  bool operator==(const Algorithm&) const = default;
};

// y [batches, n, m] = activation(scale * (x [batches, n, k] W^T) + bias), W [m, k] 2:4 along k
// (float32: 1:2, computed as TF32). Everything a plan depends on.
struct Product {
  DType in = DType::kFloat16, out = DType::kFloat16;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t x_stride = 0, y_stride = 0;  // elements between tokens
  std::int64_t batches = 1, x_batch_stride = 0, y_batch_stride = 0;
  Activation activation = Activation::kNone;
  float relu_threshold = 0;  // ReLU: 0 where v <= threshold, else min(v, upper bound)
  float relu_upper_bound = std::numeric_limits<float>::infinity();
  bool has_bias = false;       // [m], of out's dtype; float32 for int8 inputs
  bool scale_per_row = false;  // scale is a device float32 [m]; else a number of the call
  Algorithm algorithm;
  bool operator==(const Product&) const = default;
};
std::string describe(const Product& product);

// Why cuSPARSELt of this version cannot run the product on this architecture, with the nearest legal
// choice; empty: it can. No library is needed.
std::string why_illegal(const Product& product, int sm, int version);

// Elements that m, n, k and the strides have to be multiples of.
struct Multiples {
  int m, n, k, x_stride, y_stride;
};
Multiples multiples(DType in, DType out);

// Bytes of device memory. Builds the plan if need be: refused while `stream` captures a graph. `bias` is where the
// product's is now, for a plan may settle on its epilogue by it; each call says its own again.
struct Sizes {
  std::size_t blob, compress_buffer, workspace;
};
Sizes sizes(int device, const Product& product, void* stream, const void* bias = nullptr);

// What a blob was made for. Another algorithm, shape, GPU or library reads it wrongly, without an
// error (pytorch#155333), so matmul compares. Two ways to ask for one split are one key.
struct BlobKey {
  int device = -1, sm = 0, version = 0;
  DType in = DType::kFloat16, out = DType::kFloat16;
  std::int64_t m = 0, k = 0;
  Algorithm algorithm;
  bool operator==(const BlobKey&) const = default;
};
BlobKey blob_key(int device, const Product& product);

// dense [m, k], contiguous and 2:4 (not checked), to a blob of sizes().blob bytes.
BlobKey compress(int device, const Product& product, const void* dense, void* blob, void* buffer, void* stream,
                 const void* bias = nullptr);

struct Operands {
  const void* blob;
  BlobKey key;  // compress's
  const void* x;
  void* y;
  const void* bias;    // null unless has_bias
  const float* scale;  // device, [m], null unless scale_per_row
  float alpha = 1;     // the scale of the call unless scale_per_row
  void* workspace;
  std::size_t workspace_bytes;
};
// All addresses on the device and multiples of 16. A call whose plan exists sets two pointers and
// launches: no allocation, no synchronisation, and it can be captured. Building a plan while `stream`
// captures is refused. Throws InvalidArgument before anything is queued.
void matmul(int device, const Product& product, const Operands& operands, void* stream);

// ---- search ----

// Every algorithm id, then every id with each split-k that the architecture has; the default first. Left out is what
// is known to hang or to kill the context (see rules.cpp).
std::vector<Algorithm> algorithms(int device, const Product& product, void* stream);

struct Trial {
  Algorithm algorithm;
  float microseconds = 0;  // median of the launches; 0: not timed
  double error = 0;        // largest difference from the default algorithm over its largest magnitude
  std::string refused;     // why it is out; empty: it is right
};
struct SearchBuffers {
  const void* dense;  // [m, k], 2:4
  const void* x;
  void* y;  // overwritten
  const void* bias;
  const float* scale;
  void *blob, *compress_buffer, *workspace;  // of search_sizes()
  void* flush = nullptr;  // written before each timed launch, so that the L2 cache holds nothing else
  std::size_t flush_bytes = 0;
};
Sizes search_sizes(int device, const Product& product, void* stream, const void* bias = nullptr);

// One algorithm after the other on the same operands. The first one, which should be the default, sets what the
// others are compared with. Synchronises; refused while `stream` captures. An algorithm that crashes or hangs takes
// the process with it: who tries algorithms that nobody has tried does so in a process of its own.
class Search {
 public:
  Search(int device, const Product& product, const SearchBuffers& buffers, void* stream);
  ~Search();
  Search(const Search&) = delete;
  Search& operator=(const Search&) = delete;
  // Compresses, runs, compares, and times `launches` launches.
  Trial try_out(const Algorithm& algorithm, int launches);

 private:
  class Runs;
  std::unique_ptr<Runs> runs_;
};

// A Search of the default, then of each candidate until the budget is spent.
std::vector<Trial> search(int device, const Product& product, const std::vector<Algorithm>& candidates,
                          const SearchBuffers& buffers, int launches, float budget_ms, void* stream);

// cusparseLtMatmulSearch: the library's own choice, with the workspace. Overwrites y.
Algorithm library_search(int device, const Product& product, const SearchBuffers& buffers, int launches, void* stream);

// ---- for callers without a CUDA toolkit ----

void synchronize(void* stream);
bool is_capturing(void* stream);
bool is_current(int device);

// Plans kept by this thread for each device (at least 1; default 256), and how many there are now.
void set_plan_capacity(int plans);
int plans_cached();
// Destroys this thread's plans and handles. They are destroyed at thread exit anyway, but for the main
// thread, at whose exit the driver may be gone.
void release_thread();

}  // namespace cusparselt
}  // namespace sparse24
