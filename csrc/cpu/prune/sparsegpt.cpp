// The column loop of SparseGPT (Frantar and Alistarh 2023) over a block of columns: in every group of four the two
// smallest w^2 / u_jj^2 are pruned, and the error of each pruned weight is passed on to the columns behind it.
// A row is independent of all others. Compilers turn the loop over later columns into vectors of the baseline.

#include "cpu/kernels.h"
#include "error.h"
#include "sparse24.h"

namespace sparse24 {
namespace {

// Which of the columns [begin, end) of a row are kept: all but the `pruned` smallest scores, ties to the lower index.
unsigned keep_largest(const float* row, const float* inverse, std::int64_t begin, std::int64_t end) {
  const int count = static_cast<int>(end - begin);
  float score[4];
  for (int i = 0; i < count; ++i) {
    const float v = row[begin + i] * inverse[begin + i];
    score[i] = v * v;
  }
  unsigned kept = 0;
  for (int i = 0; i < count; ++i) {
    int ahead = 0;
    for (int j = 0; j < count; ++j) ahead += score[j] > score[i] || (score[j] == score[i] && j < i);
    kept |= static_cast<unsigned>(ahead < 2) << i;
  }
  return kept;
}

void prune_row(const SparseGptBlock& a, const float* inverse, float* row, float* error, std::uint8_t* mask) {
  for (std::int64_t group = 0; group < a.cols; group += 4) {
    const std::int64_t end = group + 4 < a.cols ? group + 4 : a.cols;
    const unsigned kept = a.choose ? keep_largest(row, inverse, group, end) : 0;
    for (std::int64_t c = group; c < end; ++c) {
      if (a.choose) mask[c] = static_cast<std::uint8_t>(kept >> (c - group) & 1);
      error[c] = 0;
      if (mask[c] != 0) continue;
      const float e = row[c] * inverse[c];
      const float* u = a.factor + c * a.factor_stride;
      error[c] = e;
      row[c] = 0;
      for (std::int64_t later = c + 1; later < a.cols; ++later) row[later] -= e * u[later];
    }
  }
}

}  // namespace

void sparsegpt_block(const SparseGptBlock& a) {
  constexpr std::int64_t kMost = 256;
  if (a.cols < 0 || a.cols > kMost) throw InvalidArgument(message("a block has at most 256 columns, not ", a.cols));
  float inverse[kMost];
  for (std::int64_t c = 0; c < a.cols; ++c) inverse[c] = 1 / a.factor[c * a.factor_stride + c];
  const int threads = cpu::usable_threads(a.threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && a.rows >= 64)
  for (std::int64_t r = 0; r < a.rows; ++r) {
    prune_row(a, inverse, a.weight + r * a.weight_stride, a.error + r * a.cols, a.mask + r * a.mask_stride);
  }
}

}  // namespace sparse24
