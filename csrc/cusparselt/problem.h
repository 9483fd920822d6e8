// One product as cuSPARSELt wants it: descriptors, selection and plan with one lifetime.
#pragma once

#include <utility>

#include "api.h"

namespace sparse24::cusparselt {

// An opaque cuSPARSELt object: initialised once, destroyed once, never moved, because others keep its
// address. Its storage is not cleared: most of the 16 KiB are never touched.
template <typename T>
class Opaque {
 public:
  using Destroy = abi::Status (*)(const T*);

  // `init` throws where the library refuses; then there is nothing to destroy.
  template <typename Init>
  Opaque(const Init& init, Destroy destroy) : destroy_(destroy) {
    init(&raw_);
  }
  ~Opaque() {
    if (destroy_ != nullptr) destroy_(&raw_);  // nobody is left to hear of a failed release
  }
  Opaque(const Opaque&) = delete;
  Opaque& operator=(const Opaque&) = delete;

  T* get() { return &raw_; }
  const T* get() const { return &raw_; }
  // The library is being unloaded with the process: let the object go without telling it.
  void abandon() { destroy_ = nullptr; }

 private:
  T raw_;
  Destroy destroy_;
};

// Refuses a current device that is another one.
void require_current(int device);

// Throws Error: why_unusable, or CUDA fails.
Device ask_device(int device);

// Makes a device current, and puts back the one that was. Refuses a device that is not there.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = -1;
};

// Of one thread and one device.
class Handle {
 public:
  explicit Handle(int device);

  const abi::Handle* get() const { return handle_.get(); }
  int device() const { return device_; }
  const Device& info() const { return info_; }
  // Of the blobs that a product reads here.
  BlobKey key(const Product& product) const;
  void abandon() { handle_.abandon(); }

 private:
  int device_;
  Device info_;
  Opaque<abi::Handle> handle_;
};

// The weight is the structured operand, row-major [m, k]; x row-major [n, k] enters transposed; y is
// column-major [m, n], which is row-major [n, m]; the bias runs along rows, which are output features.
// So nothing is ever transposed in memory.
class Problem {
 public:
  // Refuses what the rules refuse (InvalidArgument) before the library sees it. `bias` is the address that the plan is
  // made with; run() says its own. With launches, the plan is for search(), which rewrites it.
  Problem(const Handle& handle, const Product& product, const void* bias, int search_launches = 0);
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  const Product& product() const { return product_; }
  Sizes sizes() const { return sizes_; }
  // Algorithm ids are below this.
  int algorithms() const { return algorithms_; }

  void compress(const void* dense, void* blob, void* buffer, abi::Stream stream) const;
  void run(const Operands& operands, abi::Stream stream);
  // The library's own search.
  Algorithm search(const SearchBuffers& buffers, abi::Stream stream);

  void abandon();

 private:
  void init_matmul(abi::MatmulDescriptor* matmul) const;
  void init_selection(abi::AlgSelection* selection, int search_launches);
  void set(abi::MatmulAttribute attribute, const void* data, std::size_t size);
  void set_bias(const void* bias);
  Sizes ask_sizes() const;

  const Handle& handle_;
  const Product product_;
  const void* bias_;  // as the descriptor has it
  int algorithms_ = 0;
  // In the order in which each refers to those above: destroyed in reverse.
  Opaque<abi::MatDescriptor> weight_, x_, y_;
  Opaque<abi::MatmulDescriptor> matmul_;
  Opaque<abi::AlgSelection> selection_;
  Opaque<abi::Plan> plan_;
  Sizes sizes_;
};

}  // namespace sparse24::cusparselt
