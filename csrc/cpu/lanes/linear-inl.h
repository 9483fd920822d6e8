// A linear layer: few tokens or many, and the type of the weight.
#pragma once

#include "few_tokens-inl.h"
#include "many_tokens-inl.h"

template <typename W>
static bool linear_as(const Linear& a, const Tuning& tuning) {
  return a.n <= tuning.few_tokens && a.n <= kMaxFewTokens ? linear_few<W>(a, tuning) : linear_many<W>(a, tuning);
}

static bool linear(const Linear& a, const Tuning& tuning) {
  if (a.n == 0 || a.m == 0) return true;
  switch (a.weight.dtype) {
    case DType::kFloat16: return linear_as<Float16>(a, tuning);
    case DType::kBFloat16: return linear_as<BFloat16>(a, tuning);
    case DType::kInt8: return linear_as<std::int8_t>(a, tuning);
    default: return linear_as<float>(a, tuning);
  }
}
