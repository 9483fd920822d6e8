#include "objects.h"

#include <cstring>
#include <unordered_map>

#include "streams.h"

namespace emulator {

namespace {

// All that is ever written to a caller's struct.
struct Stamp {
  std::uint64_t magic;
  Kind kind;
  std::uint64_t id;
  const void* self;
};
constexpr std::uint64_t kMagic = 0x5053343265736c65;
static_assert(sizeof(Stamp) == 32);

struct Registry {
  std::uint64_t last_id = 0;
  std::unordered_map<std::uint64_t, std::shared_ptr<Object>> objects;
  long overwritten = 0;
};

Registry& registry() {
  static Registry* registry = new Registry;
  return *registry;
}

// The caller's struct may have any alignment, and is constant for the compiler.
Stamp stamp_of(const void* raw) {
  Stamp stamp;
  std::memcpy(&stamp, raw, sizeof stamp);
  return stamp;
}

// The library fills the whole struct of its version (measured sizes), so that a client that brings a smaller one, of
// another version's header, is damaged here too.
std::size_t opaque_bytes() {
  const int version = state().config.version;
  return version >= 800 ? 512 : version >= 700 ? 1024 : 13072;
}

constexpr unsigned char kFiller = 0x5c;

// A matmul descriptor has no destroy, nor has a selection before 0.8.
bool has_destroy(Kind kind) {
  return kind != Kind::kMatmul && (kind != Kind::kAlgorithm || state().config.version >= 800);
}

}  // namespace

std::shared_ptr<Object> find_object(const void* raw, Kind kind) {
  require(raw != nullptr, kInvalidValue, kMeasured, "an opaque struct is a null pointer");
  const Stamp stamp = stamp_of(raw);
  require(stamp.magic == kMagic && stamp.kind == kind, kInvalidValue, kMeasured,
          "an opaque struct was never initialised, or is already destroyed");
  if (stamp.self != raw && kind == Kind::kMatmul && state().config.version >= 1000) {
    // measured (0.10): a copy of a matmul descriptor serves while the original lives.
    const auto original = registry().objects.find(stamp.id);
    if (original != registry().objects.end() && in_place(*original->second)) return original->second;
  }
  if (stamp.self != raw) {
    violate_and_refuse(kInvalidValue, kDocumented, "an opaque struct was copied or moved after its Init");
  }
  const auto found = registry().objects.find(stamp.id);
  require(found != registry().objects.end(), kInvalidValue, kMeasured, "an opaque struct belongs to nothing alive");
  return found->second;
}

bool in_place(const Object& object) {
  if (!object.alive) return false;
  const Stamp stamp = stamp_of(object.self);
  return stamp.magic == kMagic && stamp.id == object.id;
}

void add_object(const void* raw, const std::shared_ptr<Object>& object) {
  Registry& r = registry();
  if (const Stamp old = stamp_of(raw); old.magic == kMagic && old.self == raw) {
    if (const auto found = r.objects.find(old.id); found != r.objects.end()) {
      found->second->alive = false;
      if (has_destroy(found->second->kind)) ++r.overwritten;
      r.objects.erase(found);
    }
  }
  if (state().config.version >= 800 && reinterpret_cast<std::uintptr_t>(raw) % 16 != 0) {
    violate(kDocumented, "an opaque struct must be aligned to 16 bytes since 0.8");
  }
  std::memset(const_cast<void*>(raw), kFiller, opaque_bytes());
  object->id = ++r.last_id;
  object->self = raw;
  r.objects.emplace(object->id, object);
  const Stamp stamp{kMagic, object->kind, object->id, raw};
  std::memcpy(const_cast<void*>(raw), &stamp, sizeof stamp);
}

void destroy_object(const void* raw, const std::shared_ptr<Object>& object) {
  object->alive = false;
  registry().objects.erase(object->id);
  std::memset(const_cast<void*>(raw), 0, sizeof(Stamp));
}

void forget_objects() {
  registry().objects.clear();
  registry().overwritten = 0;
}

long live_library_objects() {
  long live = registry().overwritten;
  for (const auto& [id, object] : registry().objects) live += has_destroy(object->kind);
  return live;
}

HandleObject& use_handle(const void* raw) {
  HandleObject& handle = *find<HandleObject>(raw);  // the registry keeps it
  if (handle.thread != this_thread()) {
    violate_and_refuse(kInternalError, kDocumented, "a handle is used by another thread than the one that made it");
  }
  if (handle.device != current_device()) {
    violate_and_refuse(kInvalidValue, kAssumed, "a handle is used while another device is current");
  }
  return handle;
}

}  // namespace emulator
