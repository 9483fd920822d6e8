// The two C libraries, opened at run time through one function table each, and their errors as
// exceptions.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../error.h"
#include "../sparse24.h"
#include "abi.h"

namespace sparse24::cusparselt {

struct Api : abi::CusparseltFunctions {
  int version = 0;
  std::string path;
  std::string skipped;  // files that came first and cannot be used, with the reason
};

struct CudaRuntime : abi::CudaFunctions {
  std::string path;
  std::string skipped;
};

// Opened by the first caller; a failure throws Error and the next call tries again.
const Api& api();
const CudaRuntime& cuda();

// Opens the variable's file, or a copy that is loaded already, or `names` (paths or sonames) in turn. A file that
// `why_not` has a reason against is passed over for the next one, and the reason is added to *skipped. Where all that
// open have one, the first is taken if `anyway`, else the error lists the reasons. Also for benchmarks against
// cuBLASLt.
struct LibrarySearch {
  const char *what, *variable;
  std::vector<std::string> names;
  std::function<std::string(void*)> why_not = {};
  bool anyway = false;
};
void* open_library(const LibrarySearch& search, std::string* path, std::string* skipped = nullptr);

std::string version_text(int version);  // 801: "0.8.1"
std::string status_text(abi::Status status);

// `problem` is called for the error's text only.
template <typename Problem>
void check(abi::Status status, const char* function, const Problem& problem) {
  if (status == abi::kSuccess) return;
  throw Error(message(function, " failed: ", status_text(status), "; ", problem(), "; cuSPARSELt ",
                      version_text(api().version), " (", api().path,
                      ")."
                      " CUSPARSELT_LOG_LEVEL=5 makes the library say more"));
}

void check_cuda(abi::CudaError error, const char* function);

}  // namespace sparse24::cusparselt
