// The products of one instruction set: included inside its namespace, after its Vec. Each header here
// includes those it builds on. (Masks are in ../masks.)
// Nothing in them may call a std template or an inline function of another header: the linker keeps one
// copy of those, and it could be the one compiled with instructions that the machine does not have.
//
// A Vec is kLanes float32 lanes, in parts of 128 bits. What its file defines before it includes this one:
//   zero broadcast load store fma add mul div clamp larger relu round pow2    the usual, lane by lane; load and store
//                                                 take float, Float16 and BFloat16, and convert; load int8, too
//   load_quad, splat                              four neighbours, of which splat takes one to all lanes
//   load_quads, store_quads, transpose4           four floats a row, transposed inside every part
//   Indices, load_indices, pick                   the 2-bit indices of kLanes kept values, and what they name
//   load_masked, load_lanes                       some lanes; each lane from its own address
//   sum                                           of all lanes
//   kExpands, kExpandedTokens                     whether kept values can be put to their places by a mask of bits,
//                                                 and for how many tokens that pays: expansion_masks, expand
//   Pairs ...                                     see pairs-inl.h
#pragma once

#include "conv2d-inl.h"
#include "few_tokens-inl.h"
#include "linear-inl.h"
#include "many_tokens-inl.h"
#include "pairs-inl.h"
#include "quantize-inl.h"

// fp16 or bf16 to float32 and back, a vector at a time; the tail goes through one on the stack.
template <typename W>
static void widen_as(const W* from, std::int64_t count, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i == count) return;
  W tail[kLanes] = {};
  float wide[kLanes];
  for (std::int64_t j = i; j < count; ++j) tail[j - i] = from[j];
  store(wide, load(tail));
  for (std::int64_t j = i; j < count; ++j) to[j] = wide[j - i];
}

template <typename W>
static void narrow_as(const float* from, std::int64_t count, W* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i == count) return;
  float tail[kLanes] = {};
  W narrow[kLanes];
  for (std::int64_t j = i; j < count; ++j) tail[j - i] = from[j];
  store(narrow, load(tail));
  for (std::int64_t j = i; j < count; ++j) to[j] = narrow[j - i];
}

static void widen(const void* from, DType dtype, std::int64_t count, float* to) {
  if (dtype == DType::kBFloat16) return widen_as(static_cast<const BFloat16*>(from), count, to);
  if (dtype == DType::kInt8) return widen_as(static_cast<const std::int8_t*>(from), count, to);
  widen_as(static_cast<const Float16*>(from), count, to);
}

static void narrow(const float* from, DType dtype, std::int64_t count, void* to) {
  if (dtype == DType::kBFloat16) return narrow_as(from, count, static_cast<BFloat16*>(to));
  narrow_as(from, count, static_cast<Float16*>(to));
}
