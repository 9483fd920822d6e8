// One-shot pruning, for Python. Arguments are checked there: addresses and sizes come in.

#include <pybind11/pybind11.h>

#include "sparse24.h"

namespace py = pybind11;
using namespace sparse24;

namespace {

// Lets Ctrl-C end a search.
void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void bind_prune(py::module_& m) {
  using Address = std::uintptr_t;
  m.def(
      "search_columns",
      [](Address score, std::int64_t rows, std::int64_t cols, std::int64_t row_stride, std::int64_t block,
         std::uint64_t seed, double tolerance, std::int64_t steps, Address order, int threads) {
        search_columns({reinterpret_cast<const float*>(score), rows, cols, row_stride, block, seed, tolerance, steps,
                        reinterpret_cast<std::int64_t*>(order), check_signals, threads});
      },
      py::arg("score"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"), py::arg("block"), py::arg("seed"),
      py::arg("tolerance"), py::arg("steps"), py::arg("order"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "kept_sum",
      [](Address score, std::int64_t rows, std::int64_t cols, std::int64_t row_stride, Address order, int threads) {
        return kept_sum(reinterpret_cast<const float*>(score), rows, cols, row_stride,
                        reinterpret_cast<const std::int64_t*>(order), threads);
      },
      py::arg("score"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"), py::arg("order"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "sparsegpt_block",
      [](Address weight, std::int64_t rows, std::int64_t cols, std::int64_t weight_stride, Address factor,
         std::int64_t factor_stride, Address error, Address mask, std::int64_t mask_stride, bool choose, int threads) {
        sparsegpt_block({reinterpret_cast<float*>(weight), rows, cols, weight_stride,
                         reinterpret_cast<const float*>(factor), factor_stride, reinterpret_cast<float*>(error),
                         reinterpret_cast<std::uint8_t*>(mask), mask_stride, choose, threads});
      },
      py::arg("weight"), py::arg("rows"), py::arg("cols"), py::arg("weight_stride"), py::arg("factor"),
      py::arg("factor_stride"), py::arg("error"), py::arg("mask"), py::arg("mask_stride"), py::arg("choose"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
