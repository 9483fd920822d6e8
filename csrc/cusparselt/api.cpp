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

// 801 is 0.8.1; 0: it does not tell. GetProperty needs no driver. The library's own number changed its formula in 0.10;
// this one did not.
int version_of(void* library) {
  decltype(Api::GetProperty) get = nullptr;
  find(library, "cusparseLtGetProperty", &get);
  int major = 0, minor = 0, patch = 0;
  const bool told = get != nullptr && get(abi::kMajorVersion, &major) == abi::kSuccess &&
                    get(abi::kMinorVersion, &minor) == abi::kSuccess && get(abi::kPatchLevel, &patch) == abi::kSuccess;
  return told ? major * 10000 + minor * 100 + patch : 0;
}

// torch 2.6 brings 0.6.2, which is loaded first: a newer one beside it is taken then. What is no cuSPARSELt at all is
// told by the function that it lacks.
std::string why_not_cusparselt(void* library) {
  const int version = version_of(library);
  if (version == 0 || version >= kOldestVersion) return "";
  return message(version_text(version), " is too old: sparse24 needs ", version_text(kOldestVersion), " or newer, ",
                 version_text(kRecommendedVersion), " recommended: pip install 'sparse24[cu12]' or 'sparse24[cu13]'");
}

// A driver runs every runtime of its own major version and of those before.
std::string why_not_runtime(void* library) {
  decltype(CudaRuntime::DriverGetVersion) ask_driver = nullptr;
  decltype(CudaRuntime::RuntimeGetVersion) ask_runtime = nullptr;
  find(library, "cudaDriverGetVersion", &ask_driver);
  find(library, "cudaRuntimeGetVersion", &ask_runtime);
  int driver = 0, runtime = 0;
  if (ask_driver == nullptr || ask_runtime == nullptr || ask_driver(&driver) != abi::kCudaSuccess ||
      ask_runtime(&runtime) != abi::kCudaSuccess || driver == 0 || driver / 1000 >= runtime / 1000) {
    return "";
  }
  return message("its CUDA ", runtime / 1000, ".", runtime % 1000 / 10, " is newer than the driver's ", driver / 1000,
                 ".", driver % 1000 / 10);
}

std::unique_ptr<Api> open_api() {
  std::vector<std::string> names;
  {
    const std::lock_guard lock(search_paths().mutex);
    names = search_paths().cusparselt;
  }
  names.push_back("libcusparseLt.so.0");
  auto api = std::make_unique<Api>();
  void* library = open_library({.what = "cuSPARSELt",
                                .variable = "SPARSE24_CUSPARSELT",
                                .names = std::move(names),
                                .why_not = why_not_cusparselt},
                               &api->path, &api->skipped);
#define SPARSE24_FIND(name, result, parameters) require(library, "cusparseLt" #name, &api->name, api->path);
  SPARSE24_CUSPARSELT_REQUIRED(SPARSE24_FIND)
#undef SPARSE24_FIND
#define SPARSE24_FIND(name, result, parameters) find(library, "cusparseLt" #name, &api->name);
  SPARSE24_CUSPARSELT_OPTIONAL(SPARSE24_FIND)
#undef SPARSE24_FIND
  api->path = path_of(reinterpret_cast<void*>(api->Init));
  api->version = version_of(library);
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
  void* library = open_library({.what = "the CUDA runtime",
                                .variable = "SPARSE24_CUDART",
                                .names = std::move(names),
                                .why_not = why_not_runtime,
                                .anyway = true},  // then driver() says what is wrong
                               &cuda->path, &cuda->skipped);
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

void* open_library(const LibrarySearch& search, std::string* path, std::string* skipped) {
  const auto why_not = [&](void* library) { return search.why_not ? search.why_not(library) : ""; };
  if (const char* given = std::getenv(search.variable); given != nullptr && *given != '\0') {
    *path = given;
    void* library = dlopen(given, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw Error(message(search.what, " cannot be opened: ", search.variable, "=", given, ": ", dl_error()));
    }
    const std::string reason = why_not(library);
    if (reason.empty() || search.anyway) return library;
    throw Error(message(search.what, " cannot be used: ", search.variable, "=", given, ": ", reason));
  }
  std::string attempts, first_path;
  void* first = nullptr;
  for (const int loaded_already : {RTLD_NOLOAD, 0}) {  // torch's copy first: two in a process share nothing
    for (const std::string& name : search.names) {
      void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | loaded_already);
      const std::string reason = library == nullptr ? dl_error() : why_not(library);
      if (reason.empty()) {
        *path = name;
        return library;
      }
      if (library != nullptr && first == nullptr) first = library, first_path = name;
      if (loaded_already == 0) attempts += message("\n  ", library == nullptr ? "" : name + ": ", reason);
      if (library != nullptr && skipped != nullptr && skipped->find(name + ": ") == std::string::npos) {
        *skipped += message(skipped->empty() ? "" : "; ", name, ": ", reason);
      }
    }
  }
  if (first != nullptr && search.anyway) {
    *path = first_path;
    return first;
  }
  throw Error(message(search.what,
                      " was not found; install a wheel (pip install 'sparse24[cu12]' or 'sparse24[cu13]') or set ",
                      search.variable, " to the file. Tried:", attempts));
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
  for (const std::string& skipped : {api().skipped, cuda().skipped}) {
    if (!skipped.empty()) caveat += message(caveat.empty() ? "" : "; ", "passed over: ", skipped);
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
    found.may_pass = error != abi::kCudaInsufficientDriver && error != abi::kCudaNoDevice;
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
