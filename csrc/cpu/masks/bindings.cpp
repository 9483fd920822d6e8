// Masks as bits, for Python. Arguments are checked there: addresses and sizes come in.

#include <pybind11/pybind11.h>

#include "sparse24.h"

namespace py = pybind11;
using namespace sparse24;

void bind_mask_bits(py::module_& m) {
  using Address = std::uintptr_t;
  const auto bytes = [](Address address) { return reinterpret_cast<std::uint8_t*>(address); };
  const py::call_guard<py::gil_scoped_release> free_gil;
  m.def(
      "pack_mask",
      [bytes](Address mask, std::int64_t count, Address bits, int threads) {
        pack_mask(bytes(mask), count, bytes(bits), threads);
      },
      py::arg("mask"), py::arg("count"), py::arg("bits"), py::arg("threads"), free_gil);
  m.def(
      "unpack_mask",
      [bytes](Address bits, std::int64_t count, Address mask, int threads) {
        unpack_mask(bytes(bits), count, bytes(mask), threads);
      },
      py::arg("bits"), py::arg("count"), py::arg("mask"), py::arg("threads"), free_gil);
  m.def(
      "apply_mask_bits",
      [bytes](Address numbers, int bytes_each, std::int64_t count, Address bits, int threads) {
        apply_mask_bits(bytes(numbers), bytes_each, count, bytes(bits), threads);
      },
      py::arg("numbers"), py::arg("bytes_each"), py::arg("count"), py::arg("bits"), py::arg("threads"), free_gil);
}
