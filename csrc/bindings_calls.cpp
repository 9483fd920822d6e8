// The short way to a product: one C call from a layer's forward to the kernel.
//
// Through torch's dispatcher a product costs several microseconds more than its kernel. call_linear and
// call_conv2d take a layer's __dict__, read the tensors through DLPack's C table, which needs no header of torch, check
// them, and run; or they answer NotImplemented, having done nothing, and the caller goes the long way round: when
// somebody listens to the dispatcher (a mode, functorch, tracing, autocast, a profiler), when a gradient is wanted,
// when a tensor is anything but a plain one on the CPU, or when an argument is not exactly as it should be: the
// operator finds the words for that. Where torch has no such table (before 2.10) the answer is always that.
//
// A layer on a GPU has launches prepared (bindings_launches.cpp); then a call is one of those.
//
// Over 300 lines: how a layer is read and the two calls are one story.

#include <Python.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <cstring>
#include <new>
#include <string>

#include "bindings_torch.h"
#include "error.h"
#include "sparse24.h"

namespace py = pybind11;
using namespace sparse24;
using namespace sparse24::from_python;

void bind_calls(py::module_& m);

namespace {

bool on_cpu(const Torch& t, PyObject* object, dlpack::Tensor& out) {
  return view(t, object, out) && out.device.type == dlpack::kCPU;
}

// A product of fewer multiply-adds is over before a thread would be awake, or could use the GIL.
constexpr double kTiny = 1e5;

// Threads for a product of so many multiply-adds: torch is asked only where more than one may pay.
int threads_for(const Torch& t, double multiply_adds) {
  if (multiply_adds < kTiny) return 1;
  PyObject* number = PyObject_CallNoArgs(t.threads);
  const long threads = number == nullptr ? -1 : PyLong_AsLong(number);
  Py_XDECREF(number);
  if (threads < 1) PyErr_Clear();
  return threads < 1 ? 1 : static_cast<int>(threads);
}

// The operands of a product that are alike for both layers.
struct Operands {
  dlpack::Tensor x, bias;
  Weight weight;
  DType dtype;
  bool has_bias;
  Activation activation;
  Precision precision;
  Quantize quantize;
  float input_scale;

  template <typename Args>
  void set_mode(Args& args) const {
    args.precision = precision, args.quantize = quantize, args.input_scale = input_scale;
  }
};

bool activation_of(PyObject* name, Activation& out) {
  static constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh"};
  if (!PyUnicode_Check(name)) return false;
  for (int i = 0; i < 4; ++i) {
    if (PyUnicode_CompareWithASCIIString(name, kNames[i]) == 0) return out = static_cast<Activation>(i), true;
  }
  return false;
}

// What of a layer a product takes, out of its __dict__. The dicts are read as C reads a dict: a tensor that is
// away from them (nn/lent.py) is not brought back, it is not there.
struct Layer {
  PyObject *values, *indices, *bias, *activation;
  PyObject *weight_scale, *input_scale;  // null: none
  bool read(const Torch& t, PyObject* state) {
    if (!PyDict_Check(state)) return false;
    PyObject *parameters = PyDict_GetItemWithError(state, t.parameters),
             *buffers = PyDict_GetItemWithError(state, t.buffers);
    activation = PyDict_GetItemWithError(state, t.activation);
    if (parameters == nullptr || buffers == nullptr || activation == nullptr) return PyErr_Clear(), false;
    values = PyDict_GetItemWithError(parameters, t.values);
    bias = PyDict_GetItemWithError(parameters, t.bias);
    indices = PyDict_GetItemWithError(buffers, t.indices);
    if (values == nullptr || bias == nullptr || indices == nullptr) return PyErr_Clear(), false;
    weight_scale = PyDict_GetItemWithError(buffers, t.weight_scale);
    input_scale = PyDict_GetItemWithError(buffers, t.input_scale);
    if (PyDict_GetItemWithError(buffers, t.output_scale) != nullptr) return false;  // y is int8: the long way
    return PyErr_Occurred() == nullptr || (PyErr_Clear(), false);
  }
};

// The scales of int8 values: float32, one a row; and of their input: none, 0 (a token has its own) or a number.
bool read_scales(const Torch& t, const Layer& layer, std::int64_t rows, Operands& out) {
  dlpack::Tensor scale;
  DType dtype;
  if (layer.weight_scale == nullptr || !on_cpu(t, layer.weight_scale, scale) || !floating(scale, dtype) ||
      dtype != DType::kFloat32 || scale.ndim != 1 || scale.shape[0] != rows || !contiguous(scale)) {
    return false;
  }
  out.weight.scale = static_cast<const float*>(scale.data);
  if (layer.input_scale == nullptr || layer.input_scale == Py_None) return true;
  if (!on_cpu(t, layer.input_scale, scale) || !floating(scale, dtype) || dtype != DType::kFloat32 || scale.ndim != 0) {
    return false;
  }
  out.input_scale = *static_cast<const float*>(scale.data);
  out.quantize = out.input_scale == 0 ? Quantize::kByToken : Quantize::kByScale;
  return out.input_scale >= 0 && std::isfinite(out.input_scale);
}

// What the user told torch about float32; false: with a Python error, or no number of the enum.
bool read_precision(const Torch& t, PyObject* kind, Operands& out) {
  out.precision = Precision::kHighest;
  if (t.precision == Py_None || out.dtype != DType::kFloat32) return true;
  PyObject* answer = PyObject_CallOneArg(t.precision, kind);
  const long code = answer == nullptr ? -1 : PyLong_AsLong(answer);
  Py_XDECREF(answer);
  if (code < 0 || code > 2) return PyErr_Clear(), false;
  out.precision = static_cast<Precision>(code);
  return true;
}

// input and a layer's __dict__: true if the short way may take them. `kind` is matmul or conv.
bool read_operands(const Torch& t, PyObject* const* arguments, PyObject* kind, Operands& out) {
  PyObject* input = arguments[0];
  Layer layer;
  if (t.table == nullptr || !layer.read(t, arguments[1])) return false;
  PyObject *values = layer.values, *indices = layer.indices, *bias = layer.bias;
  if (Py_TYPE(input) != reinterpret_cast<PyTypeObject*>(t.tensor)) return false;
  out.has_bias = bias != Py_None;
  dlpack::Tensor v, i;
  DType weight_dtype, bias_dtype;
  if (!on_cpu(t, input, out.x) || !on_cpu(t, values, v) || !on_cpu(t, indices, i)) return false;
  const bool int8 = v.dtype.code == dlpack::kInt && v.dtype.bits == 8;
  if (!floating(out.x, out.dtype)) return false;
  if (int8) {
    weight_dtype = DType::kInt8;
  } else if (!floating(v, weight_dtype) || weight_dtype != out.dtype) {
    return false;
  }
  if (v.ndim != 2 || i.ndim != 2 || i.dtype.code != dlpack::kUInt || i.dtype.bits != 8 || i.shape[0] != v.shape[0] ||
      v.shape[1] != 4 * i.shape[1] || !contiguous(v) || !contiguous(i)) {
    return false;
  }
  if (out.has_bias && (!on_cpu(t, bias, out.bias) || !floating(out.bias, bias_dtype) || bias_dtype != out.dtype ||
                       out.bias.ndim != 1 || out.bias.shape[0] != v.shape[0] || !contiguous(out.bias))) {
    return false;
  }
  if (!activation_of(layer.activation, out.activation) || somebody_listens(t) || !says(t.excluded, t.autocast_cpu) ||
      says(t.is_neg, input))
    return false;
  if (says(t.grad) && (is_set(input, t.requires_grad) || is_set(values, t.requires_grad) ||
                       (out.has_bias && is_set(bias, t.requires_grad)))) {
    return false;
  }
  out.weight = {v.data, static_cast<const std::uint8_t*>(i.data), weight_dtype, v.shape[0], 2 * v.shape[1]};
  out.quantize = Quantize::kNone, out.input_scale = 0;
  return (!int8 || read_scales(t, layer, v.shape[0], out)) && read_precision(t, kind, out);
}

// Runs `product`, without the GIL unless it is tiny, and says with a Python error what it threw.
template <typename Product>
bool run(bool tiny, Product product) {
  std::string refused;
  bool no_memory = false;
  PyThreadState* state = tiny ? nullptr : PyEval_SaveThread();
  try {
    product();
  } catch (const std::bad_alloc&) {
    no_memory = true;
  } catch (const std::exception& error) {
    refused = error.what();
  }
  if (state != nullptr) PyEval_RestoreThread(state);
  if (no_memory) return PyErr_NoMemory(), false;
  if (!refused.empty()) return PyErr_SetString(PyExc_ValueError, refused.c_str()), false;
  return true;
}

// An output was made, and holds the product of `args`, or a Python error is set.
template <typename Args, typename Product>
PyObject* finish(PyObject* output, const Torch& t, bool tiny, Args& args, Product product) {
  dlpack::Tensor y;
  if (output == nullptr) return nullptr;
  if (!on_cpu(t, output, y)) {
    Py_DECREF(output);
    Py_RETURN_NOTIMPLEMENTED;
  }
  args.y = y.data;
  if (run(tiny, [&] { product(args); })) return output;
  Py_DECREF(output);
  return nullptr;
}

// A number of a layer; -1 where it is none.
std::int64_t number_in(PyObject* state, PyObject* name) {
  PyObject* found = PyDict_GetItemWithError(state, name);
  const std::int64_t number = found == nullptr ? -1 : PyLong_AsLongLong(found);
  if (number == -1) PyErr_Clear();
  return number;
}

// What is prepared for a layer that is on a GPU; null: nothing.
PyObject* launches_of(const Torch& t, PyObject* state) {
  PyObject* found = PyDict_Check(state) ? PyDict_GetItemWithError(state, t.launches) : nullptr;
  if (found == nullptr) PyErr_Clear();
  return found == Py_None ? nullptr : found;
}

// call_linear(input, state): state is the __dict__ of a SparseLinear
PyObject* call_linear(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Operands o;
  const Torch& t = torch();
  if (count != 2 || t.table == nullptr) Py_RETURN_NOTIMPLEMENTED;  // then no name is known either
  if (PyObject* launches = launches_of(t, arguments[1])) {
    PyObject* output = call_launch(arguments, launches);
    if (output != Py_NotImplemented) return output;
    Py_DECREF(output);
  }
  if (!read_operands(t, arguments, t.matmul, o)) Py_RETURN_NOTIMPLEMENTED;
  const std::int64_t k = number_in(arguments[1], t.in_features);
  const dlpack::Tensor& x = o.x;
  if (k <= 0 || x.ndim < 1 || x.shape[x.ndim - 1] != k || round_up(k, 8) != o.weight.padded || x.ndim > 8) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  std::int64_t shape[8], strides[8], tokens = 1, stride = k, step = o.weight.rows;
  for (int i = 0; i < x.ndim - 1; ++i) tokens *= shape[i] = x.shape[i];
  shape[x.ndim - 1] = o.weight.rows, strides[x.ndim - 1] = 1;
  for (int i = x.ndim - 2; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i] > 0 ? shape[i] : 1;
  }
  if (!contiguous(x)) {
    if (x.ndim != 2 || x.strides[1] != 1 || x.strides[0] < 0) Py_RETURN_NOTIMPLEMENTED;
    stride = x.strides[0];
  }
  PyObject* output = make(t.make_cpu, shape, strides, x.ndim, t.dtypes[static_cast<int>(o.dtype)]);
  const double multiply_adds = 0.5 * static_cast<double>(tokens) * static_cast<double>(o.weight.rows * k);
  const int threads = threads_for(t, multiply_adds);
  Linear args{o.weight, o.dtype,      x.data, o.has_bias ? o.bias.data : nullptr, nullptr, tokens, o.weight.rows, k,
              stride,   o.activation, threads};
  o.set_mode(args);
  return finish(output, t, multiply_adds < kTiny, args, [](const Linear& a) { linear(a); });
}

// call_conv2d(input, state): state is the __dict__ of a SparseConv2d, whose _window is kernel_size, stride,
// padding, dilation, two ints each, and groups
PyObject* call_conv2d(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Operands o;
  const Torch& t = torch();
  if (count != 2 || t.table == nullptr) Py_RETURN_NOTIMPLEMENTED;  // then no name is known either
  if (PyObject* launches = launches_of(t, arguments[1])) {
    PyObject* output = call_launch(arguments, launches);
    if (output != Py_NotImplemented) return output;
    Py_DECREF(output);
  }
  if (!read_operands(t, arguments, t.conv, o) || o.x.ndim != 4) Py_RETURN_NOTIMPLEMENTED;
  PyObject* window = PyDict_GetItemWithError(arguments[1], t.window);
  if (window == nullptr || !PyTuple_Check(window) || PyTuple_GET_SIZE(window) != 9) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  std::array<std::int64_t, 9> w;
  for (int i = 0; i < 9; ++i) w[static_cast<std::size_t>(i)] = PyLong_AsLongLong(PyTuple_GET_ITEM(window, i));
  const auto [r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups] = w;
  const std::int64_t *size = o.x.shape, rows = o.weight.rows;
  if (PyErr_Occurred() || r < 1 || s < 1 || stride_h < 1 || stride_w < 1 || pad_h < 0 || pad_w < 0 || dilation_h < 1 ||
      dilation_w < 1 || groups < 1 || size[1] < 1 || size[1] != number_in(arguments[1], t.in_channels) ||
      size[1] % groups != 0 || rows % groups != 0 ||
      round_up(r * s * round_up(size[1] / groups, 4), 8) != o.weight.padded) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  const std::int64_t room_h = size[2] + 2 * pad_h - dilation_h * (r - 1) - 1;
  const std::int64_t room_w = size[3] + 2 * pad_w - dilation_w * (s - 1) - 1;
  const bool plain = contiguous(o.x), last = !plain && channels_last(o.x);
  if (room_h < 0 || room_w < 0 || (!plain && !last)) Py_RETURN_NOTIMPLEMENTED;
  const std::int64_t shape[] = {size[0], rows, room_h / stride_h + 1, room_w / stride_w + 1};
  const std::int64_t h = shape[2], width = shape[3];
  const std::int64_t across[] = {rows * h * width, h * width, width, 1},
                     inward[] = {h * width * rows, 1, width * rows, rows};
  PyObject* output = make(t.make_cpu, shape, last ? inward : across, 4, t.dtypes[static_cast<int>(o.dtype)]);
  const double multiply_adds =
      0.5 * static_cast<double>(size[0] * h * width) * static_cast<double>(rows * o.weight.padded);
  const int threads = threads_for(t, multiply_adds);
  Conv2d args{o.weight,     o.dtype,    o.x.data, o.has_bias ? o.bias.data : nullptr,
              nullptr,      size[0],    size[1],  size[2],
              size[3],      rows,       r,        s,
              stride_h,     stride_w,   pad_h,    pad_w,
              dilation_h,   dilation_w, groups,   last ? MemoryFormat::kChannelsLast : MemoryFormat::kContiguous,
              o.activation, threads};
  o.set_mode(args);
  return finish(output, t, multiply_adds < kTiny, args, [](const Conv2d& a) { conv2d(a); });
}

PyMethodDef kCalls[] = {
    {"call_linear", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_linear)), METH_FASTCALL, nullptr},
    {"call_conv2d", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_conv2d)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void bind_calls(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), kCalls) != 0) throw py::error_already_set();
}
