// What every call shares: the lock, the configuration, the counts, and how a broken rule is told.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "cusparselt/abi.h"

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))

namespace emulator {

using namespace sparse24::abi;

// Where a rule comes from: seen on a GPU or on the library without one; NVIDIA's documents, headers, samples or
// printable strings; or our best guess.
enum class Label { kMeasured, kDocumented, kAssumed };
using enum Label;
const char* label_name(Label label);

// Thrown by a call that breaks a rule; guarded() turns it into the status. `rule` is a string literal.
struct Refusal {
  int status;
  Label label;
  const char* rule;
};

inline void require(bool ok, int status, Label label, const char* rule) {
  if (!ok) [[unlikely]] {
    throw Refusal{status, label, rule};
  }
}

// What becomes of the process that runs an algorithm.
enum class Fate { kNone, kIllegal, kAbort, kHang };

struct Config {
  int devices, sm, version;
  bool driver, deferred, log;
  int search_winner;
  bool idle;    // products do nothing
  bool strict;  // host memory is no device's
  std::map<int, Fate> fates;
};

class State {
 public:
  State();
  void reset();

  // True when fault injection wants this call to fail with fail_status().
  bool count_call() { return ++calls_ == fail_at_; }
  int fail_status() const { return fail_status_; }
  void fail_at(long n, int status);
  long calls() const { return calls_; }

  void refuse(const Refusal& refusal);
  void violate(Label label, const std::string& rule);

  std::mutex mutex;
  Config config;
  bool context_is_dead;       // an illegal instruction: every later call that reaches the device fails
  const char* function = "";  // the call being made, or the queued operation being run
  long refusals, synchronizations, allocations, launches;
  std::string last_refusal;
  std::vector<std::string> violations;

 private:
  long calls_, fail_at_;
  int fail_status_;
};

State& state();

// Something the real library would not report. It never changes what a call returns.
inline void violate(Label label, const std::string& rule) { state().violate(label, rule); }

// For what the real library is known or taken to refuse, and that is a lifetime fault besides.
[[noreturn]] void violate_and_refuse(int status, Label label, const char* rule);

constexpr int kCudaErrorMemoryAllocation = 2;
static_assert(kCudaErrorMemoryAllocation == kAllocFailed);

// One call of an interface: locks, counts, injects the fault asked for, and turns a Refusal into its status.
template <typename Status, typename Body>
Status guarded(const char* function, Body&& body) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.function = function;
  if (s.count_call()) return static_cast<Status>(s.fail_status());
  try {
    return body();
  } catch (const Refusal& refusal) {
    s.refuse(refusal);
    return static_cast<Status>(refusal.status);
  } catch (const std::bad_alloc&) {
    return static_cast<Status>(kAllocFailed);
  }
}

}  // namespace emulator
