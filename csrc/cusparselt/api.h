// The two C libraries, opened at run time through one function table each, and their errors as
// exceptions.
#pragma once

#include <string>

#include "../error.h"
#include "../sparse24.h"
#include "abi.h"

namespace sparse24::cusparselt {

struct Api : abi::CusparseltFunctions {
  int version = 0;
  std::string path;
};

struct CudaRuntime : abi::CudaFunctions {
  std::string path;
};

// Opened by the first caller; a failure throws Error and the next call tries again.
const Api& api();
const CudaRuntime& cuda();

// A symbol of a library opened as cuSPARSELt and the runtime are: the variable's file, a copy that is
// loaded already, `names` (paths or sonames) in turn. For benchmarks against cuBLASLt.
void* open_library(const char* what, const char* variable, const std::vector<std::string>& names, std::string* path);

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
