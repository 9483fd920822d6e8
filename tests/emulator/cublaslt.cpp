// cuBLASLt: handles, descriptors, heuristics and products. More than 300 lines: every exported function of a C API
// with its checks, most of them a few lines.
#include "cublaslt.h"

#include <unordered_map>

#include "product.h"
#include "submit.h"

namespace emulator {

// Everything here follows NVIDIA's documents of cuBLASLt; none of it was measured.
struct BlasHandle {
  int device;
};
struct BlasMatmul {
  BlasCompute compute;
  DataType scale;
  Operation op_a = kNonTranspose, op_b = kNonTranspose;
  unsigned epilogue = kBlasDefault;
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  int bias_type = -1;  // -1: of D
};
struct BlasLayout {
  Matrix matrix;
};
struct BlasPreference {
  std::uint64_t max_workspace = 0;
};

namespace {

std::unordered_map<const void*, std::shared_ptr<void>>& objects() {
  static auto* objects = new std::unordered_map<const void*, std::shared_ptr<void>>;
  return *objects;
}

template <typename T>
T& use(T* object) {
  require(object && objects().contains(object), kBlasInvalidValue, kDocumented, "an object is null or destroyed");
  return *object;
}

template <typename T>
BlasStatus add(T** result, const T& value) {
  require(result != nullptr, kBlasInvalidValue, kDocumented, "the result is a null pointer");
  const auto object = std::make_shared<T>(value);
  objects().emplace(object.get(), object);
  *result = object.get();
  return kBlasSuccess;
}

template <typename T>
BlasStatus create(const char* function, T** result, const T& value) {
  return guarded<BlasStatus>(function, [&] { return add(result, value); });
}

template <typename T>
BlasStatus destroy(const char* function, T* object) {
  return guarded<BlasStatus>(function, [&] {
    if (!object) return kBlasSuccess;
    use(object);
    objects().erase(object);
    return kBlasSuccess;
  });
}

// As attribute_in, with the status of cuBLASLt.
template <typename T>
T value_of(const void* data, std::size_t size) {
  require(data != nullptr && size == sizeof(T), kBlasInvalidValue, kDocumented, "the data or its size is wrong");
  return read<T>(data);
}

struct BlasTypes {
  DataType ab, c;
  BlasCompute compute;
  DataType scale;
};
constexpr BlasTypes kTypes[] = {
    {kReal16F, kReal16F, kBlas32F, kReal32F},    {kReal16F, kReal32F, kBlas32F, kReal32F},
    {kReal16BF, kReal16BF, kBlas32F, kReal32F},  {kReal16BF, kReal32F, kBlas32F, kReal32F},
    {kReal32F, kReal32F, kBlas32F, kReal32F},    {kReal32F, kReal32F, kBlas32FFastTf32, kReal32F},
    {kReal8I, kReal32I, kBlas32I, kReal32I},     {kReal8I, kReal8I, kBlas32I, kReal32F},
    {kReal8FE4M3, kReal16F, kBlas32F, kReal32F}, {kReal8FE4M3, kReal16BF, kBlas32F, kReal32F},
    {kReal8FE4M3, kReal32F, kBlas32F, kReal32F},
};

// One product, fixed at the call.
struct DenseProduct {
  BlasMatmul matmul;
  Matrix a, b, c, d;
  View view_a, view_b;
};

DenseProduct checked_product(BlasMatmul* matmul, BlasLayout* a, BlasLayout* b, BlasLayout* c, BlasLayout* d) {
  DenseProduct p{use(matmul), use(a).matrix, use(b).matrix, use(c).matrix, use(d).matrix, {}, {}};
  p.view_a = view(p.a, true, p.matmul.op_a);
  p.view_b = view(p.b, false, p.matmul.op_b);
  require(p.view_a.k == p.view_b.k && p.c.rows == p.view_a.extent && p.c.cols == p.view_b.extent &&
              p.d.rows == p.c.rows && p.d.cols == p.c.cols,
          kBlasInvalidValue, kDocumented, "the dimensions do not fit");
  for (const Matrix* matrix : {&p.b, &p.c, &p.d}) {
    require(matrix->batches == p.a.batches, kBlasInvalidValue, kDocumented, "the batch counts differ");
  }
  const bool known = std::any_of(std::begin(kTypes), std::end(kTypes), [&](const BlasTypes& types) {
    return types.ab == p.a.type && p.b.type == p.a.type && types.c == p.c.type && p.d.type == p.c.type &&
           types.compute == p.matmul.compute && types.scale == p.matmul.scale;
  });
  require(known, kBlasNotSupported, kDocumented, "this combination of types is not supported");
  const bool k_contiguous = p.view_a.k_contiguous() && p.view_b.k_contiguous();
  require(bits(p.a.type) > 8 || k_contiguous, kBlasNotSupported, kDocumented,
          "8-bit operands must be contiguous along K");
  require(p.matmul.compute != kBlas32I || p.matmul.scale != kReal32I || p.matmul.epilogue == kBlasDefault,
          kBlasNotSupported, kDocumented, "an int32 result takes no epilogue");
  return p;
}

class DenseWork final : public QueuedOperation {
 public:
  DenseWork(const DenseProduct& product, float alpha, float beta, const void* a, const void* b, const void* c, void* d,
            void* workspace, std::size_t workspace_size)
      : QueuedOperation("cublasLtMatmul"),
        p_(product),
        alpha_(alpha),
        beta_(beta),
        a_(a),
        b_(b),
        c_(c),
        d_(d),
        workspace_(workspace),
        workspace_size_(workspace_size) {}

  bool run() const override {
    ++state().launches;
    const bool good = in_range(p_.a, a_, "A") & in_range(p_.b, b_, "B") & in_range(p_.d, d_, "D") &
                      (beta_ == 0 || in_range(p_.c, c_, "C")) &
                      (!workspace_ || check_range(workspace_, workspace_size_, "the workspace"));
    if (!good) return false;
    if (workspace_) std::memset(workspace_, 0xff, workspace_size_);
    for (std::int64_t batch = 0; batch < p_.d.batches; ++batch) run_batch(batch);
    return true;
  }

 private:
  static bool in_range(const Matrix& matrix, const void* data, const char* name) {
    return check_range(data, bytes(matrix.type, matrix.extent()), name);
  }

  void run_batch(std::int64_t batch) const {
    const bool tf32 = p_.matmul.compute == kBlas32FFastTf32;
    const auto at = [batch](const Matrix& matrix, const void* data) {
      return static_cast<const unsigned char*>(data) + bytes(matrix.type, batch * matrix.batch_stride);
    };
    KeptRows rows;  // all of A
    rows.per_row = p_.view_a.k;
    for (std::int64_t row = 0; row < p_.view_a.extent; ++row) {
      for (std::int64_t k = 0; k < p_.view_a.k; ++k) {
        const auto* from = at(p_.a, a_) + bytes(p_.a.type, row * p_.view_a.extent_stride + k * p_.view_a.k_stride);
        rows.columns.push_back(static_cast<std::int32_t>(k));
        rows.values.push_back(load_operand(from, p_.a.type, tf32 ? Tf32::kAway : Tf32::kNo));
      }
    }
    const DenseOperand dense{at(p_.b, b_),
                             p_.b.type,
                             p_.view_b.k,
                             p_.view_b.extent,
                             p_.view_b.k_stride,
                             p_.view_b.extent_stride,
                             tf32 ? Tf32::kAway : Tf32::kNo};
    multiply(rows, p_.view_a.extent, dense, [&](std::int64_t row, std::int64_t column, double sum) {
      float value = alpha_ * static_cast<float>(sum);
      if (beta_ != 0) {
        const std::int64_t offset = row * p_.c.row_stride() + column * p_.c.col_stride();
        value = std::fma(beta_, load(at(p_.c, c_) + bytes(p_.c.type, offset), p_.c.type), value);
      }
      const std::int64_t offset = row * p_.d.row_stride() + column * p_.d.col_stride();
      store(const_cast<unsigned char*>(at(p_.d, d_)) + bytes(p_.d.type, offset), p_.d.type,
            activated(value + bias(row, batch)));
    });
  }

  float bias(std::int64_t row, std::int64_t batch) const {
    if (!(p_.matmul.epilogue & kBlasBias)) return 0;
    const DataType type = p_.matmul.bias_type < 0 ? p_.d.type : static_cast<DataType>(p_.matmul.bias_type);
    const auto* data = static_cast<const unsigned char*>(p_.matmul.bias);
    return load(data + bytes(type, row + batch * p_.matmul.bias_stride), type);
  }

  float activated(float value) const {
    if (p_.matmul.epilogue & kBlasGelu) return gelu(value);
    return p_.matmul.epilogue & kBlasRelu ? std::max(value, 0.0f) : value;
  }

  DenseProduct p_;
  float alpha_, beta_;
  const void *a_, *b_, *c_;
  void *d_, *workspace_;
  std::size_t workspace_size_;
};

float scalar(const void* pointer, DataType type) {
  require(pointer != nullptr, kBlasInvalidValue, kDocumented, "alpha or beta is a null pointer");
  return load(pointer, type);
}

Operation operation(const void* data, std::size_t size) {
  const auto value = value_of<int>(data, size);
  require(value == kNonTranspose || value == kTranspose, kBlasNotSupported, kDocumented, "unknown operation");
  return static_cast<Operation>(value);
}

}  // namespace

void forget_blas() { objects().clear(); }
long live_blas_objects() { return static_cast<long>(objects().size()); }

BlasStatus cublasLtCreate(BlasHandle** handle) {
  return guarded<BlasStatus>("cublasLtCreate", [&] {
    require(state().config.driver && state().config.devices > 0, kBlasNotInitialized, kDocumented,
            "there is no driver or no device");
    return add(handle, {current_device()});
  });
}
BlasStatus cublasLtDestroy(BlasHandle* handle) { return destroy("cublasLtDestroy", handle); }

std::size_t cublasLtGetVersion() { return 130000; }
std::size_t cublasLtGetCudartVersion() { return 13000; }

const char* cublasLtGetStatusName(BlasStatus status) {
  switch (status) {
    case kBlasSuccess: return "CUBLAS_STATUS_SUCCESS";
    case kBlasNotInitialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kBlasInvalidValue: return "CUBLAS_STATUS_INVALID_VALUE";
    case kBlasExecutionFailed: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case kBlasNotSupported: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}
const char* cublasLtGetStatusString(BlasStatus status) {
  switch (status) {
    case kBlasSuccess: return "success";
    case kBlasNotInitialized: return "the library was not initialized";
    case kBlasInvalidValue: return "an unsupported value or parameter was passed to the function";
    case kBlasExecutionFailed: return "the function failed to launch on the GPU";
    case kBlasNotSupported: return "the requested functionality is not supported";
  }
  return "unknown error";
}

BlasStatus cublasLtMatmulDescCreate(BlasMatmul** matmul, BlasCompute compute, DataType scale) {
  return create("cublasLtMatmulDescCreate", matmul, {compute, scale});
}
BlasStatus cublasLtMatmulDescDestroy(BlasMatmul* matmul) { return destroy("cublasLtMatmulDescDestroy", matmul); }

BlasStatus cublasLtMatmulDescSetAttribute(BlasMatmul* raw, BlasMatmulAttribute attribute, const void* data,
                                          std::size_t size) {
  return guarded<BlasStatus>("cublasLtMatmulDescSetAttribute", [&] {
    BlasMatmul& matmul = use(raw);
    switch (attribute) {
      case kBlasComputeType: matmul.compute = value_of<BlasCompute>(data, size); return kBlasSuccess;
      case kBlasScaleType: matmul.scale = value_of<DataType>(data, size); return kBlasSuccess;
      case kBlasPointerMode:
        require(value_of<int>(data, size) == 0, kBlasNotSupported, kAssumed, "the emulator takes host scalars only");
        return kBlasSuccess;
      case kBlasTransA: matmul.op_a = operation(data, size); return kBlasSuccess;
      case kBlasTransB: matmul.op_b = operation(data, size); return kBlasSuccess;
      case kBlasTransC:
        require(operation(data, size) == kNonTranspose, kBlasNotSupported, kDocumented, "C is not transposed");
        return kBlasSuccess;
      case kBlasEpilogue: {
        const auto epilogue = value_of<unsigned>(data, size);
        constexpr unsigned kKnown[] = {kBlasDefault,          kBlasRelu, kBlasBias,
                                       kBlasRelu | kBlasBias, kBlasGelu, kBlasGelu | kBlasBias};
        require(std::ranges::find(kKnown, epilogue) != std::end(kKnown), kBlasNotSupported, kAssumed,
                "the emulator does not know this epilogue");
        matmul.epilogue = epilogue;
        return kBlasSuccess;
      }
      case kBlasBiasPointer: matmul.bias = value_of<const void*>(data, size); return kBlasSuccess;
      case kBlasBiasBatchStride: matmul.bias_stride = value_of<std::int64_t>(data, size); return kBlasSuccess;
      case kBlasBiasDataType: matmul.bias_type = value_of<int>(data, size); return kBlasSuccess;
    }
    throw Refusal{kBlasNotSupported, kAssumed, "the emulator does not know this attribute"};
  });
}

BlasStatus cublasLtMatrixLayoutCreate(BlasLayout** layout, DataType type, std::uint64_t rows, std::uint64_t cols,
                                      std::int64_t ld) {
  Matrix matrix{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(cols), ld, 16, type, kOrderCol, false, 1, 0};
  return create("cublasLtMatrixLayoutCreate", layout, {matrix});
}
BlasStatus cublasLtMatrixLayoutDestroy(BlasLayout* layout) { return destroy("cublasLtMatrixLayoutDestroy", layout); }

BlasStatus cublasLtMatrixLayoutSetAttribute(BlasLayout* raw, BlasLayoutAttribute attribute, const void* data,
                                            std::size_t size) {
  return guarded<BlasStatus>("cublasLtMatrixLayoutSetAttribute", [&] {
    Matrix& matrix = use(raw).matrix;
    switch (attribute) {
      case kBlasType: matrix.type = value_of<DataType>(data, size); return kBlasSuccess;
      case kBlasLayoutOrder: {
        const auto order = value_of<int>(data, size);
        require(order == kBlasCol || order == kBlasRow, kBlasNotSupported, kAssumed, "the emulator knows two orders");
        matrix.order = order == kBlasCol ? kOrderCol : kOrderRow;
        return kBlasSuccess;
      }
      case kBlasRows: matrix.rows = value_of<std::int64_t>(data, size); return kBlasSuccess;
      case kBlasCols: matrix.cols = value_of<std::int64_t>(data, size); return kBlasSuccess;
      case kBlasLd: matrix.ld = value_of<std::int64_t>(data, size); return kBlasSuccess;
      case kBlasBatchCount: matrix.batches = value_of<int>(data, size); return kBlasSuccess;
      case kBlasBatchOffset: matrix.batch_stride = value_of<std::int64_t>(data, size); return kBlasSuccess;
    }
    throw Refusal{kBlasNotSupported, kAssumed, "the emulator does not know this attribute"};
  });
}

BlasStatus cublasLtMatmulPreferenceCreate(BlasPreference** preference) {
  return create("cublasLtMatmulPreferenceCreate", preference, {});
}
BlasStatus cublasLtMatmulPreferenceDestroy(BlasPreference* preference) {
  return destroy("cublasLtMatmulPreferenceDestroy", preference);
}
BlasStatus cublasLtMatmulPreferenceSetAttribute(BlasPreference* raw, BlasPreferenceAttribute attribute,
                                                const void* data, std::size_t size) {
  return guarded<BlasStatus>("cublasLtMatmulPreferenceSetAttribute", [&] {
    BlasPreference& preference = use(raw);
    // The others (alignments, masks) do not choose anything here.
    if (attribute == kBlasMaxWorkspace) preference.max_workspace = value_of<std::uint64_t>(data, size);
    return kBlasSuccess;
  });
}

BlasStatus cublasLtMatmulAlgoGetHeuristic(BlasHandle* handle, BlasMatmul* matmul, BlasLayout* a, BlasLayout* b,
                                          BlasLayout* c, BlasLayout* d, BlasPreference* preference, int requested,
                                          BlasHeuristic* results, int* returned) {
  return guarded<BlasStatus>("cublasLtMatmulAlgoGetHeuristic", [&] {
    use(handle);
    use(preference);
    require(results && returned && requested > 0, kBlasInvalidValue, kDocumented, "no room for a result");
    *returned = 0;
    checked_product(matmul, a, b, c, d);
    results[0] = {};
    results[0].waves = 1;
    *returned = 1;
    return kBlasSuccess;
  });
}

BlasStatus cublasLtMatmul(BlasHandle* handle, BlasMatmul* matmul, const void* alpha, const void* a,
                          BlasLayout* layout_a, const void* b, BlasLayout* layout_b, const void* beta, const void* c,
                          BlasLayout* layout_c, void* d, BlasLayout* layout_d, const BlasAlgorithm*, void* workspace,
                          std::size_t size, Stream stream) {
  return guarded<BlasStatus>("cublasLtMatmul", [&] {
    const int device = use(handle).device;
    const DenseProduct product = checked_product(matmul, layout_a, layout_b, layout_c, layout_d);
    const float scale = scalar(alpha, product.matmul.scale), add = scalar(beta, product.matmul.scale);
    require(a && b && d && (c || add == 0), kBlasInvalidValue, kDocumented, "an operand is a null pointer");
    submit(stream, device, kBlasExecutionFailed,
           std::make_shared<const DenseWork>(product, scale, add, a, b, c, d, workspace, size));
    return kBlasSuccess;
  });
}

}  // namespace emulator
