// Masks as bits, eight to a byte, the first in the lowest bit: packed, unpacked, and applied to numbers of
// any width. Compilers turn the loops over the eight places of a byte into vectors of the baseline.

#include "cpu/kernels.h"
#include "sparse24.h"

namespace sparse24 {
namespace {

constexpr std::int64_t kRun = 1 << 15;  // bytes of bits that a thread takes at once: a multiple of a page

// body(first byte, one past the last), by several threads where that pays.
template <typename Body>
void in_runs(std::int64_t bytes, int threads, Body body) {
  const std::int64_t runs = (bytes + kRun - 1) / kRun;
#pragma omp parallel for schedule(static) num_threads(cpu::usable_threads(threads)) if (runs > 1)
  for (std::int64_t run = 0; run < runs; ++run) body(run * kRun, run + 1 == runs ? bytes : (run + 1) * kRun);
}

template <typename Word>
void apply(Word* numbers, std::int64_t count, const std::uint8_t* bits, int threads) {
  in_runs(count / 8, threads, [=](std::int64_t begin, std::int64_t end) {
    constexpr Word kPlace[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    for (std::int64_t byte = begin; byte < end; ++byte) {
      const Word kept = bits[byte];
      Word* eight = numbers + 8 * byte;
      for (int i = 0; i < 8; ++i) eight[i] &= static_cast<Word>(-static_cast<Word>((kept & kPlace[i]) != 0));
    }
  });
  for (std::int64_t i = count / 8 * 8; i < count; ++i) {
    if ((bits[i / 8] >> (i % 8) & 1) == 0) numbers[i] = 0;
  }
}

}  // namespace

void pack_mask(const std::uint8_t* mask, std::int64_t count, std::uint8_t* bits, int threads) {
  in_runs(count / 8, threads, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t byte = begin; byte < end; ++byte) {
      unsigned packed = 0;
      for (unsigned i = 0; i < 8; ++i) packed |= static_cast<unsigned>(mask[8 * byte + i] != 0) << i;
      bits[byte] = static_cast<std::uint8_t>(packed);
    }
  });
  if (count % 8 == 0) return;
  unsigned packed = 0;
  for (std::int64_t i = count / 8 * 8; i < count; ++i) packed |= static_cast<unsigned>(mask[i] != 0) << (i % 8);
  bits[count / 8] = static_cast<std::uint8_t>(packed);
}

void unpack_mask(const std::uint8_t* bits, std::int64_t count, std::uint8_t* mask, int threads) {
  in_runs(count / 8, threads, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t byte = begin; byte < end; ++byte) {
      for (int i = 0; i < 8; ++i) mask[8 * byte + i] = bits[byte] >> i & 1;
    }
  });
  for (std::int64_t i = count / 8 * 8; i < count; ++i) mask[i] = bits[i / 8] >> (i % 8) & 1;
}

void apply_mask_bits(void* numbers, int bytes_each, std::int64_t count, const std::uint8_t* bits, int threads) {
  if (bytes_each == 2) return apply(static_cast<std::uint16_t*>(numbers), count, bits, threads);
  if (bytes_each == 4) return apply(static_cast<std::uint32_t*>(numbers), count, bits, threads);
  apply(static_cast<std::uint64_t*>(numbers), count, bits, threads);
}

}  // namespace sparse24
