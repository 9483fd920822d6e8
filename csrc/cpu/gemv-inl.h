// Products with few tokens (decode), "output rows in lanes". Included once per instruction set.
//
// Every weight is read once and used for T tokens, so memory bounds the time: four streams of
// weights, kBlockCols columns apart, keep the prefetchers busy. A quad of kLanes rows is transposed
// 4x4 into one vector per slot, and each lane selects its activation out of the group of four by
// the two bits of its index.

// Tokens that decode handles in one pass over the weights.
constexpr std::int64_t kDecodeTokens = 8;
constexpr std::int64_t kStreams = 4;

// sums[token][row of block] += block * x for T tokens; independent chains hide the latency of the
// multiply-add when there are few tokens.
template <int T>
static inline void block_times_tokens(const std::byte* block, const float* const* x, std::int64_t k, Vec (&acc)[T][4]) {
  const float* values = reinterpret_cast<const float*>(block);
  const auto* words = reinterpret_cast<const std::uint32_t*>(block + kLanes * kBlockKept * 4);
  constexpr int kChains = T == 1 ? 4 : T <= 3 ? 2 : 1;
  if constexpr (T > 1) {  // with one token the streams alone keep the memory busy
    for (std::int64_t line = 0; line < kBlockBytes; line += 64) prefetch(block + kBlockBytes + line);
  }
  for (int word = 0; word < 2; ++word) {
    const Words metadata = load_words(words + word * kLanes);
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; ++quad, values += 4 * kLanes, k += 8) {
      const Words index = quad_index(metadata, quad);
      Vec a = load(values), b = load(values + kLanes), c = load(values + 2 * kLanes), d = load(values + 3 * kLanes);
      transpose4(a, b, c, d);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const Vec low = load_quad(x[t] + k), high = load_quad(x[t] + k + 4);
        acc[t][0] = fma(a, select<0>(low, index), acc[t][0]);
        acc[t][1 % kChains] = fma(b, select<1>(low, index), acc[t][1 % kChains]);
        acc[t][2 % kChains] = fma(c, select<2>(high, index), acc[t][2 % kChains]);
        acc[t][3 % kChains] = fma(d, select<3>(high, index), acc[t][3 % kChains]);
      }
    }
  }
}

// T tokens against row blocks [begin, end). x rows are padded with zeros to whole blocks.
template <int T>
static void decode(const Linear& a, std::int64_t token, const float* const* x, std::int64_t begin, std::int64_t end) {
  const std::int64_t row_blocks = (a.m + kLanes - 1) / kLanes;
  const std::int64_t col_blocks = (a.k + kBlockCols - 1) / kBlockCols;
  const auto* panels = static_cast<const std::byte*>(a.panels);
  const std::int64_t stride = (end - begin) * kLanes;
  float* sums = scratch(Scratch::kSums, T * stride);
  for (std::int64_t first = 0; first < col_blocks; first += kStreams) {
    const std::int64_t last = first + kStreams < col_blocks ? first + kStreams : col_blocks;
    for (std::int64_t mb = begin; mb < end; ++mb) {
      Vec acc[T][4];
      float* out = sums + (mb - begin) * kLanes;
      for (int t = 0; t < T; ++t) {
        acc[t][0] = first == 0 ? zero() : load(out + t * stride);
        for (int chain = 1; chain < 4; ++chain) acc[t][chain] = zero();
      }
      for (std::int64_t kb = first; kb < last; ++kb) {
        block_times_tokens<T>(panels + (kb * row_blocks + mb) * kBlockBytes, x, kb * kBlockCols, acc);
      }
      for (int t = 0; t < T; ++t) {
        store(out + t * stride, add(add(acc[t][0], acc[t][1]), add(acc[t][2], acc[t][3])));
      }
    }
  }
  const std::int64_t top = begin * kLanes;
  const std::int64_t rows = (end * kLanes < a.m ? end * kLanes : a.m) - top;
  for (int t = 0; t < T; ++t) {
    if (a.bias != nullptr) {
      for (std::int64_t i = 0; i < rows; ++i) sums[t * stride + i] += a.bias[top + i];
    }
    finish_row(sums + t * stride, zero(), a.activation, rows, a.y + (token + t) * a.m + top);
  }
}

using Decode = void (*)(const Linear&, std::int64_t, const float* const*, std::int64_t, std::int64_t);

static void decode_rows(const Linear& a, const float* const* x, std::int64_t begin, std::int64_t end) {
  static constexpr Decode kTable[] = {decode<1>, decode<2>, decode<3>, decode<4>,
                                      decode<5>, decode<6>, decode<7>, decode<8>};
  static_assert(sizeof(kTable) / sizeof(*kTable) == kDecodeTokens);
  const std::int64_t passes = (a.n + kDecodeTokens - 1) / kDecodeTokens;
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    const std::int64_t token = a.n * pass / passes;
    kTable[a.n * (pass + 1) / passes - token - 1](a, token, x + token, begin, end);
  }
}

static void linear_few(const Linear& a) {
  const std::int64_t padded = round_up(a.k, kBlockCols);
  const float* x[kMaxFewTokens];
  float* copy = scratch(Scratch::kInput, a.n * padded);
  for (std::int64_t t = 0; t < a.n; ++t) {
    x[t] = copy + t * padded;
    std::memcpy(copy + t * padded, a.x + t * a.x_stride, static_cast<std::size_t>(a.k) * sizeof(float));
    std::memset(copy + t * padded + a.k, 0, static_cast<std::size_t>(padded - a.k) * sizeof(float));
  }
  const std::int64_t row_blocks = (a.m + kLanes - 1) / kLanes;
  const std::int64_t wish = usable_threads(a.threads);
  // A thread is worth waking for about 64 KB of weights.
  const std::int64_t paying = row_blocks * padded * kLanes / (32 << 10) + 1;
  const std::int64_t parts =
      wish < paying ? (wish < row_blocks ? wish : row_blocks) : (paying < row_blocks ? paying : row_blocks);
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(parts)) if (parts > 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    decode_rows(a, x, row_blocks * part / parts, row_blocks * (part + 1) / parts);
  }
}

static void linear_panels(const Linear& a) {
  if (a.n == 0 || a.m == 0) return;
  if (a.n <= kMaxFewTokens) {
    linear_few(a);
  } else {
    linear_many(a);
  }
}
