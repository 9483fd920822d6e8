#include "api.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>

namespace sparse24::cusparselt {
namespace {

// 0.6.3 is the first with the enum values of abi.h; before 0.8.1 sm_90 and L4 have known faults, and
// algorithm selections cannot be destroyed.
constexpr int kOldestVersion = 603;
constexpr int kRecommendedVersion = 801;

struct SearchPaths {
  std::mutex mutex;
  std::vector<std::string> cusparselt, cudart;
};
SearchPaths& search_paths() {
  static SearchPaths paths;
  return paths;
}

std::string dl_error() {
  const char* text = dlerror();
  return text != nullptr ? text : "unknown error";
}

std::string path_of(void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown path";
}

template <typename Function>
void find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
}

template <typename Function>
void require(void* library, const char* name, Function** function, const std::string& path) {
  find(library, name, function);
  if (*function == nullptr)
    throw Error(message(path, " has no function ", name, ": it is no library that sparse24 can use"));
}

int property(const Api& api, abi::Property which) {
  int value = 0;
  if (api.GetProperty(which, &value) != abi::kSuccess) throw Error(message(api.path, " does not tell its version"));
  return value;
}

std::unique_ptr<Api> open_api() {
  std::vector<std::string> names;
  {
    const std::lock_guard lock(search_paths().mutex);
    names = search_paths().cusparselt;
  }
  names.push_back("libcusparseLt.so.0");
  auto api = std::make_unique<Api>();
  void* library = open_library("cuSPARSELt", "SPARSE24_CUSPARSELT", names, &api->path);
#define SPARSE24_FIND(name, result, parameters) require(library, "cusparseLt" #name, &api->name, api->path);
  SPARSE24_CUSPARSELT_REQUIRED(SPARSE24_FIND)
#undef SPARSE24_FIND
#define SPARSE24_FIND(name, result, parameters) find(library, "cusparseLt" #name, &api->name);
  SPARSE24_CUSPARSELT_OPTIONAL(SPARSE24_FIND)
#undef SPARSE24_FIND
  api->path = path_of(reinterpret_cast<void*>(api->Init));
  // GetProperty needs no driver. The library's own number changed its formula in 0.10; this one did not.
  api->version = property(*api, abi::kMajorVersion) * 10000 + property(*api, abi::kMinorVersion) * 100 +
                 property(*api, abi::kPatchLevel);
  if (api->version < kOldestVersion) {
    throw Error(message("cuSPARSELt ", version_text(api->version), " (", api->path, ") is too old: sparse24 needs ",
                        version_text(kOldestVersion), " or newer, ", version_text(kRecommendedVersion),
                        " recommended: pip install 'sparse24[cu12]' or 'sparse24[cu13]'"));
  }
  return api;
}

std::unique_ptr<CudaRuntime> open_cuda() {
  std::vector<std::string> names;
  {
    const std::lock_guard lock(search_paths().mutex);
    names = search_paths().cudart;
  }
  names.insert(names.end(), {"libcudart.so.13", "libcudart.so.12"});
  auto cuda = std::make_unique<CudaRuntime>();
  void* library = open_library("the CUDA runtime", "SPARSE24_CUDART", names, &cuda->path);
#define SPARSE24_FIND(name, result, parameters) require(library, "cuda" #name, &cuda->name, cuda->path);
  SPARSE24_CUDA_RUNTIME(SPARSE24_FIND)
#undef SPARSE24_FIND
  cuda->path = path_of(reinterpret_cast<void*>(cuda->GetDevice));
  return cuda;
}

// Opened once; a failure is thrown to every caller until an attempt succeeds. Never closed: handles of
// other threads may outlive everything that could close it.
template <typename Table>
const Table& opened_once(std::unique_ptr<Table> (*open)()) {
  static std::mutex mutex;
  static std::atomic<const Table*> table = nullptr;
  if (const Table* found = table.load(std::memory_order_acquire)) return *found;
  const std::lock_guard lock(mutex);
  if (table.load(std::memory_order_relaxed) == nullptr) table.store(open().release(), std::memory_order_release);
  return *table.load(std::memory_order_relaxed);
}

}  // namespace

void* open_library(const char* what, const char* variable, const std::vector<std::string>& names, std::string* path) {
  if (const char* given = std::getenv(variable); given != nullptr && *given != '\0') {
    *path = given;
    if (void* library = dlopen(given, RTLD_NOW | RTLD_LOCAL)) return library;
    throw Error(message(what, " cannot be opened: ", variable, "=", given, ": ", dl_error()));
  }
  std::string attempts;
  for (const int loaded_already : {RTLD_NOLOAD, 0}) {  // torch's copy first: two in a process share nothing
    for (const std::string& name : names) {
      *path = name;
      if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | loaded_already)) return library;
      const std::string reason = dl_error();
      if (loaded_already == 0) attempts += message("\n  ", reason);
    }
  }
  throw Error(message(what,
                      " was not found; install a wheel (pip install 'sparse24[cu12]' or 'sparse24[cu13]') or set ",
                      variable, " to the file. Tried:", attempts));
}

const Api& api() { return opened_once<Api>(open_api); }
const CudaRuntime& cuda() { return opened_once<CudaRuntime>(open_cuda); }

void set_search_paths(std::vector<std::string> cusparselt, std::vector<std::string> cudart) {
  const std::lock_guard lock(search_paths().mutex);
  search_paths().cusparselt = std::move(cusparselt);
  search_paths().cudart = std::move(cudart);
}

Library library() {
  std::string caveat;
  if (api().version < kRecommendedVersion) {
    caveat = message(version_text(kRecommendedVersion), " or newer is recommended: ", version_text(api().version),
                     " leaks algorithm selections and knows fewer GPUs");
  }
  return {api().version, api().path, cuda().path, caveat};
}

std::string version_text(int version) { return message(version / 10000, ".", version / 100 % 100, ".", version % 100); }

std::string status_text(abi::Status status) {
  struct Text {
    const char *name, *meaning;
  };
  static constexpr Text kTexts[] = {
      {"SUCCESS", "success"},
      {"NOT_INITIALIZED", "no usable CUDA driver or device"},
      {"ALLOC_FAILED", "out of memory"},
      {"INVALID_VALUE", "invalid value"},
      {"ARCH_MISMATCH", "the GPU is older than sm_80, which has no sparse tensor cores"},
      {"MAPPING_ERROR", "texture memory mapping error"},
      {"EXECUTION_FAILED", "kernel launch failure"},
      {"INTERNAL_ERROR", "internal error"},
      {"MATRIX_TYPE_NOT_SUPPORTED", "matrix type not supported"},
      {"ZERO_PIVOT", "zero pivot"},
      {"NOT_SUPPORTED", "operation not supported"},
      {"INSUFFICIENT_RESOURCES", "insufficient resources"},
  };
  if (status < 0 || status >= static_cast<int>(std::size(kTexts))) return message("unknown status ", int{status});
  return message("CUSPARSE_STATUS_", kTexts[status].name, " (", int{status}, ", ", kTexts[status].meaning, ")");
}

void check_cuda(abi::CudaError error, const char* function) {
  if (error == abi::kCudaSuccess) return;
  throw Error(
      message(function, " failed: error ", error, " (", cuda().GetErrorString(error), "); CUDA runtime ", cuda().path));
}

Driver driver() {
  Driver found;
  check_cuda(cuda().DriverGetVersion(&found.driver_version), "cudaDriverGetVersion");
  check_cuda(cuda().RuntimeGetVersion(&found.runtime_version), "cudaRuntimeGetVersion");
  const abi::CudaError error = cuda().GetDeviceCount(&found.devices);
  if (error != abi::kCudaSuccess) {
    found.devices = 0;
    found.problem = message("cudaGetDeviceCount: error ", error, ", ", cuda().GetErrorString(error));
  }
  return found;
}

void synchronize(void* stream) { check_cuda(cuda().StreamSynchronize(stream), "cudaStreamSynchronize"); }

bool is_capturing(void* stream) {
  abi::CaptureStatus status = abi::kCaptureNone;
  check_cuda(cuda().StreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != abi::kCaptureNone;
}

}  // namespace sparse24::cusparselt
