// The devices: whether one can be used at all, and which is current.

#include "problem.h"

namespace sparse24::cusparselt {
namespace {

// Why CUDA sees no device, in words that say what to do.
std::string why_no_devices(const Driver& driver) {
  const auto cuda_version = [](int version) { return message("CUDA ", version / 1000, ".", version % 1000 / 10); };
  if (driver.driver_version == 0) {
    return message("no NVIDIA driver is loaded: install one for ", cuda_version(driver.runtime_version), " or newer (",
                   driver.problem, ")");
  }
  if (driver.driver_version < driver.runtime_version) {
    return message("the NVIDIA driver is for ", cuda_version(driver.driver_version), ", older than the runtime's ",
                   cuda_version(driver.runtime_version), ": update the driver (", driver.problem, ")");
  }
  return message("the driver sees no device that this process may use; see nvidia-smi and CUDA_VISIBLE_DEVICES (",
                 driver.problem.empty() ? "0 devices" : driver.problem, ")");
}

}  // namespace

std::string why_unusable(int device) {
  const Driver found = driver();
  if (found.devices == 0 && found.may_pass) throw Error(why_no_devices(found));
  if (found.devices == 0) return why_no_devices(found);
  if (device < 0 || device >= found.devices) {
    throw InvalidArgument(message("there is no device ", device, ": CUDA sees ", found.devices));
  }
  int major = 0, minor = 0;
  check_cuda(cuda().DeviceGetAttribute(&major, abi::kComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cuda().DeviceGetAttribute(&minor, abi::kComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  if (major >= 8) return "";
  return message("device ", device, " is sm_", major, minor, ": sparse tensor cores begin with sm_80 (Ampere)");
}

namespace {

int current_device() {
  int current = -1;
  check_cuda(cuda().GetDevice(&current), "cudaGetDevice");
  return current;
}

}  // namespace

bool is_current(int device) { return current_device() == device; }

void require_current(int device) {
  if (const int current = current_device(); current != device) {
    throw InvalidArgument(message("the current device must be ", device, ", where the operands are, not ", current));
  }
}

CurrentDevice::CurrentDevice(int device) {
  ask_device(device);  // in words, where it cannot be used
  check_cuda(cuda().GetDevice(&before_), "cudaGetDevice");
  if (device == before_) {
    before_ = -1;
    return;
  }
  check_cuda(cuda().SetDevice(device), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) cuda().SetDevice(before_);  // it was current a moment ago
}

Device ask_device(int device) {
  const std::string reason = why_unusable(device);
  if (!reason.empty()) throw Error(reason);
  Device found{};
  int major = 0, minor = 0;
  check_cuda(cuda().DeviceGetAttribute(&major, abi::kComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cuda().DeviceGetAttribute(&minor, abi::kComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  check_cuda(cuda().DeviceGetAttribute(&found.multiprocessors, abi::kMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  found.sm = major * 10 + minor;
  return found;
}

}  // namespace sparse24::cusparselt
