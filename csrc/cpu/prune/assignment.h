// The linear assignment problem, dense and square.
#pragma once

#include <cstdint>
#include <vector>

namespace sparse24::cpu {

// The assignment of rows to columns with the largest sum of score [n, n], finite: column_of[row]. Memory is kept
// between calls.
class Assignment {
 public:
  const std::vector<std::int32_t>& solve(const float* score, std::int64_t n);

 private:
  void reduce_columns();
  void transfer_reduction();
  void reduce_rows();
  void augment(std::int32_t row);

  float cost(std::int64_t row, std::int64_t column) const { return -score_[row * n_ + column]; }

  const float* score_ = nullptr;
  std::int64_t n_ = 0;
  std::vector<double> price_, distance_;
  std::vector<std::int32_t> column_of_, row_of_, from_, free_, columns_;
};

}  // namespace sparse24::cpu
