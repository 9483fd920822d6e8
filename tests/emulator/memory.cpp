#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "sparse24.h"

namespace emulator {

namespace {

constexpr std::size_t kMargin = 1024, kPage = 4096;
constexpr unsigned char kMarginByte = 0xa5;
// Read as a number of any floating type this is NaN, so memory that was never written shows.
constexpr int kPoison = 0xff;

struct Slot {
  std::uintptr_t start;
  std::size_t size;
};

struct Arena {
  std::uintptr_t begin = 0, end = 0, next = 0;
  std::map<std::uintptr_t, Block> blocks;                 // by address
  std::multimap<std::size_t, std::uintptr_t> free_slots;  // by size
  std::size_t live = 0;

  Arena() {
    for (std::size_t size = std::size_t{1} << 38; size >= std::size_t{1} << 30; size /= 2) {
      void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) continue;
      begin = next = reinterpret_cast<std::uintptr_t>(memory);
      end = begin + size;
      return;
    }
  }
};

Arena& arena() {
  static Arena* arena = new Arena;
  return *arena;
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }  // NOLINT: an arena is addresses

std::size_t slot_size(std::size_t size) {
  return static_cast<std::size_t>(sparse24::round_up(static_cast<std::int64_t>(size + 2 * kMargin), kPage));
}
Slot slot_of(const Block& block) { return {block.address - kMargin, slot_size(block.size)}; }

// The margins reach from the slot's ends to the block.
bool margin_intact(std::uintptr_t from, std::uintptr_t to) {
  const auto* bytes = static_cast<const unsigned char*>(pointer(from));
  return std::all_of(bytes, bytes + (to - from), [](unsigned char byte) { return byte == kMarginByte; });
}

std::string name_of(const Block& block) {
  char text[80];
  std::snprintf(text, sizeof text, "block %p of %zu bytes", pointer(block.address), block.size);
  return text;
}

void check_margins_of(const Block& block) {
  const Slot slot = slot_of(block);
  if (!margin_intact(slot.start, block.address)) {
    violate(kDocumented, "memory before the " + name_of(block) + " was written to");
    std::memset(pointer(slot.start), kMarginByte, kMargin);
  }
  const std::uintptr_t after = block.address + block.size;
  if (!margin_intact(after, slot.start + slot.size)) {
    violate(kDocumented, "memory after the " + name_of(block) + " was written to");
    std::memset(pointer(after), kMarginByte, slot.start + slot.size - after);
  }
}

}  // namespace

void* allocate(std::size_t size, MemoryKind kind, int device) {
  Arena& a = arena();
  Slot slot{0, slot_size(size)};
  if (const auto reused = a.free_slots.find(slot.size); reused != a.free_slots.end()) {
    slot.start = reused->second;
    a.free_slots.erase(reused);
  } else {
    if (slot.size < size || a.end - a.next < slot.size) throw std::bad_alloc();
    slot.start = a.next;
    a.next += slot.size;
  }
  if (mprotect(pointer(slot.start), slot.size, PROT_READ | PROT_WRITE) != 0) {
    a.free_slots.emplace(slot.size, slot.start);
    throw std::bad_alloc();
  }
  const Block block{slot.start + kMargin, size, kind, device, false};
  std::memset(pointer(slot.start), kMarginByte, slot.size);
  std::memset(pointer(block.address), kPoison, size);
  a.blocks.emplace(block.address, block);
  a.live += size;
  return pointer(block.address);
}

void release(void* address) {
  Arena& a = arena();
  const auto found = a.blocks.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == a.blocks.end()) {
    violate_and_refuse(1, kDocumented, "freed memory that was not allocated, or twice");
  }
  const Block block = found->second;
  check_margins_of(block);
  a.blocks.erase(found);
  a.live -= block.size;
  // The pages go back, and touching them from now on faults.
  const Slot slot = slot_of(block);
  madvise(pointer(slot.start), slot.size, MADV_DONTNEED);
  mprotect(pointer(slot.start), slot.size, PROT_NONE);
  a.free_slots.emplace(slot.size, slot.start);
}

bool in_arena(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  return at >= arena().begin && at < arena().end;
}

Block* find_block(const void* address) {
  if (!in_arena(address)) return nullptr;
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = arena().blocks.upper_bound(at);
  if (next == arena().blocks.begin()) return nullptr;
  Block& block = std::prev(next)->second;
  return at - block.address < std::max<std::size_t>(block.size, 1) ? &block : nullptr;
}

bool check_range(const void* address, std::size_t size, const char* what) {
  if (size == 0) return true;
  if (!in_arena(address)) {
    if (state().config.strict) violate(kDocumented, std::string(what) + " is memory of the host");
    return !state().config.strict;
  }
  const Block* block = find_block(address);
  if (!block) {
    violate(kDocumented, std::string(what) + " lies in memory that was freed or never allocated");
    return false;
  }
  const std::size_t room = block->address + block->size - reinterpret_cast<std::uintptr_t>(address);
  if (size > room) {
    violate(kDocumented, std::string(what) + " takes " + std::to_string(size) + " bytes where the " + name_of(*block) +
                             " has " + std::to_string(room) + " left");
    return false;
  }
  return true;
}

void check_margins() {
  for (const auto& [address, block] : arena().blocks) check_margins_of(block);
}

std::size_t live_memory() { return arena().live; }

void forget_memory() {
  Arena& a = arena();
  for (const auto& [address, block] : a.blocks) {
    const Slot slot = slot_of(block);
    madvise(pointer(slot.start), slot.size, MADV_DONTNEED);
    mprotect(pointer(slot.start), slot.size, PROT_NONE);
    a.free_slots.emplace(slot.size, slot.start);
  }
  a.blocks.clear();
  a.live = 0;
}

}  // namespace emulator
