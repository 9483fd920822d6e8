#include "state.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cublaslt.h"
#include "emulator.h"
#include "memory.h"
#include "objects.h"
#include "runtime.h"
#include "streams.h"

#ifndef EMULATOR_DEFAULT_VERSION
#define EMULATOR_DEFAULT_VERSION 801
#endif

namespace emulator {

namespace {

int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoi(text) : otherwise;
}

// "36=illegal,2=hang,3=abort"
std::map<int, Fate> fates_from(const char* text) {
  std::map<int, Fate> fates;
  while (text && *text) {
    char* end = nullptr;
    const int id = static_cast<int>(std::strtol(text, &end, 10));
    if (end == text || *end != '=') break;
    fates[id] = end[1] == 'h' ? Fate::kHang : end[1] == 'a' ? Fate::kAbort : Fate::kIllegal;
    text = std::strchr(end, ',');
    if (text) ++text;
  }
  return fates;
}

}  // namespace

const char* label_name(Label label) {
  switch (label) {
    case kMeasured: return "measured";
    case kDocumented: return "documented";
    case kAssumed: break;
  }
  return "assumed";
}

State& state() {
  static State* state = new State;
  return *state;
}

State::State() { reset(); }

void State::reset() {
  config = {from_environment("SPARSE24_EMULATOR_DEVICES", 1),
            from_environment("SPARSE24_EMULATOR_SM", 86),
            from_environment("SPARSE24_EMULATOR_VERSION", EMULATOR_DEFAULT_VERSION),
            from_environment("SPARSE24_EMULATOR_DRIVER", 1) != 0,
            from_environment("SPARSE24_EMULATOR_DEFERRED", 1) != 0,
            from_environment("SPARSE24_EMULATOR_LOG", 0) != 0,
            -1,
            false,
            from_environment("SPARSE24_EMULATOR_STRICT", 0) != 0,
            fates_from(std::getenv("SPARSE24_EMULATOR_FATES"))};
  context_is_dead = false;
  refusals = synchronizations = allocations = launches = calls_ = fail_at_ = 0;
  fail_status_ = 0;
  last_refusal.clear();
  violations.clear();
}

void State::fail_at(long n, int status) {
  fail_at_ = n > 0 ? calls_ + n : 0;
  fail_status_ = status;
}

void State::refuse(const Refusal& refusal) {
  ++refusals;
  last_refusal = std::string(function) + ": " + refusal.rule + " [" + label_name(refusal.label) + "]";
  if (config.log) std::fprintf(stderr, "emulator: refused %d: %s\n", refusal.status, last_refusal.c_str());
}

void State::violate(Label label, const std::string& rule) {
  constexpr std::size_t kMost = 1000;
  const std::string line = std::string(function) + ": " + rule + " [" + label_name(label) + "]";
  if (config.log) std::fprintf(stderr, "emulator: violation: %s\n", line.c_str());
  if (violations.size() < kMost) violations.push_back(line);
}

void violate_and_refuse(int status, Label label, const char* rule) {
  violate(label, rule);
  throw Refusal{status, label, rule};
}

}  // namespace emulator

using emulator::state;

extern "C" {

#define CONTROL __attribute__((visibility("default")))

CONTROL void emulator_reset() {
  const std::lock_guard lock(state().mutex);
  emulator::forget_objects();
  emulator::forget_blas();
  emulator::forget_runtime();
  emulator::forget_streams();
  emulator::forget_memory();
  state().reset();
}

CONTROL void emulator_set_device_count(int count) {
  const std::lock_guard lock(state().mutex);
  state().config.devices = count;
}

CONTROL void emulator_set_sm(int sm) {
  const std::lock_guard lock(state().mutex);
  state().config.sm = sm;
}

CONTROL void emulator_set_version(int version) {
  const std::lock_guard lock(state().mutex);
  state().config.version = version;
}

CONTROL void emulator_set_driver(int present) {
  const std::lock_guard lock(state().mutex);
  state().config.driver = present != 0;
}

CONTROL void emulator_set_deferred(int deferred) {
  const std::lock_guard lock(state().mutex);
  state().config.deferred = deferred != 0;
  if (!deferred) emulator::run_everything();
}

CONTROL void emulator_set_idle(int idle) {
  const std::lock_guard lock(state().mutex);
  state().config.idle = idle != 0;
}

CONTROL void emulator_set_search_winner(int id) {
  const std::lock_guard lock(state().mutex);
  state().config.search_winner = id;
}

CONTROL void emulator_set_strict(int strict) {
  const std::lock_guard lock(state().mutex);
  state().config.strict = strict != 0;
}

CONTROL void emulator_fail_at(long n, int status) {
  const std::lock_guard lock(state().mutex);
  state().fail_at(n, status);
}

CONTROL long emulator_calls() {
  const std::lock_guard lock(state().mutex);
  return state().calls();
}

CONTROL const char* emulator_violations() {
  const std::lock_guard lock(state().mutex);
  thread_local std::string text;
  text.clear();
  for (const std::string& line : state().violations) text += (text.empty() ? "" : "\n") + line;
  return text.c_str();
}

CONTROL void emulator_clear_violations() {
  const std::lock_guard lock(state().mutex);
  state().violations.clear();
}

CONTROL long emulator_refusals() {
  const std::lock_guard lock(state().mutex);
  return state().refusals;
}

CONTROL const char* emulator_last_refusal() {
  const std::lock_guard lock(state().mutex);
  thread_local std::string text;
  text = state().last_refusal;
  return text.c_str();
}

CONTROL long emulator_live_objects() {
  const std::lock_guard lock(state().mutex);
  return emulator::live_library_objects() + emulator::live_streams() + emulator::live_runtime_objects() +
         emulator::live_blas_objects();
}

CONTROL size_t emulator_live_memory() {
  const std::lock_guard lock(state().mutex);
  return emulator::live_memory();
}

CONTROL long emulator_synchronizations() {
  const std::lock_guard lock(state().mutex);
  return state().synchronizations;
}

CONTROL long emulator_allocations() {
  const std::lock_guard lock(state().mutex);
  return state().allocations;
}

CONTROL long emulator_launches() {
  const std::lock_guard lock(state().mutex);
  return state().launches;
}

}  // extern "C"
