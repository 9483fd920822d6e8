// Algorithm selections and plans.
#include "plan.h"

#include "attributes.h"
#include "exports.h"
#include "objects.h"

namespace emulator {

void check_alive(const MatmulObject& matmul) {
  if (!in_place(matmul)) {
    violate_and_refuse(kInvalidValue, kDocumented, "the matmul descriptor is gone or was overwritten");
  }
  for (const auto& matrix : matmul.matrices) {
    if (!in_place(*matrix)) {
      violate_and_refuse(kInvalidValue, kDocumented, "a matrix descriptor of the product is destroyed or overwritten");
    }
  }
}

PlanObject& use_plan(const Plan* raw, const HandleObject& handle) {
  PlanObject& plan = *find<PlanObject>(raw);  // the registry keeps it
  check_alive(*plan.matmul);
  if (!in_place(*plan.algorithm)) {
    violate_and_refuse(kInvalidValue, kDocumented, "the algorithm selection of the plan is destroyed or overwritten");
  }
  if (plan.device != handle.device) {
    violate_and_refuse(kInvalidValue, kAssumed, "the plan was made with a handle of another device");
  }
  return plan;
}

void fix_problem(PlanObject& plan) {
  auto problem = std::make_shared<Problem>();
  problem->product = plan.matmul->product;
  problem->epilogue = plan.matmul->epilogue;
  problem->algorithm = plan.algorithm->algorithm;
  problem->workspace = workspace_bytes(problem->product);
  plan.problem = std::move(problem);
}

Status cusparseLtMatmulAlgSelectionInit(const Handle* handle, AlgSelection* raw, const MatmulDescriptor* descriptor,
                                        MatmulAlg algorithm) {
  return guarded<Status>("cusparseLtMatmulAlgSelectionInit", [&] {
    const HandleObject& owner = use_handle(handle);
    require(raw != nullptr, kInvalidValue, kMeasured, "the algorithm selection is a null pointer");
    const auto matmul = find<MatmulObject>(descriptor);
    require(algorithm == kAlgDefault, kInvalidValue, kMeasured, "unknown algorithm");
    check_alive(*matmul);
    Label label;
    const char* reason = no_kernel(matmul->product, matmul->epilogue, state().config.version, label);
    require(reason == nullptr, kNotSupported, label, reason);
    auto object = std::make_shared<AlgorithmObject>();
    object->handle = owner.id;
    object->matmul = matmul;
    object->algorithm = default_algorithm(matmul->product);
    add_object(raw, object);
    return kSuccess;
  });
}

#ifndef EMULATOR_WITHOUT_OPTIONAL
Status cusparseLtMatmulAlgSelectionDestroy(const AlgSelection* raw) {
  return guarded<Status>("cusparseLtMatmulAlgSelectionDestroy", [&] {
    destroy_object(raw, find<AlgorithmObject>(raw));
    return kSuccess;
  });
}
#endif

Status cusparseLtMatmulAlgSetAttribute(const Handle* handle, AlgSelection* raw, AlgAttribute attribute,
                                       const void* data, std::size_t size) {
  return guarded<Status>("cusparseLtMatmulAlgSetAttribute", [&] {
    use_handle(handle);
    const auto object = find<AlgorithmObject>(raw);
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    require(attribute >= kConfigId && attribute <= kSplitKBuffers, kInvalidValue, kMeasured,
            "unknown attribute of an algorithm selection");
    const int value = attribute_in<int>(data, size);
    Algorithm& algorithm = object->algorithm;
    check_algorithm_attribute(object->matmul->product, algorithm, attribute, value);
    int* const fields[] = {&algorithm.config_id, &algorithm.config_max_id, &algorithm.search_iterations,
                           &algorithm.split_k,   &algorithm.split_k_mode,  &algorithm.split_k_buffers};
    *fields[attribute] = value;
    return kSuccess;
  });
}

Status cusparseLtMatmulAlgGetAttribute(const Handle* handle, const AlgSelection* raw, AlgAttribute attribute,
                                       void* data, std::size_t size) {
  return guarded<Status>("cusparseLtMatmulAlgGetAttribute", [&] {
    use_handle(handle);
    const Algorithm& algorithm = find<AlgorithmObject>(raw)->algorithm;
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    require(attribute >= kConfigId && attribute <= kSplitKBuffers, kInvalidValue, kMeasured,
            "unknown attribute of an algorithm selection");
    const int values[] = {algorithm.config_id, algorithm.config_max_id, algorithm.search_iterations,
                          algorithm.split_k,   algorithm.split_k_mode,  algorithm.split_k_buffers};
    attribute_out(values[attribute], data, size);
    return kSuccess;
  });
}

Status cusparseLtMatmulPlanInit(const Handle* handle, Plan* raw, const MatmulDescriptor* descriptor,
                                const AlgSelection* selection) {
  return guarded<Status>("cusparseLtMatmulPlanInit", [&] {
    const HandleObject& owner = use_handle(handle);
    require(raw != nullptr, kInvalidValue, kMeasured, "the plan is a null pointer");
    auto plan = std::make_shared<PlanObject>();
    plan->matmul = find<MatmulObject>(descriptor);
    plan->algorithm = find<AlgorithmObject>(selection);
    check_alive(*plan->matmul);
    const Product& product = plan->matmul->product;
    const Matrix* const fixed[] = {&product.a, &product.b, &product.c, &product.d};
    for (std::size_t i = 0; i < 4; ++i) {
      if (plan->matmul->matrices[i]->matrix != *fixed[i]) {
        violate(kDocumented,
                "a matrix descriptor was changed after the matmul descriptor was made; the change is lost");
      }
      plan->matmul->matrices[i]->in_plan = true;
    }
    if (!in_place(*plan->algorithm->matmul) || plan->algorithm->matmul != plan->matmul) {
      violate(kAssumed, "the algorithm selection was made for another matmul descriptor");
    }
    plan->handle = owner.id;
    plan->device = owner.device;
    fix_problem(*plan);
    add_object(raw, plan);
    return kSuccess;
  });
}

Status cusparseLtMatmulPlanDestroy(const Plan* raw) {
  return guarded<Status>("cusparseLtMatmulPlanDestroy", [&] {
    destroy_object(raw, find<PlanObject>(raw));
    return kSuccess;
  });
}

Status cusparseLtMatmulGetWorkspace(const Handle* handle, const Plan* raw, std::size_t* size) {
  return guarded<Status>("cusparseLtMatmulGetWorkspace", [&] {
    const PlanObject& plan = use_plan(raw, use_handle(handle));
    require(size != nullptr, kInvalidValue, kMeasured, "workspaceSize is a null pointer");
    *size = plan.problem->workspace;
    return kSuccess;
  });
}

}  // namespace emulator
