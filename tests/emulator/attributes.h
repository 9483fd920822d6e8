// Attributes travel as a pointer and a size that must match exactly.
#pragma once

#include <cstring>

#include "state.h"

namespace emulator {

template <typename T>
T attribute_in(const void* data, std::size_t size) {
  require(size == sizeof(T), kInvalidValue, kMeasured, "the data size does not match the attribute");
  T value;
  std::memcpy(&value, data, sizeof value);
  return value;
}

template <typename T>
void attribute_out(const T& value, void* data, std::size_t size) {
  require(size == sizeof(T), kInvalidValue, kMeasured, "the data size does not match the attribute");
  std::memcpy(data, &value, sizeof value);
}

}  // namespace emulator
