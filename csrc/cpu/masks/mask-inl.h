// 2:4 masks by magnitude. Included once per instruction set, inside its namespace, after Lanes32 and
// Lanes16: integer lanes of one width with
//     load, store, magnitude (bits without the sign), rotate<R> (inside groups of four lanes),
//     greater (-1 or 0), add, both (and), all(value), ties<R>, store_mask
// Magnitudes order as integers; NaN lies above Inf. One code serves fp16 and bf16.

#pragma once

// How many of the other three of its group each lane beats, as minus that number. Lane i meets lane
// (i + R) % 4; where that is a later lane a tie is a win, and ties<R> holds -1 there.
template <typename L>
static inline typename L::Reg kept_in_groups(typename L::Reg weights) {
  const auto size = L::magnitude(weights);
  const auto one = L::greater(size, L::add(L::template rotate<1>(size), L::template ties<1>()));
  const auto two = L::greater(size, L::add(L::template rotate<2>(size), L::template ties<2>()));
  const auto three = L::greater(size, L::add(L::template rotate<3>(size), L::template ties<3>()));
  return L::greater(L::all(-1), L::add(one, L::add(two, three)));  // two wins or more
}

// The same for four rows of weights whose groups run across them.
template <typename L>
static inline void kept_across_rows(const typename L::Reg (&weights)[4], typename L::Reg (&kept)[4]) {
  typename L::Reg size[4], wins[4];
  for (int i = 0; i < 4; ++i) {
    size[i] = L::magnitude(weights[i]);
    wins[i] = L::all(i - 3);  // a win over every later row, unless that one is greater
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const auto later = L::greater(size[j], size[i]);
      wins[j] = L::add(wins[j], later);
      wins[i] = L::subtract(wins[i], later);
    }
  }
  for (int i = 0; i < 4; ++i) kept[i] = L::greater(L::all(-1), wins[i]);
}

// Groups of `count` weights, `step` apart, one after the other: what the vector loops leave over.
template <typename L>
static void mask_group(typename L::Scalar* weights, std::int64_t step, std::int64_t count, std::uint8_t* mask,
                       bool prune) {
  using Scalar = typename L::Scalar;
  Scalar size[4] = {};
  int wins[4] = {};
  for (std::int64_t i = 0; i < count; ++i) size[i] = static_cast<Scalar>(weights[i * step] & L::kMagnitude);
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t j = i + 1; j < count; ++j) ++wins[size[j] > size[i] ? j : i];
  }
  // The rank of the last of a short group counts only those present, so two always remain.
  for (std::int64_t i = 0; i < count; ++i) {
    const bool keep = count - 1 - wins[i] < 2;
    if (mask != nullptr) mask[i * step] = keep;
    if (prune && !keep) weights[i * step] = 0;
  }
}

// [length] contiguous weights.
template <typename L>
static void mask_row(typename L::Scalar* weights, std::int64_t length, std::uint8_t* mask, bool prune) {
  constexpr std::int64_t kStep = L::kLanes * L::kRegsPerMask;
  std::int64_t i = 0;
  for (; i + kStep <= length; i += kStep) {
    typename L::Reg kept[L::kRegsPerMask];
    for (int r = 0; r < L::kRegsPerMask; ++r) {
      const auto w = L::load(weights + i + r * L::kLanes);
      kept[r] = kept_in_groups<L>(w);
      if (prune) L::store(weights + i + r * L::kLanes, L::both(w, kept[r]));
    }
    if (mask != nullptr) L::store_mask(mask + i, kept);
  }
  for (; i < length; i += 4) {
    mask_group<L>(weights + i, 1, length - i < 4 ? length - i : 4, mask == nullptr ? nullptr : mask + i, prune);
  }
}

// Four rows of `inner` contiguous weights, a group across them at every position.
template <typename L>
static void mask_four_rows(typename L::Scalar* weights, std::int64_t inner, std::uint8_t* mask, bool prune) {
  std::int64_t i = 0;
  for (; i + L::kLanes <= inner; i += L::kLanes) {
    typename L::Reg rows[4], kept[4];
    for (int r = 0; r < 4; ++r) rows[r] = L::load(weights + r * inner + i);
    kept_across_rows<L>(rows, kept);
    for (int r = 0; r < 4; ++r) {
      if (prune) L::store(weights + r * inner + i, L::both(rows[r], kept[r]));
      if (mask != nullptr) L::store_mask_part(mask + r * inner + i, kept[r]);
    }
  }
  for (; i < inner; ++i) mask_group<L>(weights + i, inner, 4, mask == nullptr ? nullptr : mask + i, prune);
}

template <typename L>
static void mask24(const Mask24& a) {
  using Scalar = typename L::Scalar;
  auto* weights = static_cast<Scalar*>(a.weight);
  const auto at = [&](std::int64_t i) { return a.mask == nullptr ? nullptr : a.mask + i; };
  std::int64_t rows = a.outer, length = a.length;
  if (a.inner == 1 && length % 4 == 0) {  // one long row, cut into even runs of whole groups
    const std::int64_t total = rows * length;
    constexpr std::int64_t kRun = 16384;
    rows = (total + kRun - 1) / kRun;
#pragma omp parallel for schedule(static) num_threads(usable_threads(a.threads)) if (rows >= 4)
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t begin = row * kRun;
      mask_row<L>(weights + begin, total - begin < kRun ? total - begin : kRun, at(begin), a.prune);
    }
    return;
  }
  if (a.inner == 1) {
#pragma omp parallel for schedule(static) num_threads(usable_threads(a.threads)) if (rows * length >= 65536)
    for (std::int64_t row = 0; row < rows; ++row)
      mask_row<L>(weights + row * length, length, at(row * length), a.prune);
    return;
  }
  const std::int64_t groups = (length + 3) / 4;
#pragma omp parallel for schedule(static) num_threads(usable_threads(a.threads)) if (rows * length * a.inner >= 65536)
  for (std::int64_t i = 0; i < rows * groups; ++i) {
    const std::int64_t begin = (i / groups * length + i % groups * 4) * a.inner;
    const std::int64_t count = length - i % groups * 4;
    if (count >= 4) {
      mask_four_rows<L>(weights + begin, a.inner, at(begin), a.prune);
    } else {
      for (std::int64_t p = 0; p < a.inner; ++p) {
        mask_group<L>(weights + begin + p, a.inner, count, at(begin + p), a.prune);
      }
    }
  }
}
