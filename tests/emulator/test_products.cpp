// Results of every type, layout and epilogue against a plain product in double, with number formats decoded by a
// second implementation. More than 300 lines: that implementation is to be read beside its use.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "test.h"

namespace emulator::test {

namespace {

std::mt19937 rng(24);

std::int64_t pick(std::initializer_list<std::int64_t> choices) {
  return choices.begin()[std::uniform_int_distribution<std::size_t>(0, choices.size() - 1)(rng)];
}

std::size_t width(DataType type) {
  switch (type) {
    case kReal32F:
    case kReal32I: return 4;
    case kReal16F:
    case kReal16BF: return 2;
    default: return 1;
  }
}

double decode(const unsigned char* at, DataType type) {
  std::uint32_t raw = 0;
  std::memcpy(&raw, at, width(type));
  const auto small = [raw](int exponent, int fraction) {
    const int power = static_cast<int>(raw >> fraction & ((1u << exponent) - 1)), bias = (1 << (exponent - 1)) - 1;
    const double mantissa = static_cast<double>(raw & ((1u << fraction) - 1)) / (1 << fraction);
    const double magnitude = power ? std::ldexp(1 + mantissa, power - bias) : std::ldexp(mantissa, 1 - bias);
    return raw >> (exponent + fraction) & 1 ? -magnitude : magnitude;
  };
  switch (type) {
    case kReal32F: return std::bit_cast<float>(raw);
    case kReal32I: return static_cast<std::int32_t>(raw);
    case kReal8I: return static_cast<std::int8_t>(raw);
    case kReal16F: return small(5, 10);
    case kReal16BF: return small(8, 7);
    case kReal8FE4M3: return small(4, 3);
    case kReal8FE5M2: return small(5, 2);
    case kReal4FE2M1: break;
  }
  return NAN;
}

// A random number of a type, of size about 1 (integers: below 64), and sometimes zero.
void randomize(unsigned char* at, DataType type) {
  if (pick({0, 1, 2, 3, 4, 5, 6, 7}) == 0) {
    std::memset(at, 0, width(type));
    return;
  }
  const double value = std::uniform_real_distribution<double>(-2, 2)(rng);
  if (type == kReal32F) {
    const auto number = static_cast<float>(value);
    std::memcpy(at, &number, 4);
  } else if (type == kReal32I || type == kReal8I) {
    const auto number = static_cast<std::int32_t>(value * 30);
    std::memcpy(at, &number, width(type));  // little-endian
  } else {
    // Any bits whose number is neither too large nor too small.
    do {
      for (std::size_t i = 0; i < width(type); ++i) at[i] = static_cast<unsigned char>(rng());
    } while (!(std::abs(decode(at, type)) < 2 && std::abs(decode(at, type)) > 1.0 / 64));
  }
}

// Half away from zero to 11 significant bits.
double tf32(double value) {
  int power;
  const double fraction = std::frexp(value, &power);
  return std::ldexp(std::round(std::ldexp(fraction, 11)), power - 11);
}

struct Options {
  bool relu = false, gelu = false, alpha_vector = false, beta_vector = false, bias = false;
  float threshold = 0, upper_bound = std::numeric_limits<float>::max(), scaling = 1;
  std::int64_t bias_stride = 0;
  float alpha = 1, beta = 0;
  bool in_place = false;
};

class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : bytes(size) { cudaMalloc(&data, size); }
  ~DeviceBytes() { cudaFree(data); }
  DeviceBytes(const DeviceBytes&) = delete;
  void up() { cudaMemcpy(data, bytes.data(), bytes.size(), kHostToDevice); }
  void down() { cudaMemcpy(bytes.data(), data, bytes.size(), kDeviceToHost); }
  std::vector<unsigned char> bytes;
  void* data = nullptr;
};

// One stored matrix of all batches.
struct Stored {
  std::int64_t rows, cols, ld, stride;
  DataType type;
  Order order;
  DeviceBytes memory;

  Stored(const Shape& s, char name, DataType type, Order order, int batches)
      : rows(stored_rows(s, name)),
        cols(stored_cols(s, name)),
        ld((order == kOrderRow ? cols : rows) + s.padding),
        stride((order == kOrderRow ? rows : cols) * ld),
        type(type),
        order(order),
        memory(static_cast<std::size_t>(stride * batches) * width(type)) {
    for (std::size_t i = 0; i < memory.bytes.size(); i += width(type)) randomize(&memory.bytes[i], type);
    memory.up();
  }
  const unsigned char* at(std::int64_t batch, std::int64_t row, std::int64_t col) const {
    const std::int64_t offset = batch * stride + (order == kOrderRow ? row * ld + col : col * ld + row);
    return &memory.bytes[static_cast<std::size_t>(offset) * width(type)];
  }
  double value(std::int64_t batch, std::int64_t row, std::int64_t col) const {
    return decode(at(batch, row, col), type);
  }
};

double exact_activation(double value, const Options& o) {
  if (o.gelu)
    return o.scaling * 0.5 * value * (1 + std::tanh(std::sqrt(2 / M_PI) * (value + 0.044715 * value * value * value)));
  if (!o.relu) return value;
  return value <= o.threshold ? 0 : std::min(value, double{o.upper_bound});
}

// Of rounding to the output type, and of the float epilogue.
bool close(double got, double exact, DataType type, double magnitude) {
  const double slack = 4e-6 * magnitude;
  switch (type) {
    case kReal32F: return std::abs(got - exact) <= slack;
    case kReal32I:
    case kReal8I: {
      const double low = type == kReal8I ? -128 : -2147483648.0, high = type == kReal8I ? 127 : 2147483647.0;
      return std::abs(got - std::clamp(exact, low, high)) <= 0.5 + slack && got == std::round(got);
    }
    case kReal16F: return std::abs(got - exact) <= std::max(std::abs(exact) / 2048, 3e-8) + slack;
    case kReal16BF: return std::abs(got - exact) <= std::abs(exact) / 256 + slack;
    case kReal8FE4M3:
      return std::abs(got - std::clamp(exact, -448.0, 448.0)) <= std::max(std::abs(exact) / 16, 1.0 / 1024) + slack;
    case kReal8FE5M2:
      return std::abs(got - std::clamp(exact, -57344.0, 57344.0)) <= std::max(std::abs(exact) / 8, 1e-5) + slack;
    case kReal4FE2M1: break;
  }
  return false;
}

template <typename Value>
void set(Objects& o, MatmulAttribute attribute, Value value) {
  expect_equal(cusparseLtMatmulDescSetAttribute(&o.handle, &o.matmul, attribute, &value, sizeof value), kSuccess,
               "set attribute " + std::to_string(attribute));
}

std::string name_of(const Shape& s) {
  return "ab " + std::to_string(s.ab) + " c " + std::to_string(s.c) + " d " + std::to_string(s.d) + " " +
         std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k) + (s.sparse_a ? " A" : " B") +
         " ops " + std::to_string(s.op_a) + std::to_string(s.op_b) + " orders " + std::to_string(s.order_a) +
         std::to_string(s.order_b) + std::to_string(s.order_c) + " batches " + std::to_string(s.batches);
}

struct Vectors {
  std::vector<float> alpha, beta;
  DeviceBytes alpha_memory, beta_memory, bias;
  DataType bias_type;
  Vectors(const Shape& s, const Options& options)
      : alpha_memory(static_cast<std::size_t>(s.m) * 4),
        beta_memory(static_cast<std::size_t>(s.m) * 4),
        bias(static_cast<std::size_t>(s.m + (s.batches - 1) * options.bias_stride) * 4),
        bias_type(s.ab == kReal8I   ? kReal32F
                  : width(s.d) == 1 ? s.c
                                    : s.d) {
    for (std::int64_t i = 0; i < s.m; ++i) {
      alpha.push_back(static_cast<float>(pick({1, 2, 3, 4})) / 4);
      beta.push_back(static_cast<float>(pick({0, 1, 2, 3})) / 2);
    }
    std::memcpy(alpha_memory.bytes.data(), alpha.data(), alpha.size() * 4);
    std::memcpy(beta_memory.bytes.data(), beta.data(), beta.size() * 4);
    for (std::size_t i = 0; i < bias.bytes.size(); i += width(bias_type)) randomize(&bias.bytes[i], bias_type);
    alpha_memory.up();
    beta_memory.up();
    bias.up();
  }
};

void run_product(const Shape& s, const Options& options) {
  auto o = std::make_unique<Objects>();
  Stream stream;
  expect_equal(cudaStreamCreate(&stream), kCudaSuccess, "stream");
  expect_equal(cusparseLtInit(&o->handle), kSuccess, "init");
  expect_equal(describe(*o, s), kSuccess, "describe " + name_of(s));
  const int sparse_batches = s.broadcast ? 1 : s.batches;
  Stored a(s, 'a', s.ab, s.order_a, s.sparse_a ? sparse_batches : s.batches);
  Stored b(s, 'b', s.ab, s.order_b, s.sparse_a ? s.batches : sparse_batches);
  Stored c(s, 'c', s.c, s.order_c, s.batches), d(s, 'd', s.d, s.order_c, s.batches);
  const Stored before(s, 'd', s.d, s.order_c, 1);
  Stored& sparse = s.sparse_a ? a : b;
  Vectors vectors(s, options);
  if (options.relu) {
    set(*o, kRelu, 1);
    set(*o, kReluThreshold, options.threshold);
    set(*o, kReluUpperBound, options.upper_bound);
  }
  if (options.gelu) set(*o, kGelu, 1);
  if (options.gelu && options.scaling != 1) set(*o, kGeluScaling, options.scaling);
  if (options.alpha_vector) set(*o, kAlphaVectorScaling, 1);
  if (options.beta_vector) set(*o, kBetaVectorScaling, 1);
  if (options.bias_stride) set(*o, kBiasStride, options.bias_stride);
  expect_equal(plan(*o), kSuccess, "plan " + name_of(s));
  if (options.bias) set(*o, kBiasPointer, static_cast<const void*>(vectors.bias.data));

  expect_equal(
      cusparseLtSpMMAPrune(&o->handle, &o->matmul, sparse.memory.data, sparse.memory.data, kPruneStrip, stream),
      kSuccess, "prune");
  std::size_t size, buffer_size, workspace_size;
  expect_equal(cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer_size), kSuccess, "size");
  expect_equal(cusparseLtMatmulGetWorkspace(&o->handle, &o->plan, &workspace_size), kSuccess, "workspace size");
  DeviceBytes blob(size), buffer(buffer_size), workspace(workspace_size);
  expect_equal(cusparseLtSpMMACompress(&o->handle, &o->plan, sparse.memory.data, blob.data, buffer.data, stream),
               kSuccess, "compress");
  // Scalars are read by the call: what follows must not matter.
  float alpha = options.alpha, beta = options.beta;
  const void* alpha_pointer = options.alpha_vector ? vectors.alpha_memory.data : &alpha;
  const void* beta_pointer = options.beta_vector ? vectors.beta_memory.data : &beta;
  expect_equal(cusparseLtMatmul(&o->handle, &o->plan, alpha_pointer, s.sparse_a ? blob.data : a.memory.data,
                                s.sparse_a ? b.memory.data : blob.data, beta_pointer, c.memory.data,
                                options.in_place ? c.memory.data : d.memory.data, workspace.data, &stream, 1),
               kSuccess, "matmul");
  alpha = beta = NAN;
  const auto c_before = c.memory.bytes;
  expect_equal(cudaStreamSynchronize(stream), kCudaSuccess, "synchronize");
  sparse.memory.down();
  Stored& result = options.in_place ? c : d;
  const auto result_before = result.memory.bytes;
  result.memory.down();

  bool good = true;
  for (std::int64_t batch = 0; batch < s.batches; ++batch) {
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t j = 0; j < s.n; ++j) {
        double sum = 0, magnitude = 1;
        for (std::int64_t k = 0; k < s.k; ++k) {
          const std::int64_t batch_a = s.broadcast && s.sparse_a ? 0 : batch,
                             batch_b = s.broadcast && !s.sparse_a ? 0 : batch;
          double left = s.op_a == kNonTranspose ? a.value(batch_a, i, k) : a.value(batch_a, k, i);
          double right = s.op_b == kNonTranspose ? b.value(batch_b, k, j) : b.value(batch_b, j, k);
          if (s.ab == kReal32F) left = tf32(left), right = tf32(right);
          sum += left * right;
          magnitude += std::abs(left * right);
        }
        const double by_alpha = options.alpha_vector ? vectors.alpha[static_cast<std::size_t>(i)] : options.alpha;
        const double by_beta = options.beta_vector    ? vectors.beta[static_cast<std::size_t>(i)]
                               : options.alpha_vector ? 0
                                                      : options.beta;
        const std::int64_t offset = (c.order == kOrderRow ? i * c.ld + j : j * c.ld + i) + batch * c.stride;
        double exact = by_alpha * sum + by_beta * decode(&c_before[static_cast<std::size_t>(offset) * width(s.c)], s.c);
        if (options.bias) {
          const auto at = static_cast<std::size_t>(i + batch * options.bias_stride) * width(vectors.bias_type);
          exact += decode(&vectors.bias.bytes[at], vectors.bias_type);
        }
        good = good && close(result.value(batch, i, j), exact_activation(exact, options), s.d, magnitude);
      }
    }
    // The gaps between lines are left alone.
    for (std::int64_t line = 0; line < result.stride / result.ld; ++line) {
      const std::int64_t end = batch * result.stride + (line + 1) * result.ld, from = end - s.padding;
      good = good && std::equal(result.memory.bytes.begin() + from * static_cast<std::int64_t>(width(s.d)),
                                result.memory.bytes.begin() + end * static_cast<std::int64_t>(width(s.d)),
                                result_before.begin() + from * static_cast<std::int64_t>(width(s.d)));
    }
  }
  expect(good, "product " + name_of(s));
  expect_clean("product " + name_of(s));
  destroy_all(*o);
  expect_equal(cudaStreamDestroy(stream), kCudaSuccess, "destroy stream");
}

struct Types {
  DataType ab, c, d;
  ComputeType compute;
  int multiple;
};
constexpr Types kTypes[] = {
    {kReal32F, kReal32F, kReal32F, kCompute32F, 8},         {kReal16F, kReal16F, kReal16F, kCompute32F, 16},
    {kReal16BF, kReal16BF, kReal16BF, kCompute32F, 16},     {kReal8I, kReal8I, kReal8I, kCompute32I, 32},
    {kReal8I, kReal32I, kReal32I, kCompute32I, 32},         {kReal8I, kReal16F, kReal16F, kCompute32I, 32},
    {kReal8I, kReal16BF, kReal16BF, kCompute32I, 32},       {kReal8FE4M3, kReal16F, kReal8FE4M3, kCompute32F, 32},
    {kReal8FE4M3, kReal16BF, kReal8FE4M3, kCompute32F, 32}, {kReal8FE4M3, kReal16F, kReal16F, kCompute32F, 32},
    {kReal8FE4M3, kReal16BF, kReal16BF, kCompute32F, 32},   {kReal8FE4M3, kReal32F, kReal32F, kCompute32F, 32},
    {kReal8FE5M2, kReal16F, kReal8FE5M2, kCompute32F, 32},  {kReal8FE5M2, kReal16F, kReal16F, kCompute32F, 32},
    {kReal8FE5M2, kReal32F, kReal32F, kCompute32F, 32},
};

Shape shape_of(const Types& t, Operation op_a, Operation op_b, Order order_a, Order order_b, Order order_c) {
  Shape s{.ab = t.ab,
          .c = t.c,
          .d = t.d,
          .compute = t.compute,
          .op_a = op_a,
          .op_b = op_b,
          .order_a = order_a,
          .order_b = order_b,
          .order_c = order_c};
  s.m = t.multiple * pick({1, 2, 3});
  s.n = t.multiple * pick({1, 2, 3});
  s.k = t.multiple * pick({1, 2, 4});
  s.sparse_a = pick({0, 1}) != 0;
  s.padding = pick({0, t.multiple});
  s.batches = static_cast<int>(pick({1, 1, 3}));
  s.broadcast = s.batches > 1 && pick({0, 1}) != 0;
  return s;
}

void all_layouts(const Types& t) {
  for (const Operation op_a : {kNonTranspose, kTranspose}) {
    for (const Operation op_b : {kNonTranspose, kTranspose}) {
      for (const Order order_a : {kOrderRow, kOrderCol}) {
        for (const Order order_b : {kOrderRow, kOrderCol}) {
          const bool k_contiguous =
              (order_a == kOrderRow) == (op_a == kNonTranspose) && (order_b == kOrderCol) == (op_b == kNonTranspose);
          if (t.multiple == 32 && !k_contiguous) continue;  // refused: test_rules
          for (const Order order_c : {kOrderRow, kOrderCol}) {
            Options options{.alpha = static_cast<float>(pick({1, 2, -1})) / 2,
                            .beta = static_cast<float>(pick({0, 1, 3}))};
            options.in_place = t.c == t.d && pick({0, 1}) != 0;
            run_product(shape_of(t, op_a, op_b, order_a, order_b, order_c), options);
          }
        }
      }
    }
  }
}

void all_epilogues(const Types& t) {
  const Order order_b = kOrderCol;
  const auto shape = [&] { return shape_of(t, kNonTranspose, kNonTranspose, kOrderRow, order_b, kOrderCol); };
  run_product(shape(), {.relu = true});
  run_product(shape(), {.relu = true, .threshold = 0.5f, .upper_bound = 3, .beta = 1});
  run_product(shape(), {.bias = true, .alpha = 0.25f});
  run_product(shape(), {.relu = true, .bias = true, .beta = 1});
  run_product(shape(), {.alpha_vector = true, .beta = 5});
  run_product(shape(), {.alpha_vector = true, .beta_vector = true, .bias = true});
  Shape batched = shape();
  batched.batches = 2;
  batched.broadcast = false;
  run_product(batched, {.bias = true, .bias_stride = batched.m + 8});
  if (t.d == kReal8I || t.d == t.ab) {
    if (t.multiple == 32)
      run_product(shape(), {.relu = true, .gelu = true, .bias = true, .scaling = 0.5f, .alpha = 0.125f});
  }
}

// Ties and limits, where a tolerance would hide a mistake.
void test_rounding() {
  const Types t{kReal8I, kReal8I, kReal8I, kCompute32I, 32};
  Shape s = shape_of(t, kNonTranspose, kNonTranspose, kOrderRow, kOrderCol, kOrderRow);
  s.m = s.n = s.k = 32;
  s.sparse_a = true;
  s.padding = 0;
  s.batches = 1;
  auto o = std::make_unique<Objects>();
  cusparseLtInit(&o->handle);
  describe(*o, s);
  expect_equal(plan(*o), kSuccess, "plan");
  DeviceBytes a(1024), b(1024), d(1024);
  // Row i of A holds one number; B is all ones in its first line of K. -17.5, -16.5, 0.5, 1.5, 127.5, and 2032.
  const int values[] = {-35, -33, 1, 3, 127};
  for (std::size_t i = 0; i < 5; ++i) a.bytes[i * 32] = static_cast<unsigned char>(values[i]);
  for (std::size_t i = 5; i < 10; ++i)
    a.bytes[i * 32] = a.bytes[i * 32 + 5] = static_cast<unsigned char>(i % 2 ? 127 : -127);
  for (std::size_t j = 0; j < 32; ++j) b.bytes[j * 32] = 1, b.bytes[j * 32 + 5] = 64;
  a.up();
  b.up();
  std::size_t size, buffer_size;
  cusparseLtSpMMACompressedSize(&o->handle, &o->plan, &size, &buffer_size);
  DeviceBytes blob(size);
  cusparseLtSpMMACompress(&o->handle, &o->plan, a.data, blob.data, nullptr, nullptr);
  const float half = 0.5f, zero = 0;
  cusparseLtMatmul(&o->handle, &o->plan, &half, blob.data, b.data, &zero, d.data, d.data, nullptr, nullptr, 0);
  cudaDeviceSynchronize();
  d.down();
  const int wanted[] = {-18, -16, 0, 2, 64, 127, -128, 127, -128, 127};
  for (std::size_t i = 0; i < 10; ++i) {
    expect_equal(static_cast<int>(static_cast<std::int8_t>(d.bytes[i * 32])), wanted[i],
                 "int8 rounding " + std::to_string(i));
  }
  expect_clean("rounding");
  destroy_all(*o);
}

}  // namespace

void test_products() {
  emulator_set_sm(90);
  for (const Types& t : kTypes) {
    all_layouts(t);
    all_epilogues(t);
  }
  test_rounding();
  expect_equal(emulator_live_objects(), 0, "live objects after the products");
  expect_equal(emulator_live_memory(), 0u, "live memory after the products");
}

}  // namespace emulator::test
