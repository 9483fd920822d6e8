// Shortest augmenting paths with the reductions before them of R. Jonker and A. Volgenant, "A Shortest Augmenting Path
// Algorithm for Dense and Sparse Linear Assignment Problems", Computing 38 (1987). Costs are minus the score; only
// the columns' prices are kept, the rows' follow from them.

#include "assignment.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace sparse24::cpu {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

}  // namespace

// A column's price is its least cost; the row that has it takes the column, if it has none yet.
void Assignment::reduce_columns() {
  std::fill(price_.begin(), price_.end(), kInfinite);
  for (std::int64_t i = 0; i < n_; ++i) {
    for (std::int64_t j = 0; j < n_; ++j) {
      const double c = cost(i, j);
      const bool less = c < price_[static_cast<std::size_t>(j)];
      price_[static_cast<std::size_t>(j)] = less ? c : price_[static_cast<std::size_t>(j)];
      from_[static_cast<std::size_t>(j)] = less ? static_cast<std::int32_t>(i) : from_[static_cast<std::size_t>(j)];
    }
  }
  for (std::int64_t j = n_ - 1; j >= 0; --j) {
    const std::size_t column = static_cast<std::size_t>(j), row = static_cast<std::size_t>(from_[column]);
    if (column_of_[row] >= 0) continue;
    column_of_[row] = static_cast<std::int32_t>(j);
    row_of_[column] = static_cast<std::int32_t>(row);
  }
}

// What an assigned row would lose with its second best column is taken off the price of its column; rows without
// one are gathered.
void Assignment::transfer_reduction() {
  free_.clear();
  for (std::int64_t i = 0; i < n_; ++i) {
    const std::int32_t own = column_of_[static_cast<std::size_t>(i)];
    if (own < 0) {
      free_.push_back(static_cast<std::int32_t>(i));
      continue;
    }
    double least = kInfinite;
    for (std::int64_t j = 0; j < n_; ++j) {
      if (j != own) least = std::min(least, cost(i, j) - price_[static_cast<std::size_t>(j)]);
    }
    if (least < kInfinite) {
      price_[static_cast<std::size_t>(own)] -= least - (cost(i, own) - price_[static_cast<std::size_t>(own)]);
    }
  }
}

// Each free row takes its best column, at the price that makes the second best as good; who had it is free then.
void Assignment::reduce_rows() {
  std::int64_t left = 4 * n_;  // rounding could let two rows take a column from each other forever
  std::vector<std::int32_t>& next = columns_;
  next.clear();
  while (!free_.empty() && left-- > 0) {
    const std::int32_t i = free_.back();
    free_.pop_back();
    double best = kInfinite, second = kInfinite;
    std::int32_t at = 0, at_second = 0;
    for (std::int64_t j = 0; j < n_; ++j) {
      const double reduced = cost(i, j) - price_[static_cast<std::size_t>(j)];
      if (reduced >= second) continue;
      if (reduced < best) {
        second = best, at_second = at;
        best = reduced, at = static_cast<std::int32_t>(j);
      } else {
        second = reduced, at_second = static_cast<std::int32_t>(j);
      }
    }
    const bool strict = best < second && second < kInfinite;
    if (strict) {
      price_[static_cast<std::size_t>(at)] -= second - best;
    } else if (row_of_[static_cast<std::size_t>(at)] >= 0) {
      at = at_second;
    }
    const std::int32_t loser = row_of_[static_cast<std::size_t>(at)];
    column_of_[static_cast<std::size_t>(i)] = at;
    row_of_[static_cast<std::size_t>(at)] = i;
    if (loser < 0) continue;
    column_of_[static_cast<std::size_t>(loser)] = -1;
    (strict ? free_ : next).push_back(loser);
  }
  free_.insert(free_.end(), next.begin(), next.end());
}

// The shortest path from a free row to a free column (Dijkstra); rows along it change their columns.
void Assignment::augment(std::int32_t row) {
  std::iota(columns_.begin(), columns_.end(), 0);
  for (std::int64_t j = 0; j < n_; ++j) {
    distance_[static_cast<std::size_t>(j)] = cost(row, j) - price_[static_cast<std::size_t>(j)];
    from_[static_cast<std::size_t>(j)] = row;
  }
  // columns_: [0, scanned) are done, [scanned, reached) have the least distance, the others are farther.
  std::size_t scanned = 0, reached = 0, done = 0;
  const std::size_t n = static_cast<std::size_t>(n_);
  double least = 0;
  std::int32_t end = -1;
  while (end < 0) {
    if (scanned == reached) {
      done = scanned;
      least = kInfinite;
      for (std::size_t k = reached; k < n; ++k) {
        const std::int32_t j = columns_[k];
        const double d = distance_[static_cast<std::size_t>(j)];
        if (d > least) continue;
        if (d < least) reached = scanned, least = d;
        columns_[k] = columns_[reached];
        columns_[reached++] = j;
      }
      for (std::size_t k = scanned; k < reached && end < 0; ++k) {
        if (row_of_[static_cast<std::size_t>(columns_[k])] < 0) end = columns_[k];
      }
      if (end >= 0) break;
    }
    const std::int32_t column = columns_[scanned++], i = row_of_[static_cast<std::size_t>(column)];
    const double base = cost(i, column) - price_[static_cast<std::size_t>(column)] - least;
    for (std::size_t k = reached; k < n; ++k) {
      const std::int32_t j = columns_[k];
      const double d = cost(i, j) - price_[static_cast<std::size_t>(j)] - base;
      if (d >= distance_[static_cast<std::size_t>(j)]) continue;
      distance_[static_cast<std::size_t>(j)] = d;
      from_[static_cast<std::size_t>(j)] = i;
      if (d > least) continue;
      if (row_of_[static_cast<std::size_t>(j)] < 0) {
        end = j;
        break;
      }
      columns_[k] = columns_[reached];
      columns_[reached++] = j;
    }
  }
  for (std::size_t k = 0; k < done; ++k) {
    const std::size_t j = static_cast<std::size_t>(columns_[k]);
    price_[j] += distance_[j] - least;
  }
  for (std::int32_t i = -1; i != row;) {
    i = from_[static_cast<std::size_t>(end)];
    row_of_[static_cast<std::size_t>(end)] = i;
    std::swap(end, column_of_[static_cast<std::size_t>(i)]);
  }
}

const std::vector<std::int32_t>& Assignment::solve(const float* score, std::int64_t n) {
  score_ = score, n_ = n;
  const std::size_t size = static_cast<std::size_t>(n);
  price_.resize(size), distance_.resize(size), from_.assign(size, 0);
  column_of_.assign(size, -1), row_of_.assign(size, -1);
  if (n == 0) return column_of_;
  reduce_columns();
  transfer_reduction();
  reduce_rows();
  reduce_rows();
  columns_.resize(size);
  for (const std::int32_t row : free_) augment(row);
  return column_of_;
}

}  // namespace sparse24::cpu
