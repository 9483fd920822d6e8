// Matmul descriptors.
#include <cmath>

#include "attributes.h"
#include "exports.h"
#include "objects.h"

namespace emulator {

namespace {

bool valid_operation(Operation op) { return op == kNonTranspose || op == kTranspose; }

// The order of the checks decides which status a doubly wrong product gets; it is the measured one.
void check_product(const Product& p) {
  require(p.a.structured != p.b.structured && !p.c.structured && !p.d.structured, kInvalidValue, kMeasured,
          "exactly one of A and B must be structured, C and D dense");
  const View a = view(p.a, true, p.op_a), b = view(p.b, false, p.op_b);
  require(a.k == b.k && p.c.rows == a.extent && p.c.cols == b.extent, kInvalidValue, kMeasured,
          "the dimensions of op(A), op(B) and C do not fit");
  require(p.a.batches == p.c.batches && p.b.batches == p.c.batches && p.d.batches == p.c.batches, kInvalidValue,
          kMeasured, "A, B, C and D must have the same number of batches");
  require(p.c.rows == p.d.rows && p.c.cols == p.d.cols && p.c.ld == p.d.ld && p.c.order == p.d.order, kNotSupported,
          kMeasured, "C and D must have the same rows, cols, order and ld");
  Label label;
  const char* reason = unsupported_product(p, label);
  require(reason == nullptr, kNotSupported, label, reason);
}

int flag(const void* data, std::size_t size) { return attribute_in<int>(data, size) != 0; }

void set_scale_mode(Epilogue& epilogue, int which, std::int32_t mode) {
  require(mode >= kScaleNone && mode <= kScaleVec64UE8M0, kInvalidValue, kAssumed, "unknown scale mode");
  epilogue.scale_mode[which] = mode;
}

void set_attribute(MatmulObject& object, MatmulAttribute attribute, const void* data, std::size_t size) {
  Epilogue& epilogue = object.epilogue;
  Pointers& pointers = object.pointers;
  require(attribute >= kRelu && attribute <= (state().config.version >= 700 ? kDOutScalePointer : kSparseMatPointer),
          kInvalidValue, kMeasured, "unknown attribute of a matmul descriptor (scales came with 0.7)");
  switch (attribute) {
    case kRelu: epilogue.relu = flag(data, size); return;
    case kReluUpperBound: {
      const auto bound = attribute_in<float>(data, size);
      require(!std::isnan(bound), kInvalidValue, kDocumented, "RELU_UPPERBOUND must not be NaN");
      epilogue.relu_upper_bound = bound;
      return;
    }
    case kReluThreshold: {
      const auto threshold = attribute_in<float>(data, size);
      require(std::isfinite(threshold), kInvalidValue, kDocumented, "RELU_THRESHOLD must be finite");
      epilogue.relu_threshold = threshold;
      return;
    }
    case kGelu: {
      const int on = flag(data, size);
      require(gelu_allowed(object.product, epilogue), kInvalidValue, kMeasured, "GELU is not allowed for these types");
      epilogue.gelu = on;
      return;
    }
    case kGeluScaling: {
      const auto scaling = attribute_in<float>(data, size);
      require(gelu_scaling_allowed(object.product, epilogue), kInvalidValue, kMeasured,
              "GELU_SCALING is not allowed for these types");
      epilogue.gelu_scaling = scaling;
      epilogue.gelu = 1;  // documented: it implies GELU
      return;
    }
    case kAlphaVectorScaling: epilogue.alpha_vector = flag(data, size); return;
    case kBetaVectorScaling: epilogue.beta_vector = flag(data, size); return;
    case kBiasStride: {
      const auto stride = attribute_in<std::int64_t>(data, size);
      require(stride >= 0, kInvalidValue, kMeasured, "BIAS_STRIDE must not be negative");
      require(stride == 0 || stride >= object.product.d.rows, kInvalidValue, kDocumented,
              "BIAS_STRIDE must be 0 or at least the rows of D");
      epilogue.bias_stride = stride;
      return;
    }
    case kBiasPointer: pointers.bias = attribute_in<const void*>(data, size); return;
    case kSparseMatPointer: pointers.sparse = attribute_in<const void*>(data, size); return;
    case kAScaleMode:
    case kBScaleMode:
    case kCScaleMode:
    case kDScaleMode:
    case kDOutScaleMode:
      return set_scale_mode(epilogue, attribute - kAScaleMode, attribute_in<std::int32_t>(data, size));
    case kAScalePointer:
    case kBScalePointer:
    case kCScalePointer:
    case kDScalePointer:
    case kDOutScalePointer: pointers.scale[attribute - kAScalePointer] = attribute_in<const void*>(data, size); return;
  }
}

void get_attribute(const MatmulObject& object, MatmulAttribute attribute, void* data, std::size_t size) {
  const Epilogue& epilogue = object.epilogue;
  const Pointers& pointers = object.pointers;
  switch (attribute) {
    case kRelu: return attribute_out(epilogue.relu, data, size);
    case kReluUpperBound: return attribute_out(epilogue.relu_upper_bound, data, size);
    case kReluThreshold: return attribute_out(epilogue.relu_threshold, data, size);
    case kGelu: return attribute_out(epilogue.gelu, data, size);
    case kGeluScaling: return attribute_out(epilogue.gelu_scaling, data, size);
    case kAlphaVectorScaling: return attribute_out(epilogue.alpha_vector, data, size);
    case kBetaVectorScaling: return attribute_out(epilogue.beta_vector, data, size);
    case kBiasStride: return attribute_out(epilogue.bias_stride, data, size);
    case kBiasPointer: return attribute_out(pointers.bias, data, size);
    case kSparseMatPointer: throw Refusal{kInternalError, kMeasured, "SPARSE_MAT_POINTER cannot be read back"};
    case kAScaleMode:
    case kBScaleMode:
    case kCScaleMode:
    case kDScaleMode:
    case kDOutScaleMode: return attribute_out(epilogue.scale_mode[attribute - kAScaleMode], data, size);
    case kAScalePointer:
    case kBScalePointer:
    case kCScalePointer:
    case kDScalePointer:
    case kDOutScalePointer: return attribute_out(pointers.scale[attribute - kAScalePointer], data, size);
  }
  throw Refusal{kInvalidValue, kMeasured, "unknown attribute of a matmul descriptor"};
}

}  // namespace

Status cusparseLtMatmulDescriptorInit(const Handle* handle, MatmulDescriptor* raw, Operation op_a, Operation op_b,
                                      const MatDescriptor* mat_a, const MatDescriptor* mat_b,
                                      const MatDescriptor* mat_c, const MatDescriptor* mat_d, ComputeType compute) {
  return guarded<Status>("cusparseLtMatmulDescriptorInit", [&] {
    const HandleObject& owner = use_handle(handle);
    require(raw != nullptr, kInvalidValue, kMeasured, "the matmul descriptor is a null pointer");
    require(valid_operation(op_a) && valid_operation(op_b), kInvalidValue, kMeasured,
            "an operation must be non-transpose or transpose");
    auto object = std::make_shared<MatmulObject>();
    object->matrices = {find<MatrixObject>(mat_a), find<MatrixObject>(mat_b), find<MatrixObject>(mat_c),
                        find<MatrixObject>(mat_d)};
    require(compute >= kCompute32I && compute <= kCompute32F, kInvalidValue, kMeasured, "unknown compute type");
    object->product = {object->matrices[0]->matrix,
                       object->matrices[1]->matrix,
                       object->matrices[2]->matrix,
                       object->matrices[3]->matrix,
                       op_a,
                       op_b,
                       compute,
                       owner.sm};
    check_product(object->product);
    object->handle = owner.id;
    object->device = owner.device;
    add_object(raw, object);
    return kSuccess;
  });
}

Status cusparseLtMatmulDescSetAttribute(const Handle* handle, MatmulDescriptor* raw, MatmulAttribute attribute,
                                        const void* data, std::size_t size) {
  return guarded<Status>("cusparseLtMatmulDescSetAttribute", [&] {
    use_handle(handle);
    const auto object = find<MatmulObject>(raw);
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    set_attribute(*object, attribute, data, size);
    return kSuccess;
  });
}

Status cusparseLtMatmulDescGetAttribute(const Handle* handle, const MatmulDescriptor* raw, MatmulAttribute attribute,
                                        void* data, std::size_t size) {
  return guarded<Status>("cusparseLtMatmulDescGetAttribute", [&] {
    use_handle(handle);
    const auto object = find<MatmulObject>(raw);
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    get_attribute(*object, attribute, data, size);
    return kSuccess;
  });
}

}  // namespace emulator
