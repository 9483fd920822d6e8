// Which algorithm is fastest, and right: ids have no meaning that lasts, the default is often not the
// best, and an id that reads a blob of another's layout gives wrong numbers without an error.

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>

#include "event.h"
#include "plan_cache.h"
#include "types.h"

namespace sparse24::cusparselt {
namespace {

// Those that published searches chose (bench/routes.py has their source): on sm_80 and sm_89 2 to 8, on sm_100 and
// sm_120 powers of two besides.
constexpr int kSplits[] = {2, 3, 4, 5, 6, 7, 8};
constexpr int kWideSplits[] = {2, 3, 4, 5, 6, 7, 8, 16, 32};
// Segment-K is said to hang for fewer tokens (the same source guards it so), though rows from 64 on exist.
constexpr std::int64_t kSegmentKTokens = 400;
constexpr int kWarmUp = 1;

// Largest difference between two right algorithms, over the largest magnitude: they sum in another
// order and round the same sum to the output's type.
double tolerance(DType in, DType out) {
  switch (out) {
    case DType::kFloat32: return in == DType::kFloat32 ? 2e-3 : 1e-4;  // TF32 operands; else products are exact
    case DType::kFloat16: return 2e-3;
    case DType::kBFloat16: return 1.6e-2;
    default: return 0;  // integers are exact
  }
}

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
  if (exponent == 0) {
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -small : small;
  }
  const std::uint32_t rebased = exponent == 31 ? 0xFFu : exponent + 112;
  return std::bit_cast<float>(sign | rebased << 23 | fraction << 13);
}

float element(const std::vector<unsigned char>& bytes, DType dtype, std::size_t i) {
  const auto as = [&]<typename T>(T value) {
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::kFloat32: return as(float{});
    case DType::kFloat16: return half_to_float(as(std::uint16_t{}));
    case DType::kBFloat16: return std::bit_cast<float>(std::uint32_t{as(std::uint16_t{})} << 16);
    case DType::kInt32: return static_cast<float>(as(std::int32_t{}));
    default: return static_cast<float>(as(std::int8_t{}));
  }
}

}  // namespace

// The same buffers for every algorithm.
class Search::Runs {
 public:
  Runs(int device, const Product& product, const SearchBuffers& buffers, void* stream)
      : device_(device), product_(product), buffers_(buffers), stream_(stream) {}

  // Compresses, runs, compares and times; the first call (the default algorithm) sets what is compared with.
  Trial try_out(const Algorithm& algorithm, int launches) {
    Trial trial;
    trial.algorithm = algorithm;
    product_.algorithm = algorithm;
    try {
      prepare();
      launch();
      const std::vector<unsigned char> output = read_back();
      if (expected_.empty()) expected_ = output;
      trial.error = difference(output);
      if (!(trial.error <= tolerance(product_.in, product_.out))) {
        trial.refused = "wrong results";
      } else {
        trial.microseconds = time(launches);
        // Seen on sm_90: a launch that "took" nothing had left an illegal instruction behind.
        if (!(trial.microseconds > 0)) trial.refused = "took no time: nothing ran";
      }
    } catch (const Error& error) {
      trial.refused = error.what();
    }
    return trial;
  }

 private:
  // Median of the launches, in microseconds.
  float time(int launches) {
    std::vector<float> times;
    for (int i = 0; i < kWarmUp; ++i) launch();
    for (int i = 0; i < launches; ++i) {
      if (buffers_.flush_bytes > 0) {
        check_cuda(cuda().MemsetAsync(buffers_.flush, 0, buffers_.flush_bytes, stream_), "cudaMemsetAsync");
        synchronize(stream_);  // else the launch would hide behind it
      }
      start_.record(stream_);
      launch();
      stop_.record(stream_);
      times.push_back(stop_.microseconds_since(start_));
    }
    std::nth_element(times.begin(), times.begin() + launches / 2, times.end());
    return times[static_cast<std::size_t>(launches / 2)];
  }

  void prepare() {
    workspace_bytes_ = sizes(device_, product_, stream_, buffers_.bias).workspace;
    key_ = compress(device_, product_, buffers_.dense, buffers_.blob, buffers_.compress_buffer, stream_, buffers_.bias);
    // An algorithm that writes nothing must not inherit the numbers of the one before.
    check_cuda(cuda().MemsetAsync(buffers_.y, 0xFF, output_bytes(), stream_), "cudaMemsetAsync");
  }

  void launch() {
    matmul(device_, product_,
           {.blob = buffers_.blob,
            .key = key_,
            .x = buffers_.x,
            .y = buffers_.y,
            .bias = buffers_.bias,
            .scale = buffers_.scale,
            .workspace = buffers_.workspace,
            .workspace_bytes = workspace_bytes_},
           stream_);
  }

  std::size_t output_bytes() const {
    const std::int64_t last = (product_.batches - 1) * product_.y_batch_stride + product_.n * product_.y_stride;
    return static_cast<std::size_t>(last * size_of(product_.out));
  }

  std::vector<unsigned char> read_back() const {
    std::vector<unsigned char> host(output_bytes());
    check_cuda(cuda().MemcpyAsync(host.data(), buffers_.y, host.size(), abi::kDeviceToHost, stream_),
               "cudaMemcpyAsync");
    synchronize(stream_);
    return host;
  }

  double difference(const std::vector<unsigned char>& output) const {
    double worst = 0, largest = 0;
    for (std::int64_t token = 0; token < product_.batches * product_.n; ++token) {
      const std::int64_t begin = token / product_.n * product_.y_batch_stride + token % product_.n * product_.y_stride;
      for (std::int64_t i = begin; i < begin + product_.m; ++i) {
        const double want = element(expected_, product_.out, static_cast<std::size_t>(i));
        const double got = element(output, product_.out, static_cast<std::size_t>(i));
        if (std::isfinite(want)) largest = std::max(largest, std::abs(want));
        if (got == want || (std::isnan(got) && std::isnan(want))) continue;
        const double apart = std::abs(got - want);
        worst = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(worst, apart);
      }
    }
    return worst == 0 ? 0 : worst / std::max(largest, 1e-30);
  }

  int device_;
  Product product_;
  SearchBuffers buffers_;
  abi::Stream stream_;
  BlobKey key_;
  std::size_t workspace_bytes_ = 0;
  std::vector<unsigned char> expected_;
  Event start_, stop_;
};

namespace {

void refuse_while_capturing(abi::Stream stream) {
  if (is_capturing(stream)) throw Error("a search launches and synchronises: it cannot run while the stream captures");
}

// What is asked of the library before anything of the caller's is: a bias is not read for that.
Product without_bias(const Product& product) {
  Product plain = product;
  plain.algorithm = {};
  plain.has_bias = false;
  return plain;
}

}  // namespace

Search::Search(int device, const Product& product, const SearchBuffers& buffers, void* stream)
    : runs_((refuse_while_capturing(stream), std::make_unique<Runs>(device, product, buffers, stream))) {}
Search::~Search() = default;

Trial Search::try_out(const Algorithm& algorithm, int launches) {
  if (launches < 1) throw InvalidArgument(message("a search needs at least 1 launch, not ", launches));
  return runs_->try_out(algorithm, launches);
}

std::vector<Algorithm> algorithms(int device, const Product& product, void* stream) {
  const Product plain = without_bias(product);
  const Context& mine = context(device);
  const int ids = context(device).plan(plain, stream, nullptr).algorithms(), sm = mine.handle().info().sm;
  std::vector<Algorithm> all;
  const auto add = [&](const Algorithm& algorithm) {
    Product candidate = plain;
    candidate.algorithm = algorithm;
    if (why_illegal(candidate, sm, api().version).empty()) all.push_back(algorithm);
  };
  const auto add_splits = [&](const auto& splits) {
    for (const int split_k : splits) {
      for (int id = 0; id < ids; ++id) {
        if (sm >= 90) {  // how is left to the library: the modes of sm_80 mean nothing there
          add({.id = id, .split_k = split_k});
          continue;
        }
        add({.id = id, .split_k = split_k, .split_k_mode = abi::kSplitKOneKernel});
        add({.id = id, .split_k = split_k, .split_k_mode = abi::kSplitKTwoKernels});
      }
    }
  };
  for (int id = 0; id < ids; ++id) add({.id = id});
  if (sm == 90) {
    if (product.n >= kSegmentKTokens) add_splits(std::initializer_list<int>{-1});
  } else if (sm > 90) {
    add_splits(kWideSplits);
  } else {
    add_splits(kSplits);
  }
  return all;
}

Sizes search_sizes(int device, const Product& product, void* stream, const void* bias) {
  Sizes largest{};
  for (const Algorithm& algorithm : algorithms(device, product, stream)) {
    Product candidate = product;
    candidate.algorithm = algorithm;
    try {
      const Sizes needed = sizes(device, candidate, stream, bias);
      largest.blob = std::max(largest.blob, needed.blob);
      largest.compress_buffer = std::max(largest.compress_buffer, needed.compress_buffer);
      largest.workspace = std::max(largest.workspace, needed.workspace);
    } catch (const Error&) {  // search() reports it with its reason
      if (algorithm == Algorithm{}) throw;
    }
  }
  return largest;
}

std::vector<Trial> search(int device, const Product& product, const std::vector<Algorithm>& candidates,
                          const SearchBuffers& buffers, int launches, float budget_ms, void* stream) {
  if (launches < 1) throw InvalidArgument(message("a search needs at least 1 launch, not ", launches));
  Search search(device, product, buffers, stream);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Trial> trials = {search.try_out({}, launches)};
  if (!trials.front().refused.empty()) throw Error(trials.front().refused);
  for (const Algorithm& algorithm : candidates) {
    const std::chrono::duration<float, std::milli> spent = std::chrono::steady_clock::now() - begin;
    if (spent.count() > budget_ms) break;
    if (algorithm != Algorithm{}) trials.push_back(search.try_out(algorithm, launches));
  }
  return trials;
}

Algorithm library_search(int device, const Product& product, const SearchBuffers& buffers, int launches, void* stream) {
  if (launches < 1) throw InvalidArgument(message("a search needs at least 1 launch, not ", launches));
  refuse_while_capturing(stream);
  Product plain = product;
  plain.algorithm = {};
  // A plan of its own: the search rewrites it.
  Problem problem(context(device).handle(), plain, buffers.bias, launches);
  return problem.search(buffers, stream);
}

}  // namespace sparse24::cusparselt
