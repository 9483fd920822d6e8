// The C table by which a framework lends its tensors without a header of its own: DLPack 1.2's
// DLPackExchangeAPI, which torch has as torch.Tensor.__dlpack_c_exchange_api__ since 2.10. Only what is used
// here; tests/abi/check_dlpack.cpp compares it with the declarations that torch ships.
#pragma once

#include <cstdint>

namespace sparse24::dlpack {

struct Device {
  std::int32_t type, id;
};
constexpr std::int32_t kCPU = 1;

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4;

// A view: the framework keeps what it points at.
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: contiguous
  std::uint64_t byte_offset;
};

constexpr std::uint32_t kMajorVersion = 1;

struct ExchangeTable {
  std::uint32_t major, minor;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*view_of_object)(void* object, Tensor* out);  // null: not offered; -1: a Python error is set
  void* current_stream;
};

}  // namespace sparse24::dlpack
