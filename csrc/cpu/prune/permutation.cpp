// An order of columns in which 2:4 keeps more of a score, by iterated linear assignment: one column of every group of
// four is taken out, and all are put back where together they keep most. With h1 >= h2 >= h3 what a row keeps of the
// other three, a column x brings it to h1 + max(h2, x). So the worth of column s in group t is, but for what all
// columns have in common there, the sum over rows of max(h2[t], x[s]), and the best places are an assignment problem.
// Where every column stays is one of its solutions, so no step loses.

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "assignment.h"
#include "cpu/kernels.h"
#include "error.h"
#include "sparse24.h"

namespace sparse24 {
namespace {

// Columns that lie one after the other, zeros behind their last row.
class Columns {
 public:
  Columns(const ColumnSearch& a, std::int64_t first, std::int64_t count)
      : stride_(round_up(std::max<std::int64_t>(a.rows, 1), 16)),
        numbers_(static_cast<std::size_t>(count * stride_), 0.0f) {
    constexpr std::int64_t kTile = 32;
    const int threads = cpu::usable_threads(a.threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && a.rows * count >= 65536)
    for (std::int64_t c0 = 0; c0 < count; c0 += kTile) {
      for (std::int64_t r0 = 0; r0 < a.rows; r0 += kTile) {
        for (std::int64_t r = r0; r < std::min(r0 + kTile, a.rows); ++r) {
          const float* row = a.score + r * a.row_stride + first;
          for (std::int64_t c = c0; c < std::min(c0 + kTile, count); ++c) {
            numbers_[static_cast<std::size_t>(c * stride_ + r)] = row[c];
          }
        }
      }
    }
  }
  std::int64_t stride() const { return stride_; }
  const float* at(std::int64_t column) const { return numbers_.data() + column * stride_; }

 private:
  std::int64_t stride_;
  std::vector<float> numbers_;
};

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers with every standard library.
struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
};

float second_of(float a, float b, float c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

double best_two(float a, float b, float c, float d) {
  const float high = std::max(a, b), low = std::min(a, b), other = std::max(c, d), less = std::min(c, d);
  return double{std::max(high, other)} + double{std::max(std::min(high, other), high > other ? low : less)};
}

double kept_in(const Columns& columns, std::int64_t rows, const std::vector<std::int64_t>& order) {
  double kept = 0;
  for (std::size_t g = 0; g < order.size(); g += 4) {
    const float *a = columns.at(order[g]), *b = columns.at(order[g + 1]), *c = columns.at(order[g + 2]),
                *d = columns.at(order[g + 3]);
    for (std::int64_t r = 0; r < rows; ++r) kept += best_two(a[r], b[r], c[r], d[r]);
  }
  return kept;
}

class BlockSearch {
 public:
  BlockSearch(const ColumnSearch& a, std::int64_t first)
      : a_(a),
        columns_(a, first, a.block),
        groups_(a.block / 4),
        random_{a.seed},
        order_(static_cast<std::size_t>(a.block)),
        slot_(static_cast<std::size_t>(groups_)),
        taken_(static_cast<std::size_t>(groups_)),
        second_(static_cast<std::size_t>(groups_ * columns_.stride())),
        worth_(static_cast<std::size_t>(groups_ * groups_)) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  // The column that comes to each place; groups and columns in them in ascending order.
  const std::vector<std::int64_t>& run() {
    const double kept = kept_in(columns_, a_.rows, order_);
    double gained = 0;
    for (std::int64_t done = 0; done < a_.steps && groups_ > 1; ++done) {
      if (done % kWindow == 0) {
        if (done > 0 && gained <= a_.tolerance * kept) break;
        gained = 0;
      }
      gained += step();
      if (a_.poll != nullptr) a_.poll();
    }
    sort_groups();
    return order_;
  }

 private:
  static constexpr std::int64_t kWindow = 8;

  double step() {
    const int threads = cpu::usable_threads(a_.threads);
    for (std::int64_t& slot : slot_) slot = static_cast<std::int64_t>(random_.next() >> 62);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && groups_ * a_.rows >= 16384)
    for (std::int64_t g = 0; g < groups_; ++g) take_out(g);
    cpu::kernels().max_plus({taken_.data(), second_.data(), groups_, columns_.stride(), worth_.data(), threads});
    const std::vector<std::int32_t>& group_of = assignment_.solve(worth_.data(), groups_);
    double before = 0, after = 0;
    for (std::int64_t s = 0; s < groups_; ++s) {
      before += double{worth_[static_cast<std::size_t>(s * groups_ + s)]};
      after += double{worth_[static_cast<std::size_t>(s * groups_ + group_of[static_cast<std::size_t>(s)])]};
    }
    if (after <= before) return 0;
    moved_.resize(slot_.size());
    for (std::size_t s = 0; s < moved_.size(); ++s) moved_[s] = order_[s * 4 + static_cast<std::size_t>(slot_[s])];
    for (std::size_t s = 0; s < moved_.size(); ++s) {
      const std::size_t g = static_cast<std::size_t>(group_of[s]);
      order_[g * 4 + static_cast<std::size_t>(slot_[g])] = moved_[s];
    }
    return after - before;
  }

  void take_out(std::int64_t g) {
    const float* rest[3];
    int found = 0;
    for (std::int64_t k = 0; k < 4; ++k) {
      const float* column = columns_.at(order_[static_cast<std::size_t>(g * 4 + k)]);
      if (k == slot_[static_cast<std::size_t>(g)]) {
        taken_[static_cast<std::size_t>(g)] = column;
      } else {
        rest[found++] = column;
      }
    }
    float* second = second_.data() + g * columns_.stride();
    for (std::int64_t r = 0; r < columns_.stride(); ++r) second[r] = second_of(rest[0][r], rest[1][r], rest[2][r]);
  }

  void sort_groups() {
    using Four = std::array<std::int64_t, 4>;
    std::vector<Four> fours(static_cast<std::size_t>(groups_));
    for (std::size_t g = 0; g < fours.size(); ++g) {
      std::copy_n(order_.begin() + static_cast<std::ptrdiff_t>(4 * g), 4, fours[g].begin());
      std::sort(fours[g].begin(), fours[g].end());
    }
    std::sort(fours.begin(), fours.end());
    for (std::size_t g = 0; g < fours.size(); ++g) {
      std::copy_n(fours[g].begin(), 4, order_.begin() + static_cast<std::ptrdiff_t>(4 * g));
    }
  }

  const ColumnSearch& a_;
  Columns columns_;
  std::int64_t groups_;
  Random random_;
  std::vector<std::int64_t> order_, slot_, moved_;
  std::vector<const float*> taken_;
  std::vector<float> second_, worth_;
  cpu::Assignment assignment_;
};

}  // namespace

double kept_sum(const float* score, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                const std::int64_t* order, int wish) {
  std::vector<double> sums(static_cast<std::size_t>(rows), 0.0);  // added in order, whatever the threads
  const std::int64_t whole = cols / 4 * 4;
  const int threads = cpu::usable_threads(wish);
  const auto column = [order](std::int64_t c) { return order == nullptr ? c : order[c]; };
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * cols >= 65536)
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = score + r * row_stride;
    double sum = 0;
    for (std::int64_t c = 0; c < whole; c += 4) {
      sum += best_two(row[column(c)], row[column(c + 1)], row[column(c + 2)], row[column(c + 3)]);
    }
    if (whole < cols) {
      float rest[4] = {};
      for (std::int64_t c = whole; c < cols; ++c) rest[c - whole] = row[column(c)];
      sum += best_two(rest[0], rest[1], rest[2], rest[3]);
    }
    sums[static_cast<std::size_t>(r)] = sum;
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void search_columns(const ColumnSearch& a) {
  if (a.block < 4 || a.block % 4 != 0 || a.cols % a.block != 0) {
    throw InvalidArgument(message("columns are permuted in blocks of a multiple of 4 that divides their number; ",
                                  a.cols, " columns in blocks of ", a.block, " are not"));
  }
  for (std::int64_t first = 0; first < a.cols; first += a.block) {
    BlockSearch search(a, first);
    const std::vector<std::int64_t>& order = search.run();
    for (std::size_t i = 0; i < order.size(); ++i) a.order[first + static_cast<std::int64_t>(i)] = first + order[i];
  }
}

}  // namespace sparse24
