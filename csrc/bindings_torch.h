// What the short ways to a product know of torch: its state, its tensors and how one is made, without its headers.
#pragma once

#include <cstdint>

#include "dlpack.h"
#include "sparse24.h"

struct _object;
using PyObject = _object;

namespace sparse24::from_python {

// What of torch is looked up once. Never released: it outlives the module.
struct Torch {
  const dlpack::ExchangeTable* table = nullptr;                                             // null: this torch has none
  PyObject *tensor, *parameter;                                                             // types
  PyObject *modes, *function_modes, *interpreters, *tracing, *excluded, *profiling, *grad;  // callables
  PyObject* threads;
  PyObject *autocast_cpu, *autocast_cuda;  // the dispatch keys, which are excluded while autocast is off
  PyObject* autocast_dtype;                // a callable, of "cpu" or "cuda"
  PyObject *make_cpu, *make_cuda;          // (sizes, strides, dtype) to a tensor; None: this torch has no such function
  // names in a layer's __dict__ and below
  PyObject *parameters, *buffers, *values, *indices, *bias, *activation, *in_features, *in_channels, *window;
  PyObject* launches;
  PyObject *weight_scale, *input_scale, *output_scale;  // of int8 storage
  PyObject *is_neg, *requires_grad;                     // names of methods and attributes
  PyObject* precision;  // ("matmul" or "conv") to a number of the enum; None: all multiply float32
  PyObject *matmul, *conv, *cpu, *cuda;
  PyObject *dtypes[3], *uint8;
};

// Once, whichever thread is first.
const Torch& torch();

// The truth of what a callable answers. A Python error counts as true: the long way will meet it again.
bool says(PyObject* callable, PyObject* argument = nullptr);

// Whether an attribute of a tensor is anything but False.
bool is_set(PyObject* tensor, PyObject* name);

// Whether anybody but us wants to see the call: the one test of torch's state, autocast apart.
bool somebody_listens(const Torch& t);

// A plain tensor's memory, shape and strides, wherever it is; false for anything else.
bool view(const Torch& t, PyObject* object, dlpack::Tensor& out);

bool floating(const dlpack::Tensor& x, DType& dtype);
bool contiguous(const dlpack::Tensor& x);
// [N, C, H, W] that lies as [N, H, W, C].
bool channels_last(const dlpack::Tensor& x);

// A new tensor by one of Torch's makers, or null with a Python error.
PyObject* make(PyObject* maker, const std::int64_t* shape, const std::int64_t* strides, int ndim, PyObject* dtype);

// The product of a layer by a launch that was prepared for it (bindings_launches.cpp): input and a layer's __dict__,
// and its launches. NotImplemented, nothing having been done: the caller goes the long way.
PyObject* call_launch(PyObject* const* arguments, PyObject* launches);

}  // namespace sparse24::from_python
