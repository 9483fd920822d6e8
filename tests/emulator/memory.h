// Device memory: an arena of its own, so that a device address is never a host one, with margins around each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "state.h"

namespace emulator {

enum class MemoryKind { kDevice, kPinned, kManaged };

struct Block {
  std::uintptr_t address = 0;
  std::size_t size = 0;
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;
  bool freeing = false;  // cudaFreeAsync is queued
};

void* allocate(std::size_t size, MemoryKind kind, int device);
// Refuses what is not the start of a live block.
void release(void* address);
// The live block that holds an address, or null.
Block* find_block(const void* address);
bool in_arena(const void* address);

// Whether [address, address + size) may be touched by the device. Memory unknown to the arena is taken on trust; a
// range that leaves its block, or lies in none, is a violation that names `what`.
bool check_range(const void* address, std::size_t size, const char* what);

// Notes a violation for every margin that was written to.
void check_margins();
std::size_t live_memory();
void forget_memory();

}  // namespace emulator
