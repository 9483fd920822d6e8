// Pruning, its check, and compression.
#include <cstring>

#include "exports.h"
#include "plan.h"
#include "sparsity.h"
#include "submit.h"

namespace emulator {

namespace {

// The structured operand of a call.
struct Target {
  Matrix matrix;
  View view;
  bool is_a;
  int device, sm;
  bool has_plan = true;  // else sizes are those of the bare descriptor

  const View* known_view() const { return has_plan ? &view : nullptr; }
  std::size_t dense_bytes() const { return bytes(matrix.type, matrix.extent()); }
  std::size_t copy_bytes() const { return emulator::copy_bytes(matrix, known_view(), sm); }
  std::size_t buffer_bytes() const { return compress_buffer_bytes(matrix, known_view(), sm); }
  // A stride of 0 is one matrix for all batches.
  std::int64_t batches() const { return compressed_copies(matrix); }
  template <typename Byte>
  Byte* batch(Byte* data, std::int64_t index) const {
    return data + bytes(matrix.type, index * matrix.batch_stride);
  }
};

Target target_of(const HandleObject& handle, const MatmulObject& matmul) {
  const Product& p = matmul.product;
  return {p.sparse(), p.sparse_view(), p.sparse_a(), handle.device, p.sm};
}

Target target_of(const HandleObject& handle, const MatDescriptor* raw, int is_a, Operation op) {
  const auto object = find<MatrixObject>(raw);  // measured: a dense descriptor is taken as well
  require(op == kNonTranspose || op == kTranspose, kInvalidValue, kMeasured,
          "the operation must be non-transpose or transpose");
  Target target{object->matrix, view(object->matrix, is_a != 0, op), is_a != 0, handle.device, handle.sm, false};
  // measured: before a plan uses it, a descriptor counts as one matrix here.
  if (!object->in_plan) target.matrix.batches = 1;
  return target;
}

// For pruning and its check, where every batch counts.
Target whole_target_of(const HandleObject& handle, const MatDescriptor* raw, int is_a, Operation op) {
  Target target = target_of(handle, raw, is_a, op);
  target.matrix = find<MatrixObject>(raw)->matrix;
  return target;
}

void check_type(const Matrix& matrix) {
  require(bits(matrix.type) >= 8, kNotSupported, kAssumed, "the emulator does not prune or compress fp4");
}

Status prune(const char* function, const Target& target, const void* in, void* out, PruneAlg algorithm, Stream stream) {
  require(in && out, kInvalidValue, kMeasured, "in and out must not be null");
  require(algorithm == kPruneTile || algorithm == kPruneStrip, kInvalidValue, kMeasured, "unknown prune algorithm");
  check_type(target.matrix);
  require_aligned(in, "in must be aligned to 16 bytes");
  require_aligned(out, "out must be aligned to 16 bytes");
  submit(stream, target.device, kExecutionFailed, make_work(function, [=] {
           if (!check_range(in, target.dense_bytes(), "in") || !check_range(out, target.dense_bytes(), "out"))
             return false;
           for (std::int64_t i = 0; i < target.batches(); ++i) {
             const auto* from = target.batch(static_cast<const unsigned char*>(in), i);
             auto* to = target.batch(static_cast<unsigned char*>(out), i);
             if (algorithm == kPruneStrip) {
               prune_strip(target.matrix, target.view, from, to);
             } else {
               prune_tile(target.matrix, from, to);
             }
           }
           return true;
         }));
  return kSuccess;
}

// measured: 0 means pruned and 1 not, in device memory, in the order of the stream.
Status prune_check(const char* function, const Target& target, const void* in, int* valid, Stream stream) {
  require(in && valid, kInvalidValue, kMeasured, "in and d_valid must not be null");
  check_type(target.matrix);
  require_aligned(in, "in must be aligned to 16 bytes");
  submit(stream, target.device, kExecutionFailed, make_work(function, [=] {
           if (!check_range(in, target.dense_bytes(), "in") || !check_range(valid, sizeof(int), "d_valid"))
             return false;
           int bad = 0;
           for (std::int64_t i = 0; i < target.batches(); ++i) {
             bad |= !is_pruned(target.matrix, target.view, target.batch(static_cast<const unsigned char*>(in), i));
           }
           std::memcpy(valid, &bad, sizeof bad);
           return true;
         }));
  return kSuccess;
}

Status compressed_size(const Target& target, std::size_t* size, std::size_t* buffer_size) {
  require(size && buffer_size, kInvalidValue, kMeasured, "both sizes must be asked for");
  check_type(target.matrix);
  const auto copies = static_cast<std::size_t>(target.batches());
  *size = target.copy_bytes() * copies;
  *buffer_size = target.buffer_bytes() * copies;
  return kSuccess;
}

Status compress(const char* function, const Target& target, int config_id, const void* dense, void* compressed,
                void* buffer, Stream stream) {
  require(dense && compressed, kInvalidValue, kMeasured, "dense and compressed must not be null (the buffer may)");
  check_type(target.matrix);
  require_aligned(dense, "the dense matrix must be aligned to 16 bytes");
  require_aligned(compressed, "the compressed matrix must be aligned to 16 bytes");
  const BlobKind kind = blob_kind(target.matrix, target.view, target.is_a, target.sm, config_id);
  submit(stream, target.device, kExecutionFailed, make_work(function, [=] {
           const auto copies = static_cast<std::size_t>(target.batches());
           const std::size_t buffer_bytes = target.buffer_bytes() * copies;
           if (!check_range(dense, target.dense_bytes(), "the dense matrix") ||
               !check_range(compressed, target.copy_bytes() * copies, "the compressed matrix") ||
               (buffer && !check_range(buffer, buffer_bytes, "the buffer"))) {
             return false;
           }
           if (buffer) std::memset(buffer, 0xff, buffer_bytes);
           bool nothing_dropped = true;
           for (std::size_t i = 0; i < copies; ++i) {
             const auto* from = target.batch(static_cast<const unsigned char*>(dense), static_cast<std::int64_t>(i));
             auto* to = static_cast<unsigned char*>(compressed) + i * target.copy_bytes();
             nothing_dropped =
                 compress_copy(target.matrix, target.view, kind, from, to, target.copy_bytes()) && nothing_dropped;
           }
           if (!nothing_dropped) {
             violate(kDocumented, "the matrix is not pruned: values were dropped without an error");
           }
           return true;
         }));
  return kSuccess;
}

}  // namespace

Status cusparseLtSpMMAPrune(const Handle* handle, const MatmulDescriptor* descriptor, const void* in, void* out,
                            PruneAlg algorithm, Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMAPrune";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    const auto matmul = find<MatmulObject>(descriptor);
    check_alive(*matmul);
    return prune(kName, target_of(owner, *matmul), in, out, algorithm, stream);
  });
}

Status cusparseLtSpMMAPruneCheck(const Handle* handle, const MatmulDescriptor* descriptor, const void* in, int* valid,
                                 Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMAPruneCheck";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    const auto matmul = find<MatmulObject>(descriptor);
    check_alive(*matmul);
    return prune_check(kName, target_of(owner, *matmul), in, valid, stream);
  });
}

Status cusparseLtSpMMAPrune2(const Handle* handle, const MatDescriptor* descriptor, int is_a, Operation op,
                             const void* in, void* out, PruneAlg algorithm, Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMAPrune2";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    return prune(kName, whole_target_of(owner, descriptor, is_a, op), in, out, algorithm, stream);
  });
}

Status cusparseLtSpMMAPruneCheck2(const Handle* handle, const MatDescriptor* descriptor, int is_a, Operation op,
                                  const void* in, int* valid, Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMAPruneCheck2";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    return prune_check(kName, whole_target_of(owner, descriptor, is_a, op), in, valid, stream);
  });
}

Status cusparseLtSpMMACompressedSize(const Handle* handle, const Plan* raw, std::size_t* size,
                                     std::size_t* buffer_size) {
  return guarded<Status>("cusparseLtSpMMACompressedSize", [&] {
    const HandleObject& owner = use_handle(handle);
    return compressed_size(target_of(owner, *use_plan(raw, owner).matmul), size, buffer_size);
  });
}

Status cusparseLtSpMMACompress(const Handle* handle, const Plan* raw, const void* dense, void* compressed, void* buffer,
                               Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMACompress";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    const PlanObject& plan = use_plan(raw, owner);
    return compress(kName, target_of(owner, *plan.matmul), plan.problem->algorithm.config_id, dense, compressed, buffer,
                    stream);
  });
}

Status cusparseLtSpMMACompressedSize2(const Handle* handle, const MatDescriptor* descriptor, std::size_t* size,
                                      std::size_t* buffer_size) {
  return guarded<Status>("cusparseLtSpMMACompressedSize2", [&] {
    return compressed_size(target_of(use_handle(handle), descriptor, 1, kNonTranspose), size, buffer_size);
  });
}

// There is no plan to take an algorithm from: the blob is that of the default one.
Status cusparseLtSpMMACompress2(const Handle* handle, const MatDescriptor* descriptor, int is_a, Operation op,
                                const void* dense, void* compressed, void* buffer, Stream stream) {
  static constexpr char kName[] = "cusparseLtSpMMACompress2";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    return compress(kName, target_of(owner, descriptor, is_a, op), 0, dense, compressed, buffer, stream);
  });
}

}  // namespace emulator
