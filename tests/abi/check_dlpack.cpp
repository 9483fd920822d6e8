// csrc/dlpack.h against the declarations that torch ships: compiled only, by tests/ops/test_calls.py.
#include <ATen/dlpack.h>

#include <cstddef>

#include "dlpack.h"

namespace ours = sparse24::dlpack;

#define SAME(our_type, our_field, their_type, their_field)                                  \
  static_assert(offsetof(ours::our_type, our_field) == offsetof(their_type, their_field) && \
                    sizeof(ours::our_type::our_field) == sizeof(their_type::their_field),   \
                #our_type "::" #our_field)

SAME(Device, type, DLDevice, device_type);
SAME(Device, id, DLDevice, device_id);
SAME(DataType, code, DLDataType, code);
SAME(DataType, bits, DLDataType, bits);
SAME(DataType, lanes, DLDataType, lanes);
SAME(Tensor, data, DLTensor, data);
SAME(Tensor, device, DLTensor, device);
SAME(Tensor, ndim, DLTensor, ndim);
SAME(Tensor, dtype, DLTensor, dtype);
SAME(Tensor, shape, DLTensor, shape);
SAME(Tensor, strides, DLTensor, strides);
SAME(Tensor, byte_offset, DLTensor, byte_offset);
SAME(ExchangeTable, allocate, DLPackExchangeAPI, managed_tensor_allocator);
SAME(ExchangeTable, managed_from_object, DLPackExchangeAPI, managed_tensor_from_py_object_no_sync);
SAME(ExchangeTable, managed_to_object, DLPackExchangeAPI, managed_tensor_to_py_object_no_sync);
SAME(ExchangeTable, view_of_object, DLPackExchangeAPI, dltensor_from_py_object_no_sync);
SAME(ExchangeTable, current_stream, DLPackExchangeAPI, current_work_stream);
static_assert(offsetof(DLPackExchangeAPI, header) == 0 && offsetof(DLPackExchangeAPIHeader, version) == 0);
static_assert(offsetof(DLPackVersion, major) == offsetof(ours::ExchangeTable, major));
static_assert(offsetof(DLPackExchangeAPIHeader, prev_api) == offsetof(ours::ExchangeTable, previous));
static_assert(sizeof(ours::Tensor) == sizeof(DLTensor) && sizeof(ours::ExchangeTable) == sizeof(DLPackExchangeAPI));
static_assert(ours::kCPU == kDLCPU && ours::kInt == kDLInt && ours::kUInt == kDLUInt);
static_assert(ours::kFloat == kDLFloat);
static_assert(ours::kBfloat == kDLBfloat && ours::kMajorVersion == DLPACK_MAJOR_VERSION);
