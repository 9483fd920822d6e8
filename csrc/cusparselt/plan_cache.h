// The plans of one thread and device, the least recently used dropped first.
#pragma once

#include <list>
#include <memory>
#include <unordered_map>

#include "problem.h"

namespace sparse24::cusparselt {

struct ProductHash {
  std::size_t operator()(const Product& product) const;
};

// cuSPARSELt handles belong to the thread that made them (sharing one gave INTERNAL_ERROR) and to a
// device, so each thread has a Context for each device.
class Context {
 public:
  explicit Context(int device) : handle_(device) {}

  const Handle& handle() const { return handle_; }
  // The plan of a product: found, or built with this bias and kept. Building is refused while `stream` captures.
  Problem& plan(const Product& product, abi::Stream stream, const void* bias);
  std::size_t size() const { return recent_.size(); }
  void trim(std::size_t capacity);
  void abandon();

 private:
  Handle handle_;  // outlives the plans
  std::list<Problem> recent_;
  std::unordered_map<Product, std::list<Problem>::iterator, ProductHash> by_product_;
};

// This thread's context; the current device must be `device`.
Context& context(int device);

}  // namespace sparse24::cusparselt
