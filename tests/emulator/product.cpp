#include "product.h"

namespace emulator {

float gelu(float value) {
  return 0.5f * value * (1.0f + std::tanh(0.7978845608f * (value + 0.044715f * value * value * value)));
}

float relu(float value, float threshold, float upper_bound, bool signed_zero) {
  if (value <= threshold) return signed_zero ? std::copysign(0.0f, value) : 0.0f;
  return value > upper_bound ? upper_bound : value;
}

namespace {

const unsigned char* batch_of(const void* data, const Matrix& matrix, std::int64_t batch) {
  return static_cast<const unsigned char*>(data) + bytes(matrix.type, batch * matrix.batch_stride);
}

// What happens to a sum, per output. Row and column are those of D.
class Finisher {
 public:
  Finisher(const MatmulCall& call, std::int64_t batch) : call_(call), batch_(batch) {
    const Product& product = problem().product;
    bias_type_ = bias_type(product);
    // measured on SM 89 and 120 for results of 16 and 32 bits: ignored.
    const bool ignored = (product.sm == 89 || is_sm12x(product.sm)) && !is_fp8(product.d.type);
    scale_ = ignored ? 1.0f : scalar_scale(0) * scalar_scale(1);
    output_scale_ = is_fp8(product.d.type) ? scalar_scale(3) : 1.0f;
    if (call.pointers.bias) {
      bias_ = static_cast<const unsigned char*>(call.pointers.bias) +
              bytes(bias_type_, batch * problem().epilogue.bias_stride);
    }
  }

  void operator()(std::int64_t row, std::int64_t column, double sum) const {
    const Product& p = problem().product;
    float value = scale_ * alpha(row) * accumulated(sum);
    const std::int64_t offset = row * p.c.row_stride() + column * p.c.col_stride();
    if (const float by = beta(row); by != 0) {
      const float c = load(batch_of(call_.c, p.c, batch_) + bytes(p.c.type, offset), p.c.type);
      value = std::fma(by, c * c_scale(), value);
    }
    if (bias_) value += load(bias_ + bytes(bias_type_, row), bias_type_);
    auto* d = const_cast<unsigned char*>(batch_of(call_.d, p.d, batch_)) + bytes(p.d.type, offset);
    store(d, p.d.type, output_scale_ * activated(value));
  }

 private:
  const Problem& problem() const { return *call_.problem; }

  // int8: the int32 sum wraps, then the epilogue is in float (measured).
  float accumulated(double sum) const {
    switch (problem().product.compute) {
      case kCompute32I:
        return static_cast<float>(
            static_cast<std::int32_t>(static_cast<std::uint32_t>(static_cast<std::int64_t>(sum))));
      case kCompute16F: return from_fp16(to_fp16(static_cast<float>(sum)));
      case kCompute32F: break;
    }
    return static_cast<float>(sum);
  }

  float alpha(std::int64_t row) const {
    return problem().epilogue.alpha_vector ? static_cast<const float*>(call_.alpha_vector)[row] : call_.alpha;
  }

  // measured: beta is not applied when there is an alpha vector and no beta vector.
  float beta(std::int64_t row) const {
    const Epilogue& epilogue = problem().epilogue;
    if (epilogue.beta_vector) return static_cast<const float*>(call_.beta_vector)[row];
    return epilogue.alpha_vector ? 0.0f : call_.beta;
  }

  // measured: GELU wins over ReLU.
  float activated(float value) const {
    const Epilogue& epilogue = problem().epilogue;
    if (epilogue.gelu) return epilogue.gelu_scaling * gelu(value);
    if (epilogue.relu) {
      const Product& p = problem().product;
      const bool signed_zero = !(is_fp8(p.a.type) && is_sm12x(p.sm));
      return relu(value, epilogue.relu_threshold, epilogue.relu_upper_bound, signed_zero);
    }
    return value;
  }

  // assumed: scalar scales multiply fp8 operands and the fp8 result; measured: other types ignore them.
  float scalar_scale(int which) const {
    const bool used = is_fp8(problem().product.a.type) && problem().epilogue.scale_mode[which] == kScaleScalar32F &&
                      call_.pointers.scale[which];
    return used ? read<float>(call_.pointers.scale[which]) : 1.0f;
  }
  float c_scale() const { return is_fp8(problem().product.c.type) ? scalar_scale(2) : 1.0f; }

  const MatmulCall& call_;
  std::int64_t batch_;
  DataType bias_type_;
  float scale_, output_scale_;
  const unsigned char* bias_ = nullptr;
};

}  // namespace

void run_matmul(const MatmulCall& call) {
  const Problem& problem = *call.problem;
  const Product& p = problem.product;
  const Matrix& sparse = p.sparse();
  const View sparse_view = p.sparse_view(), dense_view = p.dense_view();
  const BlobKind kind = blob_kind(sparse, sparse_view, p.sparse_a(), p.sm, problem.algorithm.config_id);
  const std::size_t one_copy = copy_bytes(sparse, &sparse_view, p.sm);
  KeptRows kept;
  bool matching = true;
  for (std::int64_t batch = 0; batch < p.d.batches; ++batch) {
    if (batch == 0 || sparse.batch_stride != 0) {
      const auto* blob = static_cast<const unsigned char*>(p.sparse_a() ? call.a : call.b);
      matching =
          decode_copy(sparse, sparse_view, kind, blob + static_cast<std::size_t>(batch) * one_copy, kept) && matching;
    }
    const DenseOperand dense{batch_of(p.sparse_a() ? call.b : call.a, p.dense(), batch),
                             p.dense().type,
                             dense_view.k,
                             dense_view.extent,
                             dense_view.k_stride,
                             dense_view.extent_stride,
                             is_sm12x(p.sm) ? Tf32::kEven : Tf32::kAway};
    const Finisher finish(call, batch);
    if (p.sparse_a()) {
      multiply(kept, sparse_view.extent, dense, finish);
    } else {
      multiply(kept, sparse_view.extent, dense,
               [&](std::int64_t row, std::int64_t column, double sum) { finish(column, row, sum); });
    }
  }
  if (!matching) {
    violate(kMeasured,
            "the compressed operand was made for another algorithm (from 256 rows on), shape, type, layout or SM, or "
            "is not compressed: the result is wrong");
  }
}

}  // namespace emulator
