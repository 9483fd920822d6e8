// What Python sees of the machine and of the constants that its kernels take.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;
using namespace sparse24::cpu;

void bind_machine(py::module_& m);

namespace {

py::dict machine_dict() {
  const Machine& found = machine();
  const Features& f = found.features;
  py::dict features;
  features["avx2"] = f.avx2, features["avx512"] = f.avx512, features["avx512_bf16"] = f.avx512_bf16;
  features["avx512_vnni"] = f.avx512_vnni, features["amx_tile"] = f.amx_tile, features["amx_bf16"] = f.amx_bf16;
  features["amx_int8"] = f.amx_int8, features["avx512_vbmi2"] = f.avx512_vbmi2, features["neon"] = f.neon;
  py::dict out;
  out["vendor"] = found.vendor, out["family"] = found.family, out["model"] = found.model;
  out["microarchitecture"] = found.microarchitecture;
  out["l1_bytes"] = found.l1_bytes, out["l2_bytes"] = found.l2_bytes, out["l3_bytes"] = found.l3_bytes;
  out["features"] = features;
  return out;
}

py::dict tuning_dict() {
  const Tuning& t = tuning();
  py::dict out;
  out["row"] = t.row, out["few_tokens"] = t.few_tokens, out["streams"] = t.streams;
  out["prefetch_wide"] = t.prefetch_wide, out["prefetch_narrow"] = t.prefetch_narrow, out["vectors"] = t.vectors;
  out["tile_cols"] = t.tile_cols, out["tile_prefetch"] = t.tile_prefetch, out["sums_bytes"] = t.sums_bytes;
  out["few_halves"] = t.few_halves, out["pair_vectors"] = t.pair_vectors, out["pair_cols"] = t.pair_cols;
  out["packed_bytes"] = t.packed_bytes, out["stream_bytes"] = t.stream_bytes;
  return out;
}

void set_tuning(const py::kwargs& fields) {
  if (fields.empty()) return override_tuning(nullptr);
  Tuning t = tuning();
  t.row = "measured here";
  for (const auto& [key, value] : fields) {
    const auto name = key.cast<std::string>();
    std::int64_t* bytes = name == "sums_bytes"     ? &t.sums_bytes
                          : name == "packed_bytes" ? &t.packed_bytes
                          : name == "stream_bytes" ? &t.stream_bytes
                                                   : nullptr;
    if (bytes != nullptr) {
      *bytes = value.cast<std::int64_t>();
      continue;
    }
    int* field = name == "few_tokens"        ? &t.few_tokens
                 : name == "streams"         ? &t.streams
                 : name == "prefetch_wide"   ? &t.prefetch_wide
                 : name == "prefetch_narrow" ? &t.prefetch_narrow
                 : name == "vectors"         ? &t.vectors
                 : name == "tile_cols"       ? &t.tile_cols
                 : name == "tile_prefetch"   ? &t.tile_prefetch
                 : name == "few_halves"      ? &t.few_halves
                 : name == "pair_vectors"    ? &t.pair_vectors
                 : name == "pair_cols"       ? &t.pair_cols
                                             : nullptr;
    if (field == nullptr) throw py::value_error("tuning has no field called " + name);
    *field = value.cast<int>();
  }
  override_tuning(&t);
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("machine", &machine_dict);
  m.def("amx_problem", [] { return amx_problem(); });
  m.def("describe_amx", &describe_amx, py::arg("cpu"), py::arg("saved"), py::arg("error"));
  m.def("tuning", &tuning_dict);
  m.def("set_tuning", &set_tuning);  // no argument: the row of the machine again
}
