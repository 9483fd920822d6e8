// What the calls that use a plan share.
#pragma once

#include "objects.h"

namespace emulator {

// Refuse, as a violation, what outlived its parts: the library keeps pointers to the caller's structs.
void check_alive(const MatmulObject& matmul);
PlanObject& use_plan(const Plan* raw, const HandleObject& handle);

// The problem of a plan from its descriptors as they are now.
void fix_problem(PlanObject& plan);

}  // namespace emulator
