// The opaque structs of cuSPARSELt. The caller's bytes hold a stamp of 32 bytes; the state is kept here, by id.
#pragma once

#include <array>

#include "rules.h"
#include "state.h"

namespace emulator {

enum class Kind : std::uint64_t { kHandle = 1, kMatrix, kMatmul, kAlgorithm, kPlan };

struct Object {
  explicit Object(Kind kind) : kind(kind) {}
  virtual ~Object() = default;
  Kind kind;
  std::uint64_t id = 0;
  const void* self = nullptr;
  std::uint64_t handle = 0;  // the id of the handle it was made with
  bool alive = true;
};

struct HandleObject : Object {
  static constexpr Kind kKind = Kind::kHandle;
  HandleObject() : Object(kKind) {}
  std::uint64_t thread = 0;
  int device = 0, sm = 0;
};

struct MatrixObject : Object {
  static constexpr Kind kKind = Kind::kMatrix;
  MatrixObject() : Object(kKind) {}
  Matrix matrix;
  bool in_plan = false;
};

struct MatmulObject : Object {
  static constexpr Kind kKind = Kind::kMatmul;
  MatmulObject() : Object(kKind) {}
  Product product;  // matrices as they stood at the Init
  Epilogue epilogue;
  Pointers pointers;
  std::array<std::shared_ptr<MatrixObject>, 4> matrices;
  int device = 0;
};

struct AlgorithmObject : Object {
  static constexpr Kind kKind = Kind::kAlgorithm;
  AlgorithmObject() : Object(kKind) {}
  Algorithm algorithm;
  std::shared_ptr<MatmulObject> matmul;
};

struct PlanObject : Object {
  static constexpr Kind kKind = Kind::kPlan;
  PlanObject() : Object(kKind) {}
  std::shared_ptr<MatmulObject> matmul;
  std::shared_ptr<AlgorithmObject> algorithm;
  std::shared_ptr<const Problem> problem;
  int device = 0;
};

// Refuses a struct that is null, never initialised, destroyed, or not where its Init found it.
std::shared_ptr<Object> find_object(const void* raw, Kind kind);
template <typename T>
std::shared_ptr<T> find(const void* raw) {
  return std::static_pointer_cast<T>(find_object(raw, T::kKind));
}

// The bytes of an object as they are now: false when the caller's struct is gone, moved or overwritten.
bool in_place(const Object& object);

void add_object(const void* raw, const std::shared_ptr<Object>& object);
void destroy_object(const void* raw, const std::shared_ptr<Object>& object);
void forget_objects();
long live_library_objects();

// The handle of a call, checked for its thread and for the current device.
HandleObject& use_handle(const void* handle);

}  // namespace emulator
