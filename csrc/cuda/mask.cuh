// 2:4 masks by magnitude along the columns of a weight.
#pragma once

#include "access.cuh"

namespace sparse24::cuda {

struct Mask24 {
  void* weight;  // written only when pruning
  std::int64_t rows, cols;
  std::uint8_t* mask;  // null, when pruning: none
};

enum class Prune { kNo, kInPlace };

// The two largest of four magnitudes, as bits 0 to 3. Ties go to the lower index, so the absent weights
// of a short group, given as zeros, lose to all that are there.
template <typename Bits>
SPARSE24_BODY unsigned kept_of_four(const Bits* size) {
  int ahead[4] = {};
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const int later = size[j] > size[i];
      ahead[i] += later;
      ahead[j] += 1 - later;
    }
  }
  unsigned kept = 0;
  for (int i = 0; i < 4; ++i) kept |= static_cast<unsigned>(ahead[i] < 2) << i;
  return kept;
}

// Weights of one thread: whole groups, 16 bytes.
template <typename Bits>
constexpr int kMaskWeights = kAccessBytes / static_cast<int>(sizeof(Bits));

template <typename Bits, Access kAccess, Prune kPrune>
SPARSE24_BODY void mask24_item(const Mask24& a, std::int64_t row, std::int64_t item) {
  constexpr int kCount = kMaskWeights<Bits>;
  const std::int64_t first = item * kCount, live = a.cols - first, at = row * a.cols + first;
  Bits* weights = static_cast<Bits*>(a.weight) + at;
  Bits bits[kCount], size[kCount];
  std::uint8_t mask[kCount];
  load<kAccess>(weights, live, bits);
  for (int i = 0; i < kCount; ++i) size[i] = magnitude(bits[i]);
  for (int group = 0; group < kCount; group += 4) {
    const unsigned kept = kept_of_four(size + group);
    for (int i = 0; i < 4; ++i) {
      mask[group + i] = static_cast<std::uint8_t>(kept >> i & 1);
      if ((kept >> i & 1) == 0) bits[group + i] = 0;
    }
  }
  if (a.mask != nullptr) store<kAccess>(a.mask + at, live, mask);
  if (kPrune == Prune::kInPlace) store<kAccess>(weights, live, bits);
}

}  // namespace sparse24::cuda
