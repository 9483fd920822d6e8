// fp16, row-major: prune, check, compress, search, multiply, compare with the CPU. The plain flow of the library.
#include <cuda_fp16.h>

#include "client.h"

int main() {
  constexpr int64_t kRows = 64, kColumns = 96, kDepth = 128;
  constexpr unsigned kAlignment = 16;
  int major = 0, minor = 0;
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  std::printf("compute capability %d.%d\n", major, minor);

  const auto halves = [](const std::vector<float>& from) {
    std::vector<__half> to;
    for (float value : from) to.push_back(__float2half(value));
    return to;
  };
  const Buffer<__half> a(halves(normals(kRows * kDepth, 1))), b(halves(normals(kDepth * kColumns, 2)));
  const Buffer<__half> c(halves(normals(kRows * kColumns, 3)));
  const auto c_before = c.read();
  const Buffer<int> invalid(1);

  cusparseLtHandle_t handle;
  cusparseLtMatDescriptor_t mat_a, mat_b, mat_c;
  cusparseLtMatmulDescriptor_t matmul;
  cusparseLtMatmulAlgSelection_t selection;
  cusparseLtMatmulPlan_t plan;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cusparseLtInit(&handle));
  CHECK(cusparseLtStructuredDescriptorInit(&handle, &mat_a, kRows, kDepth, kDepth, kAlignment, CUDA_R_16F,
                                           CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT));
  CHECK(cusparseLtDenseDescriptorInit(&handle, &mat_b, kDepth, kColumns, kColumns, kAlignment, CUDA_R_16F,
                                      CUSPARSE_ORDER_ROW));
  CHECK(cusparseLtDenseDescriptorInit(&handle, &mat_c, kRows, kColumns, kColumns, kAlignment, CUDA_R_16F,
                                      CUSPARSE_ORDER_ROW));
  CHECK(cusparseLtMatmulDescriptorInit(&handle, &matmul, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                       CUSPARSE_OPERATION_NON_TRANSPOSE, &mat_a, &mat_b, &mat_c, &mat_c,
                                       CUSPARSE_COMPUTE_32F));
  CHECK(cusparseLtMatmulAlgSelectionInit(&handle, &selection, &matmul, CUSPARSELT_MATMUL_ALG_DEFAULT));
  CHECK(cusparseLtMatmulPlanInit(&handle, &plan, &matmul, &selection));
  const void* sparse = a.get();
  CHECK(
      cusparseLtMatmulDescSetAttribute(&handle, &matmul, CUSPARSELT_MATMUL_SPARSE_MAT_POINTER, &sparse, sizeof sparse));

  CHECK(cusparseLtSpMMAPrune(&handle, &matmul, a.get(), a.get(), CUSPARSELT_PRUNE_SPMMA_TILE, stream));
  CHECK(cusparseLtSpMMAPruneCheck(&handle, &matmul, a.get(), invalid.get(), stream));
  int is_invalid = -1;
  CHECK(cudaMemcpyAsync(&is_invalid, invalid.get(), sizeof is_invalid, cudaMemcpyDeviceToHost, stream));
  CHECK(cudaStreamSynchronize(stream));
  expect(is_invalid == 0, "the pruned matrix is 2:4");
  const auto pruned = a.read();

  size_t compressed_bytes, buffer_bytes, workspace_bytes;
  CHECK(cusparseLtSpMMACompressedSize(&handle, &plan, &compressed_bytes, &buffer_bytes));
  const Buffer<char> compressed(compressed_bytes), buffer(buffer_bytes);
  CHECK(cusparseLtSpMMACompress(&handle, &plan, a.get(), compressed.get(), buffer.get(), stream));

  const float alpha = 0.5f, no_beta = 0.0f, beta = 2.0f;
  const Buffer<__half> scratch(kRows * kColumns);
  CHECK(cusparseLtMatmulSearch(&handle, &plan, &alpha, compressed.get(), b.get(), &no_beta, scratch.get(),
                               scratch.get(), nullptr, &stream, 1));
  int id = -1;
  CHECK(cusparseLtMatmulAlgGetAttribute(&handle, &selection, CUSPARSELT_MATMUL_ALG_CONFIG_ID, &id, sizeof id));
  CHECK(cusparseLtMatmulGetWorkspace(&handle, &plan, &workspace_bytes));
  const Buffer<char> workspace(workspace_bytes);
  CHECK(cusparseLtMatmul(&handle, &plan, &alpha, compressed.get(), b.get(), &beta, c.get(), c.get(), workspace.get(),
                         &stream, 1));
  CHECK(cudaStreamSynchronize(stream));

  const auto got = c.read(), right = b.read();
  double worst = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < kDepth; ++k) {
        sum += double{__half2float(pruned[i * kDepth + k])} * double{__half2float(right[k * kColumns + j])};
      }
      const double exact = alpha * sum + beta * double{__half2float(c_before[i * kColumns + j])};
      worst = std::max(worst, std::abs(__half2float(got[i * kColumns + j]) - exact) / (1 + std::abs(exact)));
    }
  }
  std::printf("algorithm %d, compressed %zu, buffer %zu, workspace %zu, worst error %.2g\n", id, compressed_bytes,
              buffer_bytes, workspace_bytes, worst);
  expect(worst < 1e-3, "the product");

  CHECK(cusparseLtMatmulPlanDestroy(&plan));
  CHECK(cusparseLtMatmulAlgSelectionDestroy(&selection));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_a));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_b));
  CHECK(cusparseLtMatDescriptorDestroy(&mat_c));
  CHECK(cusparseLtDestroy(&handle));
  CHECK(cudaStreamDestroy(stream));
  std::printf("matmul passed\n");
}
