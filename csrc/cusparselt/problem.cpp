#include "problem.h"

#include <cstdint>
#include <iterator>

#include "types.h"

namespace sparse24::cusparselt {
namespace {

constexpr std::uint32_t kAlignment = 16;  // bytes, of every address

abi::ComputeType compute_type(DType in) { return in == DType::kInt8 ? abi::kCompute32I : abi::kCompute32F; }

// Refuses an illegal product; a member initialiser, so that nothing of the library runs before it.
const Product& legal(const Handle& handle, const Product& product, const void* bias) {
  std::string broken = why_illegal(product, handle.info().sm, api().version);
  if (broken.empty() && product.has_bias && bias == nullptr) broken = "a plan with a bias is made with its address";
  if (!broken.empty()) throw InvalidArgument(message(broken, " (", describe(product), ")"));
  return product;
}

void set_batches(const Handle& handle, abi::MatDescriptor* matrix, const Product& p, std::int64_t stride) {
  if (p.batches == 1) return;
  const int batches = static_cast<int>(p.batches);
  const auto where = [&] { return describe(p); };
  const auto set = [&](abi::MatAttribute attribute, const void* data, std::size_t size) {
    check(api().MatDescSetAttribute(handle.get(), matrix, attribute, data, size), "cusparseLtMatDescSetAttribute",
          where);
  };
  set(abi::kNumBatches, &batches, sizeof batches);
  set(abi::kBatchStride, &stride, sizeof stride);
}

struct Matrix {
  std::int64_t rows, cols, ld;
  DType dtype;
  abi::Order order;
  std::int64_t batch_stride;
};

void init_dense(const Handle& handle, const Product& p, const Matrix& as, abi::MatDescriptor* matrix) {
  check(api().DenseDescriptorInit(handle.get(), matrix, as.rows, as.cols, as.ld, kAlignment, traits(as.dtype).type,
                                  as.order),
        "cusparseLtDenseDescriptorInit", [&] { return describe(p); });
  try {
    set_batches(handle, matrix, p, as.batch_stride);
  } catch (...) {
    api().MatDescriptorDestroy(matrix);
    throw;
  }
}

void init_weight(const Handle& handle, const Product& p, abi::MatDescriptor* matrix) {
  check(api().StructuredDescriptorInit(handle.get(), matrix, p.m, p.k, p.k, kAlignment, traits(p.in).type,
                                       abi::kOrderRow, abi::kSparsity50Percent),
        "cusparseLtStructuredDescriptorInit", [&] { return describe(p); });
  try {
    set_batches(handle, matrix, p, 0);  // one weight for every batch
  } catch (...) {
    api().MatDescriptorDestroy(matrix);
    throw;
  }
}

void require_aligned(const void* address, const char* name) {
  if (reinterpret_cast<std::uintptr_t>(address) % kAlignment != 0) {
    throw InvalidArgument(message(name, " must be aligned to ", kAlignment, " bytes, not ", address));
  }
}

void require_operand(const void* address, const char* name) {
  if (address == nullptr) throw InvalidArgument(message(name, " is null"));
  require_aligned(address, name);
}

std::string describe(const BlobKey& key) {
  return message(name_of(key.in), " to ", name_of(key.out), " m=", key.m, " k=", key.k, " algorithm ", key.algorithm.id,
                 " split_k ", key.algorithm.split_k, " mode ", key.algorithm.split_k_mode, " on device ", key.device,
                 " sm_", key.sm, " cuSPARSELt ", version_text(key.version));
}

}  // namespace

Handle::Handle(int device)
    : device_(device),
      info_(ask_device(device)),
      handle_(
          [&](abi::Handle* handle) {
            require_current(device);
            const auto where = [&] { return message("device ", device, ", sm_", info_.sm); };
            check(api().Init(handle), "cusparseLtInit", where);
          },
          api().Destroy) {}

Problem::Problem(const Handle& handle, const Product& product, const void* bias, int search_launches)
    : handle_(handle),
      product_(legal(handle, product, bias)),
      bias_(product.has_bias ? bias : nullptr),
      weight_([&](auto* matrix) { init_weight(handle_, product_, matrix); }, api().MatDescriptorDestroy),
      x_(
          [&](auto* matrix) {
            const auto& p = product_;
            init_dense(handle_, p, {p.n, p.k, p.x_stride, p.in, abi::kOrderRow, p.x_batch_stride}, matrix);
          },
          api().MatDescriptorDestroy),
      y_(
          [&](auto* matrix) {
            const auto& p = product_;
            init_dense(handle_, p, {p.m, p.n, p.y_stride, p.out, abi::kOrderCol, p.y_batch_stride}, matrix);
          },
          api().MatDescriptorDestroy),
      matmul_([&](auto* matmul) { init_matmul(matmul); }, nullptr),  // has no destroy function
      selection_([&](auto* selection) { init_selection(selection, search_launches); }, api().MatmulAlgSelectionDestroy),
      plan_(
          [&](auto* plan) {
            check(api().MatmulPlanInit(handle_.get(), plan, matmul_.get(), selection_.get()),
                  "cusparseLtMatmulPlanInit", [&] { return describe(product_); });
          },
          api().MatmulPlanDestroy),
      sizes_(ask_sizes()) {}

void Problem::init_matmul(abi::MatmulDescriptor* matmul) const {
  const auto where = [&] { return describe(product_); };
  check(api().MatmulDescriptorInit(handle_.get(), matmul, abi::kNonTranspose, abi::kTranspose, weight_.get(), x_.get(),
                                   y_.get(), y_.get(), compute_type(product_.in)),
        "cusparseLtMatmulDescriptorInit", where);
  const auto set = [&](abi::MatmulAttribute attribute, const auto& value) {
    check(api().MatmulDescSetAttribute(handle_.get(), matmul, attribute, &value, sizeof value),
          "cusparseLtMatmulDescSetAttribute", where);
  };
  const int on = 1;
  if (product_.activation == Activation::kRelu) {
    set(abi::kRelu, on);
    if (product_.relu_threshold != 0) set(abi::kReluThreshold, product_.relu_threshold);
    if (product_.relu_upper_bound != std::numeric_limits<float>::infinity()) {
      set(abi::kReluUpperBound, product_.relu_upper_bound);
    }
  }
  if (product_.activation == Activation::kGeluTanh) set(abi::kGelu, on);
  if (product_.scale_per_row) set(abi::kAlphaVectorScaling, on);
  // A plan may settle on its epilogue by whether there is a bias, and by its alignment.
  if (product_.has_bias) set(abi::kBiasPointer, bias_);
}

void Problem::init_selection(abi::AlgSelection* selection, int search_launches) {
  const auto where = [&] { return describe(product_); };
  check(api().MatmulAlgSelectionInit(handle_.get(), selection, matmul_.get(), abi::kAlgDefault),
        "cusparseLtMatmulAlgSelectionInit", where);
  const auto set = [&](abi::AlgAttribute attribute, int value) {
    check(api().MatmulAlgSetAttribute(handle_.get(), selection, attribute, &value, sizeof value),
          "cusparseLtMatmulAlgSetAttribute", where);
  };
  try {
    check(api().MatmulAlgGetAttribute(handle_.get(), selection, abi::kConfigMaxId, &algorithms_, sizeof algorithms_),
          "cusparseLtMatmulAlgGetAttribute", where);
    const Algorithm& wanted = product_.algorithm;
    if (wanted.id >= algorithms_) {
      throw InvalidArgument(message("algorithm id must be below ", algorithms_, " for this product, not ", wanted.id,
                                    " (", describe(product_), ")"));
    }
    // Defaults are left unset: sm_90 begins with another split-k than the rest.
    if (wanted.id != 0) set(abi::kConfigId, wanted.id);
    if (wanted.split_k != 0) set(abi::kSplitK, wanted.split_k);
    if (wanted.split_k_mode != 0) set(abi::kSplitKMode, wanted.split_k_mode);
    if (wanted.split_k_buffers >= 0) set(abi::kSplitKBuffers, wanted.split_k_buffers);
    if (search_launches > 0) set(abi::kSearchIterations, search_launches);
  } catch (...) {
    if (api().MatmulAlgSelectionDestroy != nullptr) api().MatmulAlgSelectionDestroy(selection);
    throw;
  }
}

Sizes Problem::ask_sizes() const {
  const auto where = [&] { return describe(product_); };
  Sizes sizes{};
  check(api().SpMMACompressedSize(handle_.get(), plan_.get(), &sizes.blob, &sizes.compress_buffer),
        "cusparseLtSpMMACompressedSize", where);
  check(api().MatmulGetWorkspace(handle_.get(), plan_.get(), &sizes.workspace), "cusparseLtMatmulGetWorkspace", where);
  return sizes;
}

BlobKey Handle::key(const Product& product) const {
  Algorithm algorithm = product.algorithm;
  // No split is the default everywhere but on sm_90, where one log shows -1.
  if (algorithm.split_k == 1 && info_.sm != 90) algorithm.split_k = 0;
  if (algorithm.split_k == 0) algorithm = {.id = algorithm.id};  // how to split says nothing then
  return {device_, info_.sm, api().version, product.in, product.out, product.m, product.k, algorithm};
}

void Problem::set(abi::MatmulAttribute attribute, const void* data, std::size_t size) {
  check(api().MatmulDescSetAttribute(handle_.get(), matmul_.get(), attribute, data, size),
        "cusparseLtMatmulDescSetAttribute", [&] { return describe(product_); });
}

void Problem::set_bias(const void* bias) {
  if (bias == bias_) return;
  set(abi::kBiasPointer, &bias, sizeof bias);
  bias_ = bias;
}

void Problem::compress(const void* dense, void* blob, void* buffer, abi::Stream stream) const {
  require_operand(dense, "dense");
  require_operand(blob, "blob");
  require_aligned(buffer, "buffer");
  check(api().SpMMACompress(handle_.get(), plan_.get(), dense, blob, buffer, stream), "cusparseLtSpMMACompress",
        [&] { return describe(product_); });
}

void Problem::run(const Operands& operands, abi::Stream stream) {
  const BlobKey key = handle_.key(product_);
  if (operands.key != key) {
    throw InvalidArgument(message("the blob was compressed for ", describe(operands.key), ", but this plan reads ",
                                  describe(key), ": compress the weight again with this product"));
  }
  require_operand(operands.blob, "blob");
  require_operand(operands.x, "x");
  require_operand(operands.y, "y");
  if (product_.has_bias) require_operand(operands.bias, "bias");
  if (product_.scale_per_row) require_operand(operands.scale, "scale");
  require_aligned(operands.workspace, "workspace");
  if (operands.workspace_bytes < sizes_.workspace) {
    throw InvalidArgument(
        message("the workspace must hold ", sizes_.workspace, " bytes, not ", operands.workspace_bytes));
  }
  if (product_.has_bias) set_bias(operands.bias);
  const float zero = 0;
  const void* alpha = product_.scale_per_row ? static_cast<const void*>(operands.scale) : &operands.alpha;
  check(api().Matmul(handle_.get(), plan_.get(), alpha, operands.blob, operands.x, &zero, operands.y, operands.y,
                     operands.workspace, &stream, 1),
        "cusparseLtMatmul", [&] { return describe(product_); });
}

Algorithm Problem::search(const SearchBuffers& buffers, abi::Stream stream) {
  const auto where = [&] { return describe(product_); };
  compress(buffers.dense, buffers.blob, buffers.compress_buffer, stream);
  set(abi::kSparseMatPointer, &buffers.dense, sizeof buffers.dense);
  if (product_.has_bias) set_bias(buffers.bias);
  const float one = 1, zero = 0;
  const void* alpha = product_.scale_per_row ? static_cast<const void*>(buffers.scale) : &one;
  // With the largest workspace that any candidate wants: without one, those that want some are not tried.
  check(api().MatmulSearch(handle_.get(), plan_.get(), alpha, buffers.blob, buffers.x, &zero, buffers.y, buffers.y,
                           buffers.workspace, &stream, 1),
        "cusparseLtMatmulSearch", where);
  const auto get = [&](abi::AlgAttribute attribute) {
    int value = 0;
    check(api().MatmulAlgGetAttribute(handle_.get(), selection_.get(), attribute, &value, sizeof value),
          "cusparseLtMatmulAlgGetAttribute", where);
    return value;
  };
  const int split_k_buffers = get(abi::kSplitKBuffers);
  return {get(abi::kConfigId), get(abi::kSplitK), get(abi::kSplitKMode), split_k_buffers > 0 ? split_k_buffers : -1};
}

void Problem::abandon() {
  weight_.abandon();
  x_.abandon();
  y_.abandon();
  selection_.abandon();
  plan_.abandon();
}

}  // namespace sparse24::cusparselt
