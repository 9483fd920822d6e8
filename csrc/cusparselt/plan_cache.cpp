#include "plan_cache.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <bit>

namespace sparse24::cusparselt {
namespace {

std::atomic<std::size_t> plan_capacity{256};

bool on_main_thread() { return syscall(SYS_gettid) == getpid(); }

// The contexts of one thread.
class Contexts {
 public:
  ~Contexts() {
    // The main thread ends with the process, when the driver may be gone already: its handles go with it.
    if (!on_main_thread()) return;
    for (auto& [device, context] : by_device_) context->abandon();
  }

  Context& of(int device) {
    if (last_ != nullptr && last_->handle().device() == device) return *last_;
    auto found = by_device_.find(device);
    if (found == by_device_.end()) found = by_device_.emplace(device, std::make_unique<Context>(device)).first;
    last_ = found->second.get();
    return *last_;
  }

  void clear() {
    last_ = nullptr;
    by_device_.clear();
  }

  void trim(std::size_t capacity) {
    for (auto& [device, context] : by_device_) context->trim(capacity);
  }

  std::size_t plans() const {
    std::size_t count = 0;
    for (const auto& [device, context] : by_device_) count += context->size();
    return count;
  }

 private:
  std::unordered_map<int, std::unique_ptr<Context>> by_device_;
  Context* last_ = nullptr;
};

Contexts& contexts() {
  thread_local Contexts mine;
  return mine;
}

void refuse_while_capturing(abi::Stream stream, const Product& product) {
  if (!is_capturing(stream)) return;
  throw Error(
      message("no plan exists yet for this product, and none can be built while the stream captures a CUDA "
              "graph: run it once before the capture, on the same thread (",
              describe(product), ")"));
}

}  // namespace

std::size_t ProductHash::operator()(const Product& p) const {
  std::uint64_t hash = 0;
  const auto mix = [&hash](std::int64_t value) {  // multiply-xorshift: cheap, and every bit counts
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  };
  for (const std::int64_t value :
       {p.m, p.n, p.k, p.x_stride, p.y_stride, p.batches, p.x_batch_stride, p.y_batch_stride}) {
    mix(value);
  }
  mix(static_cast<int>(p.in) | static_cast<int>(p.out) << 4 | static_cast<int>(p.activation) << 8 | p.has_bias << 12 |
      p.scale_per_row << 13);
  mix(static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(p.relu_threshold)) << 32 |
      std::bit_cast<std::uint32_t>(p.relu_upper_bound));
  mix(static_cast<std::int64_t>(p.algorithm.id) << 32 | static_cast<std::uint32_t>(p.algorithm.split_k));
  mix(static_cast<std::int64_t>(p.algorithm.split_k_mode) << 32 |
      static_cast<std::uint32_t>(p.algorithm.split_k_buffers));
  return hash;
}

Problem& Context::plan(const Product& product, abi::Stream stream, const void* bias) {
  if (const auto found = by_product_.find(product); found != by_product_.end()) {
    recent_.splice(recent_.begin(), recent_, found->second);
    return recent_.front();
  }
  refuse_while_capturing(stream, product);
  recent_.emplace_front(handle_, product, bias);
  try {
    by_product_.emplace(product, recent_.begin());
  } catch (...) {
    recent_.pop_front();
    throw;
  }
  trim(plan_capacity.load(std::memory_order_relaxed));
  return recent_.front();
}

void Context::trim(std::size_t capacity) {
  while (recent_.size() > capacity) {
    by_product_.erase(recent_.back().product());
    recent_.pop_back();
  }
}

void Context::abandon() {
  for (Problem& problem : recent_) problem.abandon();
  handle_.abandon();
}

Context& context(int device) {
  Context& mine = contexts().of(device);
  require_current(device);
  return mine;
}

Device open_device(int device) {
  const CurrentDevice guard(device);
  return context(device).handle().info();
}

Sizes sizes(int device, const Product& product, void* stream, const void* bias) {
  return context(device).plan(product, stream, bias).sizes();
}

BlobKey blob_key(int device, const Product& product) { return context(device).handle().key(product); }

BlobKey compress(int device, const Product& product, const void* dense, void* blob, void* buffer, void* stream,
                 const void* bias) {
  Context& mine = context(device);
  mine.plan(product, stream, bias).compress(dense, blob, buffer, stream);
  return mine.handle().key(product);
}

void matmul(int device, const Product& product, const Operands& operands, void* stream) {
  context(device).plan(product, stream, operands.bias).run(operands, stream);
}

void set_plan_capacity(int plans) {
  if (plans < 1) throw InvalidArgument(message("a thread keeps at least 1 plan, not ", plans));
  plan_capacity.store(static_cast<std::size_t>(plans), std::memory_order_relaxed);
  contexts().trim(static_cast<std::size_t>(plans));
}

int plans_cached() { return static_cast<int>(contexts().plans()); }

void release_thread() { contexts().clear(); }

}  // namespace sparse24::cusparselt
