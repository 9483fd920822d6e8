// What the short ways to a product know of torch. Its state is asked by calls of its own functions, and its tensors are
// read through DLPack's C table.

#include "bindings_torch.h"

#include <Python.h>
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace sparse24::from_python {
namespace {

PyObject* attribute(py::handle from, const char* name) { return py::object(from.attr(name)).release().ptr(); }

void fill(Torch& t) {
  py::module_::import("sparse24.ops.machine").attr("load")();  // constants that were measured here before
  const py::module_ torch = py::module_::import("torch");
  const py::object c = torch.attr("_C");
  t.tensor = attribute(torch, "Tensor");
  t.parameter = attribute(torch.attr("nn"), "Parameter");
  t.modes = attribute(c, "_len_torch_dispatch_stack");
  t.function_modes = attribute(c, "_len_torch_function_stack");
  t.interpreters = attribute(c.attr("_functorch"), "peek_interpreter_stack");
  t.tracing = attribute(c, "_is_tracing");
  t.excluded = attribute(c, "_dispatch_tls_is_dispatch_key_excluded");
  t.autocast_cpu = attribute(c.attr("DispatchKey"), "AutocastCPU");
  t.autocast_cuda = attribute(c.attr("DispatchKey"), "AutocastCUDA");
  t.autocast_dtype = attribute(torch, "get_autocast_dtype");
  t.profiling = attribute(c.attr("_autograd"), "_profiler_enabled");
  t.grad = attribute(torch, "is_grad_enabled");
  t.threads = attribute(torch, "get_num_threads");
  t.parameters = PyUnicode_InternFromString("_parameters");
  t.buffers = PyUnicode_InternFromString("_buffers");
  t.activation = PyUnicode_InternFromString("activation");
  t.in_features = PyUnicode_InternFromString("in_features");
  t.in_channels = PyUnicode_InternFromString("in_channels");
  t.window = PyUnicode_InternFromString("_window");
  t.values = PyUnicode_InternFromString("values");
  t.indices = PyUnicode_InternFromString("indices");
  t.bias = PyUnicode_InternFromString("bias");
  t.weight_scale = PyUnicode_InternFromString("weight_scale");
  t.input_scale = PyUnicode_InternFromString("input_scale");
  t.output_scale = PyUnicode_InternFromString("output_scale");
  t.matmul = PyUnicode_InternFromString("matmul");
  t.conv = PyUnicode_InternFromString("conv");
  t.cpu = PyUnicode_InternFromString("cpu");
  t.cuda = PyUnicode_InternFromString("cuda");
  t.launches = PyUnicode_InternFromString("_launches");
  t.precision = py::object(py::module_::import("sparse24.ops.precision").attr("reader")()).release().ptr();
  t.is_neg = attribute(torch.attr("Tensor"), "is_neg");
  t.requires_grad = PyUnicode_InternFromString("requires_grad");
  // What Inductor's programs make their outputs with: an ordinary tensor, a microsecond sooner than new_empty.
  const py::object dynamo = py::getattr(c, "_dynamo", py::none());
  const py::object guards = py::getattr(dynamo, "guards", py::none());
  t.make_cpu = py::getattr(guards, "_empty_strided_cpu", py::none()).release().ptr();
  t.make_cuda = py::getattr(guards, "_empty_strided_cuda", py::none()).release().ptr();
  t.dtypes[0] = attribute(torch, "float32");
  t.dtypes[1] = attribute(torch, "float16");
  t.dtypes[2] = attribute(torch, "bfloat16");
  t.uint8 = attribute(torch, "uint8");
  const py::object capsule = py::getattr(torch.attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    const auto* table =
        static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table->major == dlpack::kMajorVersion && table->view_of_object != nullptr && t.make_cpu != Py_None) {
      t.table = table;
    }
  }
}

// Where something is not as expected (a torch without one of the names, a warning that is an error) the long way
// is taken from then on, and says what is wrong if it matters.
Torch look_up() {
  Torch t{};
  try {
    fill(t);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("sparse24, looking for a short way to its products");
    t.table = nullptr;
  }
  return t;
}

PyObject* tuple_of(const std::int64_t* numbers, int count) {
  PyObject* tuple = PyTuple_New(count);
  for (int i = 0; tuple != nullptr && i < count; ++i) PyTuple_SET_ITEM(tuple, i, PyLong_FromLongLong(numbers[i]));
  return tuple;
}

}  // namespace

// The import may let go of the GIL, so no static of C++ guards it.
const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> found;
  return found.call_once_and_store_result(look_up).get_stored();
}

bool says(PyObject* callable, PyObject* argument) {
  PyObject* answer = argument == nullptr ? PyObject_CallNoArgs(callable) : PyObject_CallOneArg(callable, argument);
  if (answer == nullptr) {
    PyErr_Clear();
    return true;
  }
  const bool truth = answer == Py_True || (answer != Py_False && answer != Py_None && PyObject_IsTrue(answer) != 0);
  Py_DECREF(answer);
  return truth;
}

bool is_set(PyObject* tensor, PyObject* name) {
  PyObject* answer = PyObject_GetAttr(tensor, name);
  if (answer == nullptr) {
    PyErr_Clear();
    return true;
  }
  const bool truth = answer != Py_False;
  Py_DECREF(answer);
  return truth;
}

bool somebody_listens(const Torch& t) {
  return says(t.modes) || says(t.function_modes) || says(t.interpreters) || says(t.tracing) || says(t.profiling);
}

bool view(const Torch& t, PyObject* object, dlpack::Tensor& out) {
  if (Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(t.tensor) &&
      Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(t.parameter)) {
    return false;
  }
  if (t.table->view_of_object(object, &out) != 0) {
    PyErr_Clear();
    return false;
  }
  if (out.dtype.lanes != 1) return false;
  out.data = static_cast<char*>(out.data) + out.byte_offset;
  std::int64_t numbers = 1;
  for (int i = 0; i < out.ndim; ++i) numbers *= out.shape[i];
  return out.data != nullptr || numbers == 0;  // storage that was freed or never made
}

bool floating(const dlpack::Tensor& x, DType& dtype) {
  if (x.dtype.code == dlpack::kFloat && x.dtype.bits == 32) return dtype = DType::kFloat32, true;
  if (x.dtype.code == dlpack::kFloat && x.dtype.bits == 16) return dtype = DType::kFloat16, true;
  if (x.dtype.code == dlpack::kBfloat && x.dtype.bits == 16) return dtype = DType::kBFloat16, true;
  return false;
}

bool contiguous(const dlpack::Tensor& x) {
  if (x.strides == nullptr) return true;
  std::int64_t expected = 1;
  for (int i = x.ndim - 1; i >= 0; --i) {
    if (x.shape[i] == 0) return true;
    if (x.shape[i] != 1 && x.strides[i] != expected) return false;
    expected *= x.shape[i];
  }
  return true;
}

bool channels_last(const dlpack::Tensor& x) {
  std::int64_t expected = 1;
  for (const int i : {1, 3, 2, 0}) {
    if (x.shape[i] != 1 && x.strides[i] != expected) return false;
    expected *= x.shape[i];
  }
  return true;
}

PyObject* make(PyObject* maker, const std::int64_t* shape, const std::int64_t* strides, int ndim, PyObject* dtype) {
  PyObject *sizes = tuple_of(shape, ndim), *steps = tuple_of(strides, ndim), *made = nullptr;
  if (sizes != nullptr && steps != nullptr) {
    PyObject* arguments[] = {sizes, steps, dtype};
    made = PyObject_Vectorcall(maker, arguments, 3, nullptr);
  }
  Py_XDECREF(sizes);
  Py_XDECREF(steps);
  return made;
}

}  // namespace sparse24::from_python
