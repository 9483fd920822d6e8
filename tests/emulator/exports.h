// Every function of cuSPARSELt that is exported, declared from the list in csrc/cusparselt/abi.h, so that a
// definition with another signature does not compile.
#pragma once

#include "cusparselt/abi.h"
#include "state.h"

#define EMULATOR_DECLARE(name, result, parameters) EMULATOR_EXPORT result cusparseLt##name parameters;

namespace emulator {
SPARSE24_CUSPARSELT_REQUIRED(EMULATOR_DECLARE)
#ifndef EMULATOR_WITHOUT_OPTIONAL
SPARSE24_CUSPARSELT_OPTIONAL(EMULATOR_DECLARE)
#endif
}  // namespace emulator
