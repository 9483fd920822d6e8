// A layer's products on a GPU without Python: launches that ran before, repeated by one C call. Of cuSPARSELt, on a
// blob, or of the kernel for few tokens, on the canonical form: from the layer's dicts, or where it is away from them.
//
// The long way (nn/on_device.py, ops/cuda) decides how a product runs, makes the plan and the blob, and notes here what
// it did, by count of tokens and stream. A call repeats that if everything it depended on is as it was. Most of it is
// one state: whoever gets the weight back, moves it or frees a form clears the launches, and whoever changes figures or
// the library counts the epoch up. What is left is looked at: whose dicts these are, the bias, who listens, the device,
// the stream and whether it captures a CUDA graph, which the long way has to see. What differs is declined, nothing
// having been done.
//
// Over 300 lines: what a launch is, what a call looks at, and what it does with it belong together.

#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "bindings_torch.h"
#include "few_tokens_call.h"

namespace py = pybind11;
using namespace sparse24;
using namespace sparse24::from_python;

void bind_launches(py::module_& m);

namespace {

// Counted up where routes or the library change: all launches that were noted before are void. Under the GIL.
std::uint64_t current_epoch = 0;

// Counts and streams that one layer keeps; a layer that sees more begins anew.
constexpr std::size_t kMostLaunches = 64;

constexpr int kMostDims = 8;

bool aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

// One launch of the library: tokens from `first` on.
struct Part {
  std::int64_t first;
  cusparselt::Product product;
  cusparselt::BlobKey key;
  std::size_t workspace;
  py::object blob;  // the tensor
  const void* blob_data;
};

struct Size {
  std::int64_t tokens, columns;
};

// False: an input of another kind than launches take. A layer with a window is a convolution.
bool size_of(const dlpack::Tensor& x, bool is_window, Size& size) {
  if (is_window) {
    if (x.ndim != 4 || contiguous(x) || !channels_last(x)) return false;
    size = {x.shape[0] * x.shape[2] * x.shape[3], x.shape[1]};
    return true;
  }
  if (x.ndim < 1 || x.ndim > kMostDims || !contiguous(x)) return false;
  size = {1, x.shape[x.ndim - 1]};
  for (int i = 0; i < x.ndim - 1; ++i) size.tokens *= x.shape[i];
  return true;
}

// One way to run an input of so many tokens.
struct Launch {
  std::int64_t n = 0, m = 0, k = 0;
  DType dtype = DType::kFloat16;
  bool has_bias = false;
  void* stream = nullptr;
  py::object activation;
  py::object window;  // of a 1 x 1 convolution, whose pixels are the tokens, channels_last; else None
  std::vector<Part> parts;
  FewTokensFunction few = nullptr;  // then there are no parts
  py::object values, indices;       // for it, where they are away from the layer's dicts; else None
};

using PartArguments = std::tuple<std::int64_t, cusparselt::Product, cusparselt::BlobKey, std::size_t, py::object>;

// Those of one layer, or of all that share its dicts.
class Launches {
 public:
  Launches(const py::object& parameters, const py::object& buffers, py::object ask_stream)
      : are_away_(!parameters.is_none()), ask_stream_(std::move(ask_stream)) {
    if (are_away_) parameters_ = py::weakref(parameters), buffers_ = py::weakref(buffers);
  }

  void add(std::uint64_t epoch, const py::object& input, std::int64_t m, py::object activation, bool has_bias,
           std::uintptr_t stream, const std::vector<PartArguments>& parts, py::object window);
  void add_few(std::uint64_t epoch, const py::object& input, std::int64_t m, py::object activation, bool has_bias,
               std::uintptr_t stream, std::uintptr_t function, py::object values, py::object indices);
  void clear() {
    std::vector<std::shared_ptr<const Launch>> gone;  // their tensors may call Python as they go
    gone.swap(launches_);
  }
  std::size_t size() const { return epoch_ == current_epoch ? launches_.size() : 0; }

  // The output, or NotImplemented.
  PyObject* call(const Torch& t, PyObject* input, PyObject* state);

 private:
  bool are_of(const Torch& t, PyObject* state) const;
  bool has_autocast(const Torch& t, DType dtype) const;
  std::shared_ptr<const Launch> find(std::int64_t n, std::int64_t k, DType dtype, void* stream) const;

  void keep(std::uint64_t epoch, const py::object& input, Launch launch);

  bool are_away_;                    // whether the weight is away from the layer's dicts
  py::object parameters_, buffers_;  // weak references to these dicts
  py::object ask_stream_;            // the index of a device to the handle of its current stream
  dlpack::Device device_{};
  std::uint64_t epoch_ = 0;
  std::vector<std::shared_ptr<const Launch>> launches_;
};

Launch begin(std::int64_t m, py::object activation, bool has_bias, std::uintptr_t stream) {
  Launch launch;
  launch.m = m, launch.activation = std::move(activation);
  launch.has_bias = has_bias, launch.stream = reinterpret_cast<void*>(stream);
  launch.window = py::none();
  return launch;
}

// Counts, columns and dtype are those of the input.
void Launches::keep(std::uint64_t epoch, const py::object& input, Launch launch) {
  const Torch& t = torch();
  dlpack::Tensor x;
  Size size;
  if (epoch != current_epoch || t.table == nullptr || !view(t, input.ptr(), x) || !floating(x, launch.dtype) ||
      !size_of(x, !launch.window.is_none(), size)) {
    return;
  }
  launch.n = size.tokens, launch.k = size.columns;
  const bool elsewhere = x.device.type != device_.type || x.device.id != device_.id;
  if (epoch_ != current_epoch || elsewhere || launches_.size() >= kMostLaunches) clear();
  std::erase_if(launches_, [&](const auto& other) {
    return other->n == launch.n && other->k == launch.k && other->dtype == launch.dtype &&
           other->stream == launch.stream;
  });
  epoch_ = current_epoch;
  device_ = x.device;
  launches_.push_back(std::make_shared<const Launch>(std::move(launch)));
}

void Launches::add(std::uint64_t epoch, const py::object& input, std::int64_t m, py::object activation, bool has_bias,
                   std::uintptr_t stream, const std::vector<PartArguments>& parts, py::object window) {
  Launch launch = begin(m, std::move(activation), has_bias, stream);
  launch.window = std::move(window);
  for (const auto& [first, product, key, workspace, blob] : parts) {
    dlpack::Tensor bytes;
    if (torch().table == nullptr || !view(torch(), blob.ptr(), bytes)) return;
    launch.parts.push_back({first, product, key, workspace, blob, bytes.data});
  }
  keep(epoch, input, std::move(launch));
}

void Launches::add_few(std::uint64_t epoch, const py::object& input, std::int64_t m, py::object activation,
                       bool has_bias, std::uintptr_t stream, std::uintptr_t function, py::object values,
                       py::object indices) {
  Launch launch = begin(m, std::move(activation), has_bias, stream);
  launch.few = reinterpret_cast<FewTokensFunction>(function);
  launch.values = std::move(values), launch.indices = std::move(indices);
  keep(epoch, input, std::move(launch));
}

PyObject* referent(const py::object& reference) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = nullptr;
  if (PyWeakref_GetRef(reference.ptr(), &found) <= 0) return PyErr_Clear(), nullptr;
  Py_DECREF(found);  // a dict that is compared with one in use: its address is all that is wanted
  return found;
#else
  return PyWeakref_GetObject(reference.ptr());
#endif
}

// Replicas of a layer share its launches, but have dicts and a weight of their own.
bool Launches::are_of(const Torch& t, PyObject* state) const {
  PyObject *parameters = PyDict_GetItemWithError(state, t.parameters),
           *buffers = PyDict_GetItemWithError(state, t.buffers);
  if (parameters == nullptr || buffers == nullptr) return PyErr_Clear(), false;
  if (!are_away_) return true;  // the weight is read from them
  return parameters == referent(parameters_) && buffers == referent(buffers_);
}

// Whether autocast asks for anything but what the layer computes anyway.
bool Launches::has_autocast(const Torch& t, DType dtype) const {
  const bool on_cpu = device_.type == dlpack::kCPU;
  if (says(t.excluded, on_cpu ? t.autocast_cpu : t.autocast_cuda)) return false;
  PyObject* wanted = PyObject_CallOneArg(t.autocast_dtype, on_cpu ? t.cpu : t.cuda);
  if (wanted == nullptr) return PyErr_Clear(), true;
  Py_DECREF(wanted);
  return wanted != t.dtypes[static_cast<int>(dtype)];
}

std::shared_ptr<const Launch> Launches::find(std::int64_t n, std::int64_t k, DType dtype, void* stream) const {
  for (const auto& launch : launches_) {
    if (launch->n == n && launch->k == k && launch->dtype == dtype && launch->stream == stream) return launch;
  }
  return nullptr;
}

// The handle of the current stream; false: there is no telling.
bool ask(PyObject* callable, int device, void*& stream) {
  PyObject* index = PyLong_FromLong(device);
  PyObject* answer = index == nullptr ? nullptr : PyObject_CallOneArg(callable, index);
  Py_XDECREF(index);
  if (answer == nullptr) return PyErr_Clear(), false;
  stream = reinterpret_cast<void*>(PyLong_AsSize_t(answer));
  Py_DECREF(answer);
  return PyErr_Occurred() == nullptr || (PyErr_Clear(), false);
}

// The number of the enum; the activation is one of an operator that has run.
int activation_code(PyObject* name) {
  static constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh"};
  const auto is = [name](const char* other) { return PyUnicode_CompareWithASCIIString(name, other) == 0; };
  return static_cast<int>(std::find_if(std::begin(kNames), std::end(kNames), is) - std::begin(kNames));
}

// The address of the bias; false: it is not as the launch had it, or wants a gradient.
bool read_bias(const Torch& t, PyObject* bias, const Launch& launch, const dlpack::Device& device, const void*& data) {
  data = nullptr;
  if (bias == nullptr) return false;
  if (!launch.has_bias) return bias == Py_None;
  dlpack::Tensor b;
  DType dtype;
  if (!view(t, bias, b) || !floating(b, dtype) || dtype != launch.dtype || b.ndim != 1 || b.shape[0] != launch.m ||
      b.device.type != device.type || b.device.id != device.id || !contiguous(b) ||
      (launch.few == nullptr && !aligned(b.data))) {
    return false;
  }
  data = b.data;
  return !says(t.grad) || !is_set(bias, t.requires_grad);
}

// values and indices of a launch for few tokens, which the caller has to keep: false where they are not as it wants.
struct Canonical {
  py::object values, indices;
  const void* values_data = nullptr;
  const std::uint8_t* indices_data = nullptr;

  bool read(const Torch& t, const Launch& launch, const dlpack::Device& device, PyObject* state) {
    values = launch.values, indices = launch.indices;
    if (values.is_none()) {
      values = in_dict(state, t.parameters, t.values);
      indices = in_dict(state, t.buffers, t.indices);
    }
    dlpack::Tensor v, i;
    DType dtype;
    const auto here = [&](const dlpack::Tensor& tensor) {
      return tensor.device.type == device.type && tensor.device.id == device.id && tensor.ndim == 2 &&
             tensor.shape[0] == launch.m && contiguous(tensor);
    };
    if (!values || !indices || !view(t, values.ptr(), v) || !view(t, indices.ptr(), i) || !floating(v, dtype) ||
        dtype != launch.dtype || !here(v) || !here(i) || v.shape[1] != round_up(launch.k, 8) / 2 ||
        i.shape[1] != round_up(launch.k, 8) / 8 || i.dtype.code != dlpack::kUInt || i.dtype.bits != 8) {
      return false;
    }
    values_data = v.data, indices_data = static_cast<const std::uint8_t*>(i.data);
    return !says(t.grad) || !is_set(values.ptr(), t.requires_grad);
  }

 private:
  static py::object in_dict(PyObject* state, PyObject* dict, PyObject* name) {
    PyObject* found = PyDict_GetItemWithError(state, dict);
    found = found == nullptr ? nullptr : PyDict_GetItemWithError(found, name);
    if (found == nullptr) PyErr_Clear();
    return py::reinterpret_borrow<py::object>(found);
  }
};

// The launches, without the GIL: a full queue makes them wait. False: one was refused.
bool queue(const Launch& launch, int device, const Canonical& weight, const dlpack::Tensor& x, void* y,
           const void* bias, void* workspace) {
  const int activation = launch.few == nullptr ? 0 : activation_code(launch.activation.ptr());
  PyThreadState* state = PyEval_SaveThread();
  bool done = true;
  if (launch.few != nullptr) {
    const FewTokensCall call{x.data,
                             launch.n,
                             launch.k,
                             launch.k,
                             weight.values_data,
                             weight.indices_data,
                             launch.m,
                             bias,
                             y,
                             launch.stream,
                             static_cast<std::int32_t>(launch.dtype),
                             activation};
    done = launch.few(&call);
  }
  try {
    for (const Part& part : launch.parts) {
      const std::int64_t bytes = launch.dtype == DType::kFloat32 ? 4 : 2;
      cusparselt::matmul(
          device, part.product,
          {part.blob_data, part.key, static_cast<const char*>(x.data) + part.first * launch.k * bytes,
           static_cast<char*>(y) + part.first * launch.m * bytes, bias, nullptr, 1, workspace, part.workspace},
          launch.stream);
    }
  } catch (const std::exception&) {
    done = false;  // the long way meets it again, has the words, and another algorithm
  }
  PyEval_RestoreThread(state);
  return done;
}

bool may_launch(int device, void* stream) {
  try {
    return cusparselt::is_current(device) && !cusparselt::is_capturing(stream);
  } catch (const std::exception&) {
    return false;
  }
}

PyObject* Launches::call(const Torch& t, PyObject* input, PyObject* state) {
  dlpack::Tensor x, y;
  DType dtype;
  if (t.table == nullptr || launches_.empty() || Py_TYPE(input) != reinterpret_cast<PyTypeObject*>(t.tensor))
    Py_RETURN_NOTIMPLEMENTED;
  if (epoch_ != current_epoch) {
    clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  PyObject* window = PyDict_GetItemWithError(state, t.window);
  Size size;
  if (!view(t, input, x) || !floating(x, dtype) || x.device.type != device_.type || x.device.id != device_.id ||
      !size_of(x, window != nullptr, size) || !are_of(t, state)) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  const int device = device_.id;
  void* stream = nullptr;
  if (!ask(ask_stream_.ptr(), device, stream) || !may_launch(device, stream)) Py_RETURN_NOTIMPLEMENTED;
  const std::shared_ptr<const Launch> launch = find(size.tokens, size.columns, dtype, stream);
  const void* bias = nullptr;
  PyObject* activation = PyDict_GetItemWithError(state, t.activation);
  if (launch == nullptr || activation != launch->activation.ptr() ||
      (window == nullptr ? Py_None : window) != launch->window.ptr() || somebody_listens(t) || has_autocast(t, dtype) ||
      says(t.is_neg, input) || (says(t.grad) && is_set(input, t.requires_grad)) ||
      !read_bias(t, PyDict_GetItemWithError(PyDict_GetItemWithError(state, t.parameters), t.bias), *launch, device_,
                 bias)) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  Canonical weight;
  if (launch->few == nullptr ? !aligned(x.data) : !weight.read(t, *launch, device_, state)) Py_RETURN_NOTIMPLEMENTED;
  std::int64_t shape[kMostDims], strides[kMostDims];
  std::copy_n(x.shape, x.ndim, shape);
  if (window != nullptr) {
    shape[1] = launch->m;
    strides[0] = launch->m * shape[2] * shape[3], strides[1] = 1, strides[2] = launch->m * shape[3];
    strides[3] = launch->m;
  } else {
    shape[x.ndim - 1] = launch->m;
    for (std::int64_t i = x.ndim - 1, step = 1; i >= 0; step *= shape[i--]) strides[i] = step;
  }
  PyObject* maker = device_.type == dlpack::kCPU ? t.make_cpu : t.make_cuda;
  PyObject* output = make(maker, shape, strides, x.ndim, t.dtypes[static_cast<int>(dtype)]);
  if (output == nullptr) return nullptr;  // no memory
  std::int64_t bytes = 0;
  for (const Part& part : launch->parts) bytes = std::max(bytes, static_cast<std::int64_t>(part.workspace));
  // From torch's allocator, which keeps it for the stream: freed below, it is given to nobody before the launch is
  // done.
  PyObject* scratch = nullptr;
  dlpack::Tensor workspace{};
  const std::int64_t one = 1;
  if (bytes > 0) {
    scratch = make(maker, &bytes, &one, 1, t.uint8);
    if (scratch == nullptr) return Py_DECREF(output), nullptr;
  }
  const bool done = view(t, output, y) && (bytes == 0 || view(t, scratch, workspace)) &&
                    queue(*launch, device, weight, x, y.data, bias, workspace.data);
  Py_XDECREF(scratch);
  if (done) return output;
  Py_DECREF(output);
  std::erase(launches_, launch);
  Py_RETURN_NOTIMPLEMENTED;
}

}  // namespace

PyObject* sparse24::from_python::call_launch(PyObject* const* arguments, PyObject* launches) {
  const Torch& t = torch();
  py::detail::make_caster<Launches> found;
  if (!found.load(launches, false)) Py_RETURN_NOTIMPLEMENTED;
  return py::detail::cast_op<Launches&>(found).call(t, arguments[0], arguments[1]);
}

void bind_launches(py::module_& m) {
  py::class_<Launches>(m, "Launches")
      .def(py::init<const py::object&, const py::object&, py::object>(), py::arg("parameters"), py::arg("buffers"),
           py::arg("ask_stream"))
      .def("add", &Launches::add, py::arg("epoch"), py::arg("input"), py::arg("m"), py::arg("activation"),
           py::arg("has_bias"), py::arg("stream"), py::arg("parts"), py::arg("window"))
      .def(
          "call",
          [](Launches& self, const py::object& input, const py::dict& state) {
            PyObject* output = self.call(torch(), input.ptr(), state.ptr());
            if (output == nullptr) throw py::error_already_set();
            return py::reinterpret_steal<py::object>(output);
          },
          py::arg("input"), py::arg("state"))
      .def("add_few", &Launches::add_few, py::arg("epoch"), py::arg("input"), py::arg("m"), py::arg("activation"),
           py::arg("has_bias"), py::arg("stream"), py::arg("function"), py::arg("values"), py::arg("indices"))
      .def("clear", &Launches::clear)
      .def("__len__", &Launches::size)
      // A copy of a layer, and a file, have none.
      .def("__reduce__", [](const Launches&) { return py::make_tuple(py::type::of(py::none()), py::tuple()); });
  m.def("launches_epoch", [] { return current_epoch; });
  m.def("forget_launches", [] { ++current_epoch; });
}
