// The handle, the version and the texts.
#include "exports.h"
#include "objects.h"
#include "streams.h"

namespace emulator {

Status cusparseLtInit(Handle* raw) {
  return guarded<Status>("cusparseLtInit", [&] {
    require(raw != nullptr, kInvalidValue, kMeasured, "the handle is a null pointer");
    const Config& config = state().config;
    require(config.driver && config.devices > 0, kNotInitialized, kMeasured,
            "no driver or no device: the CUDA context cannot be made (the handle is left untouched)");
    require(config.sm >= 80, kArchMismatch, kDocumented, "devices before SM 80 are not supported");
    auto handle = std::make_shared<HandleObject>();
    handle->thread = this_thread();
    handle->device = current_device();
    handle->sm = config.sm;
    add_object(raw, handle);
    return kSuccess;
  });
}

Status cusparseLtDestroy(const Handle* raw) {
  return guarded<Status>("cusparseLtDestroy", [&] {
    if (!raw && state().config.version < 700) return kSuccess;  // measured: 0.6.3 takes a null handle
    if (!raw) violate_and_refuse(kInvalidValue, kMeasured, "a null handle crashes the real library from 0.7.1 on");
    // assumed: any thread may destroy a handle that no longer is in use.
    destroy_object(raw, find<HandleObject>(raw));
    return kSuccess;
  });
}

Status cusparseLtGetVersion(const Handle* raw, int* version) {
  return guarded<Status>("cusparseLtGetVersion", [&] {
    find<HandleObject>(raw);
    require(version != nullptr, kInvalidValue, kMeasured, "version is a null pointer");
    *version = state().config.version;
    return kSuccess;
  });
}

Status cusparseLtGetProperty(Property type, int* value) {
  return guarded<Status>("cusparseLtGetProperty", [&] {
    require(value != nullptr, kInvalidValue, kMeasured, "value is a null pointer");
    require(type >= kMajorVersion && type <= kPatchLevel, kInvalidValue, kMeasured, "unknown library property");
    const int version = state().config.version;  // 801 is 0.8.1 and 1000 is 0.10.0
    *value = type == kMajorVersion ? 0 : type == kMinorVersion ? version / 100 : version % 100;
    return kSuccess;
  });
}

namespace {

struct Text {
  const char *name, *description;
};

// measured: what the libraries from 0.8.1 on answer.
constexpr Text kTexts[] = {
    {"CUSPARSE_STATUS_SUCCESS", "success"},
    {"CUSPARSE_STATUS_NOT_INITIALIZED", "initialization error"},
    {"CUSPARSE_STATUS_ALLOC_FAILED", "out of memory"},
    {"CUSPARSE_STATUS_INVALID_VALUE", "invalid value"},
    {"CUSPARSE_STATUS_ARCH_MISMATCH", "architecture mismatch"},
    {"CUSPARSE_STATUS_MAPPING_ERROR", "texture memory mapping error"},
    {"CUSPARSE_STATUS_EXECUTION_FAILED", "kernel launch failure"},
    {"CUSPARSE_STATUS_INTERNAL_ERROR", "internal error"},
    {"CUSPARSE_STATUS_MATRIX_TYPE_NOT_SUPPORTED", "matrix type not supported"},
    {"CUSPARSE_STATUS_ZERO_PIVOT", "zero pivot"},
    {"CUSPARSE_STATUS_NOT_SUPPORTED", "operation not supported"},
    {"CUSPARSE_STATUS_INSUFFICIENT_RESOURCES", "insufficient resources"},
};

Text text_of(Status status) {
  if (status < 0 || status > kInsufficientResources) return {"unrecognized error code", "unrecognized error code"};
  return kTexts[status];
}

}  // namespace

#ifndef EMULATOR_WITHOUT_OPTIONAL
const char* cusparseLtGetErrorName(Status status) { return text_of(status).name; }
const char* cusparseLtGetErrorString(Status status) { return text_of(status).description; }
#endif

}  // namespace emulator

// Of cuSPARSE: what clients of the versions before 0.8 ask for the text of a status.
EMULATOR_EXPORT const char* cusparseGetErrorName(int status) {
  return emulator::text_of(static_cast<emulator::Status>(status)).name;
}
EMULATOR_EXPORT const char* cusparseGetErrorString(int status) {
  return emulator::text_of(static_cast<emulator::Status>(status)).description;
}
