// C++ microbenchmarks on a GPU: products of 2:4 weights through cuSPARSELt (default and tuned algorithm) against
// the same products dense through cuBLASLt (its best algorithm), over the talk's tables and LLM shapes. The
// contenders take turns, medians of device time; each result is checked against sampled sums in double. Losing
// shapes are shown like winning ones. Exits with 1 when a result is wrong or a case fails.
//
//     cusparselt_bench [--out FILE] [--filter TEXT] [--dtype NAME] [--quick] [--rounds N] [--budget-ms MS]
//
// --filter keeps the cases whose name holds TEXT. Both libraries and the CUDA runtime are found as the backend
// finds them; SPARSE24_CUSPARSELT, SPARSE24_CUBLASLT and SPARSE24_CUDART name files. On the emulator of tests/emulator
// this is a smoke test: the JSON says "emulator": true, and its times mean nothing.

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>

#include "gpu_shapes.inc"
#include "product_bench.h"

namespace {

using namespace sparse24;
using namespace harness;

struct Options {
  std::string out, filter, dtype;
  Effort effort{.quick = false, .emulator = false, .rounds = 15, .budget_ms = 200};
};

// int8: half a step, of rounding.
constexpr Types kTypes[] = {{"fp16", DType::kFloat16, DType::kFloat16, 2e-3},
                            {"bf16", DType::kBFloat16, DType::kBFloat16, 1.6e-2},
                            {"tf32", DType::kFloat32, DType::kFloat32, 2e-3},
                            {"int8", DType::kInt8, DType::kInt8, 0.51 / 127},
                            {"fp8", DType::kFloat8E4M3, DType::kBFloat16, 1.6e-2}};

std::vector<Case> cases(bool quick) {
  std::vector<Case> all;
  if (quick) {
    for (const Gemm& g : kQuickGemms) all.push_back({g.name, "", g.m, g.n, g.k});
    return all;
  }
  for (const Gemm& g : kTalkGemms) all.push_back({message("talk gemm ", g.name), "", g.m, g.n, g.k});
  for (const Convolution& c : kTalkConvolutions) {
    for (const std::int64_t side : kAssumedKernels) {
      const std::string kernel = message(side, "x", side);
      all.push_back(
          {message("talk conv n", c.images, " c", c.in_channels, " k", c.out_channels, " hw", c.side, " ", kernel),
           "the talk gives no kernel size; as the product of a " + kernel + " kernel, without im2col", c.out_channels,
           c.images * c.side * c.side, c.in_channels * side * side});
    }
  }
  for (const Projection& p : kProjections) {
    for (const std::int64_t tokens : kLlmTokens) {
      all.push_back({message("llm ", p.name, " tokens ", tokens), "", p.m, tokens, p.k});
    }
  }
  return all;
}

bool on_emulator() {
  void* library = dlopen(lt::api().path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  return library != nullptr && dlsym(library, "emulator_reset") != nullptr;
}

Json machine(const lt::Device& device) {
  int driver = 0, runtime = 0;
  check_cuda(cuda().DriverGetVersion(&driver), "cudaDriverGetVersion");
  check_cuda(cuda().RuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return Json()
      .add("sm", device.sm)
      .add("multiprocessors", device.multiprocessors)
      .add("driver", driver)
      .add("cuda_runtime", runtime)
      .add("cusparselt", lt::version_text(lt::api().version))
      .add("cusparselt_path", lt::api().path)
      .add("cublaslt", cublaslt::api().GetVersion())
      .add("cublaslt_path", cublaslt::api().path);
}

float number(const std::string& name, const std::string& value, float least) {
  char* end = nullptr;
  const float parsed = std::strtof(value.c_str(), &end);
  if (end == value.c_str() || *end != '\0' || !(parsed >= least)) {
    throw InvalidArgument(message(name, " needs a number from ", least, " on, not ", value));
  }
  return parsed;
}

Options parse(const std::vector<std::string>& arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name == "--quick") {
      options.effort.quick = true, options.effort.rounds = 3;
      continue;
    }
    if (i + 1 == arguments.size()) throw InvalidArgument(name + ": unknown, or without its value");
    const std::string& value = arguments[++i];
    if (name == "--out") {
      options.out = value;
    } else if (name == "--filter") {
      options.filter = value;
    } else if (name == "--dtype") {
      options.dtype = value;
    } else if (name == "--rounds") {
      options.effort.rounds = static_cast<int>(number(name, value, 1));
    } else if (name == "--budget-ms") {
      options.effort.budget_ms = number(name, value, 0);
    } else {
      throw InvalidArgument(name + ": unknown option");
    }
  }
  return options;
}

// The report of one case in one dtype; *good turns false when a result is wrong or the case fails.
Json one_case(const Case& shape, const Types& types, const Effort& effort, int sm, abi::Stream stream,
              DeviceTimer& timer, bool* good) {
  ProductBench product(shape, types, effort, stream, timer);
  try {
    Json result = product.run(sm);
    *good = *good && product.right();
    return result;
  } catch (const std::exception& error) {  // reported; the next case may still run
    std::printf("%s %s FAILED: %s\n", shape.name.c_str(), types.name, error.what());
    *good = false;
    return Json().add("name", shape.name).add("dtype", types.name).add("failed", error.what());
  }
}

int bench(const std::vector<std::string>& arguments) {
  Options options = parse(arguments);
  check_cuda(cuda().SetDevice(0), "cudaSetDevice");
  const lt::Device device = lt::open_device(0);
  std::string command = "cusparselt_bench";
  for (const std::string& argument : arguments) command += " " + argument;
  options.effort.emulator = on_emulator();
  if (options.effort.emulator) std::printf("on the emulator: a smoke test, times mean nothing\n");
  std::vector<Json> results;
  bool good = true;
  const Stream stream;
  DeviceTimer timer(stream.get(), options.effort.quick ? 1 << 20 : 256 << 20);
  for (const Case& shape : cases(options.effort.quick)) {
    for (const Types& types : kTypes) {
      const bool named = shape.name.find(options.filter) != std::string::npos;
      if (!named || (!options.dtype.empty() && options.dtype != types.name)) continue;
      results.push_back(one_case(shape, types, options.effort, device.sm, stream.get(), timer, &good));
      std::fflush(stdout);
    }
  }
  if (results.empty()) throw InvalidArgument("no case has such a name and dtype");
  const Json report = Json()
                          .add("command", command)
                          .add("emulator", options.effort.emulator)
                          .add("machine", machine(device))
                          .add("cases", results);
  if (!options.out.empty() && !(std::ofstream(options.out) << report.text() << "\n"))
    throw Error(options.out + " cannot be written");
  std::printf("%zu cases, %s\n", results.size(), good ? "all right" : "some WRONG or failed");
  return good ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return bench({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cusparselt_bench: %s\n", error.what());
    return 2;
  }
}
