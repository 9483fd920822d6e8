// One product, sparse and dense: built, tuned, timed in turns and checked.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cublaslt.h"
#include "gpu_harness.h"

namespace harness {

namespace lt = sparse24::cusparselt;

struct Types {
  const char* name;
  DType in, out;
  double tolerance;  // of the largest result: rounding of the output, and of sums in another order
};
struct Case {
  std::string name, note;
  std::int64_t m, n, k;
};

struct Effort {
  bool quick, emulator;
  int rounds;
  float budget_ms;  // of the search
};

// One case in one dtype: operands on the device, and everything that is compared.
class ProductBench {
 public:
  ProductBench(const Case& shape, const Types& types, const Effort& effort, abi::Stream stream, DeviceTimer& timer)
      : shape_(shape),
        types_(types),
        effort_(effort),
        stream_(stream),
        timer_(timer),
        alpha_(types.in == DType::kInt8 ? 0.4f / std::sqrt(static_cast<float>(shape.k)) : 1.0f),
        tokens_(round_up(shape.n, lt::multiples(types.in, types.out).n)) {
    product_ = {.in = types.in,
                .out = types.out,
                .m = shape.m,
                .n = tokens_,
                .k = shape.k,
                .x_stride = shape.k,
                .y_stride = shape.m,
                .algorithm = {}};
  }

  Json run(int sm) {
    Json json = describe();
    if (const std::string reason = lt::why_illegal(product_, sm, lt::api().version); !reason.empty()) {
      print(" skipped: " + reason);
      return json.add("skipped", reason);
    }
    const DeviceMemory w(bytes(shape_.m * shape_.k, types_.in)), x(bytes(tokens_ * shape_.k, types_.in)),
        y(bytes(tokens_ * shape_.m, types_.out));
    w_ = w.get(), x_ = x.get(), y_ = y.get();
    weight_.fill(w_, shape_.m * shape_.k, stream_);
    input_.fill(x_, tokens_ * shape_.k, stream_);

    const lt::Sizes room = lt::search_sizes(kDevice, product_, stream_);
    const DeviceMemory blob(room.blob), tuned_blob(room.blob), buffer(room.compress_buffer),
        workspace(std::max(room.workspace, kDenseWorkspace));
    workspace_ = workspace.get();
    const lt::Algorithm best = search(tuned_blob.get(), buffer.get(), json);

    std::vector<Contender> all;
    if (const auto dense = dense_contender(json)) all.push_back(*dense);
    all.push_back(sparse_contender("sparse", {}, blob.get(), buffer.get()));
    all.push_back(sparse_contender("tuned", best, tuned_blob.get(), buffer.get()));
    compare(all, json);
    json.add("bytes", Json()
                          .add("weight", bytes(shape_.m * shape_.k, types_.in))
                          .add("weight_sparse", sparse_bytes_)
                          .add("x", bytes(tokens_ * shape_.k, types_.in))
                          .add("y", bytes(tokens_ * shape_.m, types_.out)));
    return json;
  }

  bool right() const { return right_; }

 private:
  static constexpr std::size_t kDenseWorkspace = std::size_t{64} << 20;

  struct Contender {
    const char* name;
    Call call;
  };

  static std::size_t bytes(std::int64_t elements, DType dtype) {
    return static_cast<std::size_t>(elements * lt::size_of(dtype));
  }

  Json describe() const {
    Json json;
    json.add("name", shape_.name).add("dtype", types_.name).add("out", lt::name_of(types_.out));
    json.add("m", shape_.m).add("n", shape_.n).add("k", shape_.k);
    if (tokens_ != shape_.n) json.add("n_sparse", tokens_);
    if (!shape_.note.empty()) json.add("note", shape_.note);
    return json;
  }

  lt::Algorithm search(void* blob, void* buffer, Json& json) {
    const lt::SearchBuffers buffers{.dense = w_,
                                    .x = x_,
                                    .y = y_,
                                    .bias = nullptr,
                                    .scale = nullptr,
                                    .blob = blob,
                                    .compress_buffer = buffer,
                                    .workspace = workspace_};
    const std::vector<lt::Trial> trials = lt::search(kDevice, product_, lt::algorithms(kDevice, product_, stream_),
                                                     buffers, effort_.quick ? 1 : 5, effort_.budget_ms, stream_);
    const lt::Trial* best = &trials.front();
    int refused = 0;
    for (const lt::Trial& trial : trials) {
      refused += !trial.refused.empty();
      if (trial.refused.empty() && trial.microseconds < best->microseconds) best = &trial;
    }
    json.add("algorithms_tried", trials.size()).add("algorithms_refused", refused);
    json.add("algorithm", Json()
                              .add("id", best->algorithm.id)
                              .add("split_k", best->algorithm.split_k)
                              .add("split_k_mode", best->algorithm.split_k_mode));
    return best->algorithm;
  }

  Contender sparse_contender(const char* name, const lt::Algorithm& algorithm, void* blob, void* buffer) {
    lt::Product product = product_;
    product.algorithm = algorithm;
    const lt::Sizes sizes = lt::sizes(kDevice, product, stream_);
    sparse_bytes_ = sizes.blob;
    const lt::Operands operands{.blob = blob,
                                .key = lt::compress(kDevice, product, w_, blob, buffer, stream_),
                                .x = x_,
                                .y = y_,
                                .bias = nullptr,
                                .scale = nullptr,
                                .alpha = alpha_,
                                .workspace = workspace_,
                                .workspace_bytes = sizes.workspace};
    return {name, [product, operands, stream = stream_] { lt::matmul(kDevice, product, operands, stream); }};
  }

  // The fastest of what cuBLASLt proposes, for the tokens as they are, or padded where it takes no others.
  std::optional<Contender> dense_contender(Json& json) {
    for (const std::int64_t tokens : {shape_.n, tokens_}) {
      const auto product = std::make_shared<cublaslt::DenseProduct>(types_.in, types_.out, shape_.m, tokens, shape_.k);
      std::vector<Call> calls;
      for (const cublaslt::Heuristic& choice : product->heuristics(kDenseWorkspace, effort_.quick ? 1 : 8)) {
        calls.push_back([=, this] { product->run(choice, alpha_, w_, x_, y_, workspace_, stream_); });
      }
      if (calls.empty()) continue;
      const std::vector<double> times = timer_.in_turns(calls, effort_.quick ? 1 : 3);
      const auto best = std::min_element(times.begin(), times.end()) - times.begin();
      json.add("dense_algorithms", calls.size());
      if (tokens != shape_.n) json.add("n_dense", tokens);
      return Contender{"dense", calls[static_cast<std::size_t>(best)]};
    }
    json.add("dense_missing", "cuBLASLt proposes no algorithm for this product");
    return std::nullopt;
  }

  void compare(const std::vector<Contender>& all, Json& json) {
    std::vector<Call> calls;
    for (const Contender& contender : all) calls.push_back(contender.call);
    const std::vector<double> times = timer_.in_turns(calls, effort_.rounds);
    const bool has_dense = all.size() == 3;
    std::string line;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double error = error_of(calls[i]), host = time_on_host(calls[i], effort_.quick ? 3 : 21, stream_);
      const bool wrong = !(error <= types_.tolerance);
      right_ = right_ && !wrong;
      const double flops =
          2.0 * static_cast<double>(shape_.m) * static_cast<double>(shape_.n) * static_cast<double>(shape_.k);
      Json part;
      part.add("us", times[i]).add("tflops", flops / times[i] * 1e-6).add("host_us", host).add("relative_error", error);
      if (wrong) part.add("wrong", true);
      if (has_dense && i > 0) part.add("ratio", times[0] / times[i]);
      json.add(all[i].name, part);
      line += effort_.emulator ? message(" ", all[i].name, " error ", error)
                               : message(" ", all[i].name, " ", std::llround(times[i]), " us");
      line += wrong ? " WRONG" : "";
    }
    if (has_dense && !effort_.emulator) {
      const double ratio = times[0] / times.back();
      line += message(" ratio ", std::round(100 * ratio) / 100, ratio < 1 ? " LOSES" : "");
    }
    print(line);
  }

  void print(const std::string& line) const {
    std::printf("%-36s %-4s %6lld x %6lld x %6lld:%s\n", shape_.name.c_str(), types_.name,
                static_cast<long long>(shape_.m), static_cast<long long>(shape_.n), static_cast<long long>(shape_.k),
                line.c_str());
  }

  // The largest difference from sums in double over the largest of those, in sampled outputs of four tokens.
  double error_of(const Call& call) {
    check_cuda(cuda().MemsetAsync(y_, 0xFF, bytes(shape_.n * shape_.m, types_.out), stream_), "cudaMemsetAsync");
    call();
    const std::size_t size = bytes(1, types_.out), row_bytes = bytes(shape_.m, types_.out);
    std::vector<unsigned char> row(row_bytes);
    std::mt19937 rng(24);
    double worst = 0, largest = 0;
    for (const std::int64_t token : {std::int64_t{0}, shape_.n / 3, shape_.n / 2, shape_.n - 1}) {
      const auto* from = static_cast<const unsigned char*>(y_) + static_cast<std::size_t>(token) * row_bytes;
      check_cuda(cuda().MemcpyAsync(row.data(), from, row_bytes, abi::kDeviceToHost, stream_), "cudaMemcpyAsync");
      lt::synchronize(stream_);
      for (int sample = 0; sample < 32; ++sample) {
        const std::int64_t feature = rng() % shape_.m;
        const double want = expected(feature, token),
                     got = decode(row.data() + static_cast<std::size_t>(feature) * size, types_.out);
        const double apart = std::abs(got - want);
        worst = std::isnan(apart) ? INFINITY : std::max(worst, apart);
        largest = std::max(largest, std::abs(want));
      }
    }
    return worst / (types_.out == DType::kInt8 ? 127 : std::max(largest, 1e-30));
  }

  double expected(std::int64_t feature, std::int64_t token) const {
    double sum = 0;
    for (std::int64_t i = 0; i < shape_.k; ++i)
      sum += weight_.at(feature * shape_.k + i) * input_.at(token * shape_.k + i);
    sum *= alpha_;
    return types_.out == DType::kInt8 ? std::clamp(sum, -128.0, 127.0) : sum;
  }

  static constexpr int kDevice = 0;

  const Case& shape_;
  const Types& types_;
  const Effort& effort_;
  abi::Stream stream_;
  DeviceTimer& timer_;
  float alpha_;
  std::int64_t tokens_;
  lt::Product product_;
  Operand weight_{types_.in, Operand::Kind::kSparse24, 1}, input_{types_.in, Operand::Kind::kDense, 2};
  void *w_ = nullptr, *x_ = nullptr, *y_ = nullptr, *workspace_ = nullptr;
  std::size_t sparse_bytes_ = 0;
  bool right_ = true;
};

}  // namespace harness
