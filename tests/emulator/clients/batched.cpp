// int8 into int8, two batches with padded strides, a bias per row, ReLU with bounds, per-row scales; the product is
// captured into a graph and replayed. Compared with the CPU.
#include <algorithm>
#include <cstdint>

#include "client.h"

namespace {

constexpr int64_t kRows = 96, kColumns = 64, kDepth = 128, kPadding = 32;
constexpr int kBatches = 2;
constexpr float kThreshold = 2.0f, kUpperBound = 100.0f;

struct Sizes {
  int64_t a_ld = kDepth + kPadding, b_ld = kDepth + kPadding, d_ld = kRows + kPadding;
  int64_t a_stride = kRows * a_ld + 64, b_stride = kColumns * b_ld, d_stride = kColumns * d_ld + 128;
} constexpr kSizes;

std::vector<int8_t> integers(std::size_t count, unsigned seed) {
  std::vector<int8_t> values;
  for (float value : normals(count, seed))
    values.push_back(static_cast<int8_t>(std::clamp(value * 4, -100.0f, 100.0f)));
  return values;
}

void set_batches(const cusparseLtHandle_t* handle, cusparseLtMatDescriptor_t* matrix, int64_t stride) {
  CHECK(cusparseLtMatDescSetAttribute(handle, matrix, CUSPARSELT_MAT_NUM_BATCHES, &kBatches, sizeof kBatches));
  CHECK(cusparseLtMatDescSetAttribute(handle, matrix, CUSPARSELT_MAT_BATCH_STRIDE, &stride, sizeof stride));
}

template <typename Value>
void set(const cusparseLtHandle_t* handle, cusparseLtMatmulDescriptor_t* matmul,
         cusparseLtMatmulDescAttribute_t attribute, Value value) {
  CHECK(cusparseLtMatmulDescSetAttribute(handle, matmul, attribute, &value, sizeof value));
}

}  // namespace

int main() {
  const Buffer<int8_t> a(integers(kBatches * kSizes.a_stride, 1)), b(integers(kBatches * kSizes.b_stride, 2));
  const Buffer<int8_t> d(std::vector<int8_t>(kBatches * kSizes.d_stride, 0));
  const Buffer<float> scales(std::vector<float>(kRows, 0.125f)), bias(normals(kBatches * kRows, 3));
  const Buffer<int> invalid(1);

  cusparseLtHandle_t handle;
  cusparseLtMatDescriptor_t mat_a, mat_b, mat_d;
  cusparseLtMatmulDescriptor_t matmul;
  cusparseLtMatmulAlgSelection_t selection;
  cusparseLtMatmulPlan_t plan;
  CHECK(cusparseLtInit(&handle));
  CHECK(cusparseLtStructuredDescriptorInit(&handle, &mat_a, kRows, kDepth, kSizes.a_ld, 16, CUDA_R_8I,
                                           CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT));
  CHECK(
      cusparseLtDenseDescriptorInit(&handle, &mat_b, kDepth, kColumns, kSizes.b_ld, 16, CUDA_R_8I, CUSPARSE_ORDER_COL));
  CHECK(
      cusparseLtDenseDescriptorInit(&handle, &mat_d, kRows, kColumns, kSizes.d_ld, 16, CUDA_R_8I, CUSPARSE_ORDER_COL));
  set_batches(&handle, &mat_a, kSizes.a_stride);
  set_batches(&handle, &mat_b, kSizes.b_stride);
  set_batches(&handle, &mat_d, kSizes.d_stride);
  CHECK(cusparseLtMatmulDescriptorInit(&handle, &matmul, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                       CUSPARSE_OPERATION_NON_TRANSPOSE, &mat_a, &mat_b, &mat_d, &mat_d,
                                       CUSPARSE_COMPUTE_32I));
  set(&handle, &matmul, CUSPARSELT_MATMUL_ACTIVATION_RELU, 1);
  set(&handle, &matmul, CUSPARSELT_MATMUL_ACTIVATION_RELU_THRESHOLD, kThreshold);
  set(&handle, &matmul, CUSPARSELT_MATMUL_ACTIVATION_RELU_UPPERBOUND, kUpperBound);
  set(&handle, &matmul, CUSPARSELT_MATMUL_ALPHA_VECTOR_SCALING, 1);
  set(&handle, &matmul, CUSPARSELT_MATMUL_BIAS_POINTER, static_cast<const void*>(bias.get()));
  set(&handle, &matmul, CUSPARSELT_MATMUL_BIAS_STRIDE, kRows);
  CHECK(cusparseLtMatmulAlgSelectionInit(&handle, &selection, &matmul, CUSPARSELT_MATMUL_ALG_DEFAULT));
  int split_k = 0;
  CHECK(cusparseLtMatmulAlgGetAttribute(&handle, &selection, CUSPARSELT_MATMUL_SPLIT_K, &split_k, sizeof split_k));
  CHECK(cusparseLtMatmulPlanInit(&handle, &plan, &matmul, &selection));

  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaDeviceSynchronize());
  CHECK(cusparseLtSpMMAPrune(&handle, &matmul, a.get(), a.get(), CUSPARSELT_PRUNE_SPMMA_STRIP, stream));
  CHECK(cusparseLtSpMMAPruneCheck(&handle, &matmul, a.get(), invalid.get(), stream));
  CHECK(cudaStreamSynchronize(stream));
  expect(invalid.read()[0] == 0, "the pruned matrices are 2:4");
  size_t compressed_bytes, buffer_bytes, workspace_bytes;
  CHECK(cusparseLtSpMMACompressedSize(&handle, &plan, &compressed_bytes, &buffer_bytes));
  CHECK(cusparseLtMatmulGetWorkspace(&handle, &plan, &workspace_bytes));
  const Buffer<char> compressed(compressed_bytes), buffer(buffer_bytes), workspace(workspace_bytes);
  CHECK(cusparseLtSpMMACompress(&handle, &plan, a.get(), compressed.get(), buffer.get(), stream));

  cudaGraph_t graph;
  cudaGraphExec_t executable;
  const float unused_beta = 0.0f;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  CHECK(cusparseLtMatmul(&handle, &plan, scales.get(), compressed.get(), b.get(), &unused_beta, d.get(), d.get(),
                         workspace.get(), &stream, 1));
  CHECK(cudaStreamEndCapture(stream, &graph));
#if CUDART_VERSION >= 12000
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
#else
  CHECK(cudaGraphInstantiateWithFlags(&executable, graph, 0));
#endif
  CHECK(cudaGraphLaunch(executable, stream));
  CHECK(cudaStreamSynchronize(stream));

  const auto left = a.read(), right = b.read(), got = d.read();
  const auto by = scales.read(), add = bias.read();
  int64_t wrong = 0;
  for (int batch = 0; batch < kBatches; ++batch) {
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kColumns; ++j) {
        int32_t sum = 0;
        for (int64_t k = 0; k < kDepth; ++k) {
          sum += left[batch * kSizes.a_stride + i * kSizes.a_ld + k] *
                 right[batch * kSizes.b_stride + j * kSizes.b_ld + k];
        }
        const float value = by[i] * static_cast<float>(sum) + add[batch * kRows + i];
        const float activated = value <= kThreshold ? 0.0f : std::min(value, kUpperBound);
        const auto wanted = static_cast<int8_t>(std::clamp(std::nearbyint(activated), -128.0f, 127.0f));
        wrong += got[batch * kSizes.d_stride + j * kSizes.d_ld + i] != wanted;
      }
    }
  }
  std::printf("split-K %d, compressed %zu, workspace %zu, wrong %lld\n", split_k, compressed_bytes, workspace_bytes,
              static_cast<long long>(wrong));
  expect(wrong == 0, "the products");

  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cusparseLtMatmulPlanDestroy(&plan));
  CHECK(cusparseLtMatmulAlgSelectionDestroy(&selection));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_a));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_b));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_d));
  CHECK(cusparseLtDestroy(&handle));
  CHECK(cudaStreamDestroy(stream));
  std::printf("batched passed\n");
}
