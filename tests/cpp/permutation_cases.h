// Cases of kernels_test: the product and the assignment of a permutation search against plain definitions, and what
// the search promises of its order.
#pragma once

#include <numeric>

#include "cpu/prune/assignment.h"
#include "fixtures.h"

inline void test_max_plus(const cpu::Kernels& kernels) {
  const std::int64_t count = pick({1, 2, 3, 5, 16, 17, 34}), stride = pick({16, 32, 528, 1040});
  const auto a = normals(count * stride), b = normals(count * stride);
  std::vector<const float*> rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(a.data() + i * stride);
  Guarded out(count * count);
  kernels.max_plus({rows.data(), b.data(), count, stride, out.data(), static_cast<int>(pick({1, 2, 3}))});
  bool ok = out.intact();
  for (std::int64_t s = 0; s < count; ++s) {
    for (std::int64_t t = 0; t < count; ++t) {
      double sum = 0;
      for (std::int64_t r = 0; r < stride; ++r) {
        sum +=
            double{std::max(a[static_cast<std::size_t>(s * stride + r)], b[static_cast<std::size_t>(t * stride + r)])};
      }
      ok = ok && std::abs(double{out.data()[s * count + t]} - sum) <= 1e-6 * static_cast<double>(stride);
    }
  }
  expect(ok, message(kernels.name, " max_plus of ", count, " rows of ", stride));
}

inline double worth(const std::vector<float>& score, const std::vector<std::int32_t>& column_of) {
  double sum = 0;
  for (std::size_t i = 0; i < column_of.size(); ++i) {
    sum += double{score[i * column_of.size() + static_cast<std::size_t>(column_of[i])]};
  }
  return sum;
}

// Against all permutations of a few rows; with integers there are ties. Of many rows: no two may gain by changing.
inline void test_assignment() {
  const std::int64_t n = pick({0, 1, 2, 3, 5, 7, 40, 130});
  auto score = normals(n * n);
  if (pick({0, 1}) != 0) {
    for (float& s : score) s = std::round(2 * s);
  }
  cpu::Assignment assignment;
  const std::vector<std::int32_t> found = assignment.solve(score.data(), n);
  std::vector<std::int32_t> all(static_cast<std::size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  bool ok = std::is_permutation(found.begin(), found.end(), all.begin(), all.end());
  const double got = worth(score, found);
  if (n <= 7) {
    double best = worth(score, all);
    do {
      best = std::max(best, worth(score, all));
    } while (std::next_permutation(all.begin(), all.end()));
    ok = ok && std::abs(got - best) <= 1e-6 * (1 + std::abs(best));
  }
  for (std::size_t i = 0; i < found.size() && ok; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      auto other = found;
      std::swap(other[i], other[j]);
      ok = ok && worth(score, other) <= got + 1e-5;
    }
  }
  expect(ok, message("assignment of ", n));
}

// Best two of every four, summed in double.
inline double kept(const std::vector<float>& score, std::int64_t rows, const std::vector<std::int64_t>& order) {
  const std::int64_t cols = static_cast<std::int64_t>(order.size());
  double sum = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; c += 4) {
      float four[4];
      for (std::int64_t i = 0; i < 4; ++i)
        four[i] = score[static_cast<std::size_t>(r * cols + order[static_cast<std::size_t>(c + i)])];
      std::sort(four, four + 4);
      sum += double{four[2]} + double{four[3]};
    }
  }
  return sum;
}

inline void test_search() {
  const std::int64_t rows = pick({0, 1, 9, 40}), block = pick({4, 8, 20, 64}), cols = block * pick({1, 2, 3});
  auto score = normals(rows * cols);
  for (float& s : score) s = std::abs(s);
  std::vector<std::int64_t> order(static_cast<std::size_t>(cols)), again(order.size()), own(order.size());
  std::iota(own.begin(), own.end(), 0);
  ColumnSearch search{score.data(), rows, cols, cols, block, 24, 1e-4, 400, order.data(), nullptr, 1};
  search_columns(search);
  search.order = again.data(), search.threads = static_cast<int>(pick({2, 3}));
  search_columns(search);
  bool ok = order == again && std::is_permutation(order.begin(), order.end(), own.begin(), own.end());
  for (std::size_t i = 0; i < order.size(); ++i) ok = ok && order[i] / block == own[i] / block;
  const double before = kept(score, rows, own), after = kept(score, rows, order);
  ok = ok && std::abs(kept_sum(score.data(), rows, cols, cols, order.data(), 2) - after) <= 1e-9 * (1 + after);
  ok = ok && std::abs(kept_sum(score.data(), rows, cols, cols, nullptr, 1) - before) <= 1e-9 * (1 + before);
  ok = ok && after >= before * (1 - 1e-6) && (rows < 9 || block < 20 || after > before * 1.005);
  expect(ok, message("column search ", rows, "x", cols, " in blocks of ", block, ": ", before, " to ", after));
}
