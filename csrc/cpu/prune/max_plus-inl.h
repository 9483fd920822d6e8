// A product where max stands for the multiplication: out[s, t] = sum over r of max(a[s, r], b[t, r]). Included once per
// instruction set, inside its namespace, after its Vec. What a permutation search needs (permutation.cpp).

#pragma once

// Rows of floats that are read at a time, so that sixteen of them lie in L1.
constexpr std::int64_t kMaxPlusChunk = 512;
constexpr std::int64_t kMaxPlusRows = 16;

// S rows of a with T rows of b, added to out.
template <int S, int T>
static inline void max_plus_tile(const float* const* a, const float* b, std::int64_t stride, std::int64_t begin,
                                 std::int64_t end, float* out, std::int64_t out_stride) {
  Vec sums[S][T];
  for (int s = 0; s < S; ++s) {
    for (int t = 0; t < T; ++t) sums[s][t] = zero();
  }
  for (std::int64_t r = begin; r < end; r += kLanes) {
    Vec right[T];
    for (int t = 0; t < T; ++t) right[t] = load(b + t * stride + r);
    for (int s = 0; s < S; ++s) {
      const Vec left = load(a[s] + r);
      for (int t = 0; t < T; ++t) sums[s][t] = add(sums[s][t], larger(left, right[t]));
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int t = 0; t < T; ++t) out[s * out_stride + t] += sum(sums[s][t]);
  }
}

template <int S>
static inline void max_plus_rows(const float* const* a, const MaxPlus& m, std::int64_t t, std::int64_t begin,
                                 std::int64_t end, float* out) {
  if (t + 2 <= m.count) return max_plus_tile<S, 2>(a, m.b + t * m.stride, m.stride, begin, end, out, m.count);
  max_plus_tile<S, 1>(a, m.b + t * m.stride, m.stride, begin, end, out, m.count);
}

static void max_plus(const MaxPlus& m) {
  const std::int64_t blocks = (m.count + kMaxPlusRows - 1) / kMaxPlusRows;
#pragma omp parallel for schedule(dynamic) num_threads(usable_threads(m.threads)) if (blocks > 1)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = block * kMaxPlusRows;
    const std::int64_t last = first + kMaxPlusRows < m.count ? first + kMaxPlusRows : m.count;
    std::memset(m.out + first * m.count, 0, static_cast<std::size_t>((last - first) * m.count) * sizeof(float));
    for (std::int64_t begin = 0; begin < m.stride; begin += kMaxPlusChunk) {
      const std::int64_t end = begin + kMaxPlusChunk < m.stride ? begin + kMaxPlusChunk : m.stride;
      for (std::int64_t t = 0; t < m.count; t += 2) {
        std::int64_t s = first;
        for (; s + 4 <= last; s += 4) max_plus_rows<4>(m.a + s, m, t, begin, end, m.out + s * m.count + t);
        for (; s < last; ++s) max_plus_rows<1>(m.a + s, m, t, begin, end, m.out + s * m.count + t);
      }
    }
  }
}
