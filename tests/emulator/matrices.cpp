// Matrix descriptors.
#include "attributes.h"
#include "exports.h"
#include "objects.h"

namespace emulator {

namespace {

Status init_matrix(const Handle* handle, MatDescriptor* raw, Matrix matrix) {
  const HandleObject& owner = use_handle(handle);
  require(raw != nullptr, kInvalidValue, kMeasured, "the matrix descriptor is a null pointer");
  require(matrix.rows > 0 && matrix.cols > 0, kInvalidValue, kMeasured, "rows and cols must be positive");
  require(matrix.order == kOrderCol || matrix.order == kOrderRow, kInvalidValue, kMeasured, "unknown order");
  require(matrix.ld >= matrix.line_length(), kInvalidValue, kMeasured,
          "ld must be at least cols (row-major) or rows (column-major)");
  require(bits(matrix.type) != 0, kInvalidValue, kMeasured, "no matrix has this type");
  const std::int64_t multiple = required_multiple(matrix.type, matrix.structured);
  require(matrix.rows % multiple == 0 && matrix.cols % multiple == 0 && matrix.ld % multiple == 0, kNotSupported,
          kMeasured, "rows, cols and ld must be multiples of 16 bytes (dense) or 32 bytes (structured) of elements");
  require(matrix.alignment > 0 && matrix.alignment % 16 == 0, kNotSupported, kMeasured,
          "the alignment must be a positive multiple of 16");
  require(matrix.ld <= std::numeric_limits<std::int64_t>::max() / matrix.lines(), kInvalidValue, kDocumented,
          "ld times the number of lines overflows");
  matrix.batch_stride = matrix.lines() * matrix.ld;  // measured default
  auto object = std::make_shared<MatrixObject>();
  object->handle = owner.id;
  object->matrix = matrix;
  add_object(raw, object);
  return kSuccess;
}

}  // namespace

Status cusparseLtDenseDescriptorInit(const Handle* handle, MatDescriptor* raw, std::int64_t rows, std::int64_t cols,
                                     std::int64_t ld, std::uint32_t alignment, DataType type, Order order) {
  return guarded<Status>("cusparseLtDenseDescriptorInit", [&] {
    return init_matrix(handle, raw, {rows, cols, ld, alignment, type, order, false, 1, 0});
  });
}

Status cusparseLtStructuredDescriptorInit(const Handle* handle, MatDescriptor* raw, std::int64_t rows,
                                          std::int64_t cols, std::int64_t ld, std::uint32_t alignment, DataType type,
                                          Order order, Sparsity sparsity) {
  return guarded<Status>("cusparseLtStructuredDescriptorInit", [&] {
    use_handle(handle);
    require(sparsity == kSparsity50Percent, kInvalidValue, kMeasured, "unknown sparsity");
    return init_matrix(handle, raw, {rows, cols, ld, alignment, type, order, true, 1, 0});
  });
}

Status cusparseLtMatDescriptorDestroy(const MatDescriptor* raw) {
  return guarded<Status>("cusparseLtMatDescriptorDestroy", [&] {
    destroy_object(raw, find<MatrixObject>(raw));
    return kSuccess;
  });
}

Status cusparseLtMatDescSetAttribute(const Handle* handle, MatDescriptor* raw, MatAttribute attribute, const void* data,
                                     std::size_t size) {
  return guarded<Status>("cusparseLtMatDescSetAttribute", [&] {
    use_handle(handle);
    Matrix& matrix = find<MatrixObject>(raw)->matrix;
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    switch (attribute) {
      case kNumBatches: {
        const int batches = attribute_in<int>(data, size);
        require(batches >= 1, kInvalidValue, kMeasured, "NUM_BATCHES must be at least 1");
        matrix.batches = batches;
        return kSuccess;
      }
      case kBatchStride: {
        const auto stride = attribute_in<std::int64_t>(data, size);
        require(stride == 0 || stride >= matrix.lines() * matrix.ld, kInvalidValue, kMeasured,
                "BATCH_STRIDE must be 0 or at least the elements of one matrix (lines times ld)");
        matrix.batch_stride = stride;
        return kSuccess;
      }
    }
    throw Refusal{kInvalidValue, kMeasured, "unknown attribute of a matrix"};
  });
}

Status cusparseLtMatDescGetAttribute(const Handle* handle, const MatDescriptor* raw, MatAttribute attribute, void* data,
                                     std::size_t size) {
  return guarded<Status>("cusparseLtMatDescGetAttribute", [&] {
    use_handle(handle);
    const Matrix& matrix = find<MatrixObject>(raw)->matrix;
    require(data != nullptr, kInvalidValue, kMeasured, "data is a null pointer");
    switch (attribute) {
      case kNumBatches: attribute_out(matrix.batches, data, size); return kSuccess;
      case kBatchStride: attribute_out(matrix.batch_stride, data, size); return kSuccess;
    }
    throw Refusal{kInvalidValue, kMeasured, "unknown attribute of a matrix"};
  });
}

}  // namespace emulator
