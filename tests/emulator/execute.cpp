// Matmul and MatmulSearch.
#include <cstring>

#include "exports.h"
#include "plan.h"
#include "product.h"
#include "submit.h"

namespace emulator {

namespace {

std::size_t blob_bytes(const Matrix& sparse) {
  return (values_bytes(sparse) + metadata_bytes(sparse)) * static_cast<std::size_t>(compressed_copies(sparse));
}

bool reads_c(const MatmulCall& call) {
  const Epilogue& epilogue = call.problem->epilogue;
  return epilogue.beta_vector || (!epilogue.alpha_vector && call.beta != 0);
}

bool operand_in_range(const Matrix& matrix, const void* data, const char* name) {
  return check_range(data, matrix.structured ? blob_bytes(matrix) : bytes(matrix.type, matrix.extent()), name);
}

bool all_in_range(const MatmulCall& call) {
  const Product& p = call.problem->product;
  const Epilogue& epilogue = call.problem->epilogue;
  const std::int64_t rows = p.d.rows;
  const auto vector_bytes = static_cast<std::size_t>(rows) * sizeof(float);
  bool good =
      operand_in_range(p.a, call.a, "A") & operand_in_range(p.b, call.b, "B") & operand_in_range(p.d, call.d, "D");
  if (reads_c(call)) good &= operand_in_range(p.c, call.c, "C");
  if (call.pointers.bias) {
    good &=
        check_range(call.pointers.bias, bytes(bias_type(p), rows + (p.d.batches - 1) * epilogue.bias_stride), "bias");
  }
  if (epilogue.alpha_vector) good &= check_range(call.alpha_vector, vector_bytes, "the alpha vector");
  if (epilogue.beta_vector) good &= check_range(call.beta_vector, vector_bytes, "the beta vector");
  if (call.workspace) good &= check_range(call.workspace, call.problem->workspace, "the workspace");
  return good;
}

class MatmulWork final : public QueuedOperation {
 public:
  MatmulWork(const char* function, MatmulCall call) : QueuedOperation(function), call_(std::move(call)) {}

  bool run() const override {
    ++state().launches;
    if (!all_in_range(call_)) return false;
    // Whoever keeps something in the workspace loses it.
    if (call_.workspace) std::memset(call_.workspace, 0xff, call_.problem->workspace);
    run_matmul(call_);
    return true;
  }

 private:
  MatmulCall call_;
};

float host_scalar(const void* pointer, const char* name) {
  if (const Block* block = find_block(pointer); block && block->kind == MemoryKind::kDevice) {
    violate(kDocumented, std::string(name) + " is in device memory, but is read by the host without vector scaling");
  }
  return read<float>(pointer);
}

// The settings that a plan fixes must not be changed afterwards; what the library makes of it is not known.
void note_drift(const PlanObject& plan) {
  if (plan.matmul->epilogue != plan.problem->epilogue) {
    violate(kAssumed, "an attribute other than a pointer was set on the matmul descriptor after PlanInit");
  }
  if (plan.algorithm->algorithm != plan.problem->algorithm) {
    violate(kAssumed, "the algorithm selection was changed after PlanInit");
  }
}

// The arguments in the order of the call, checked.
MatmulCall checked_call(const PlanObject& plan, const void* alpha, const void* a, const void* b, const void* beta,
                        const void* c, void* d, void* workspace, Stream* streams, std::int32_t count) {
  require(alpha && a && b && beta && c && d, kInvalidValue, kMeasured,
          "alpha, A, B, beta, C and D must not be null (C not even with beta 0)");
  require(count >= 0, kInvalidValue, kMeasured, "numStreams must not be negative");
  require(count == 0 || streams, kInvalidValue, kMeasured, "streams is null while numStreams is not 0");
  for (const void* operand : {a, b, c, static_cast<const void*>(d), static_cast<const void*>(workspace)}) {
    require_aligned(operand, "A, B, C, D and the workspace must be aligned to 16 bytes");
  }
  note_drift(plan);
  const Epilogue& epilogue = plan.problem->epilogue;
  MatmulCall call{plan.problem, 1, 0, nullptr, nullptr, a, b, c, d, workspace, plan.matmul->pointers};
  if (epilogue.alpha_vector) {
    call.alpha_vector = alpha;
  } else {
    call.alpha = host_scalar(alpha, "alpha");
  }
  if (epilogue.beta_vector) {
    call.beta_vector = beta;
  } else if (!epilogue.alpha_vector) {
    call.beta = host_scalar(beta, "beta");
  }
  if (!workspace && plan.problem->algorithm.split_k > 1) {
    violate(kAssumed, "no workspace is given though split-K needs one");
  }
  return call;
}

// A winner must suit the blob, since NVIDIA's sample multiplies with the same blob after the search (documented).
// Among those below 256 rows the last one wins, so that it is never taken for granted that the default does.
int search_winner(const PlanObject& plan, const MatmulCall& call) {
  const Product& p = plan.problem->product;
  const int configs = plan.problem->algorithm.config_max_id, forced = state().config.search_winner;
  if (forced >= 0) return std::min(forced, configs - 1);
  const View view = p.sparse_view();
  if (view.extent < kLayoutRows) return configs - 1;
  const int config = blob_config(p.sparse(), view, p.sparse_a(), p.sm, configs, p.sparse_a() ? call.a : call.b);
  return config >= 0 ? config : plan.problem->algorithm.config_id;
}

// Runs every configuration (iterations + 1) times, as the library does. Products repeat exactly, so that only one
// that adds to its own result is worth computing again.
bool run_search(const PlanObject& plan, const MatmulCall& call, const char* function) {
  const Algorithm& algorithm = plan.problem->algorithm;
  const long runs = static_cast<long>(algorithm.config_max_id) * (std::max(algorithm.search_iterations, 0) + 1);
  const Product& p = plan.problem->product;
  auto problem = std::make_shared<Problem>(*plan.problem);
  if (!operand_in_range(p.sparse(), p.sparse_a() ? call.a : call.b, "the compressed operand")) return false;
  const int config = blob_config(p.sparse(), p.sparse_view(), p.sparse_a(), p.sm, algorithm.config_max_id,
                                 p.sparse_a() ? call.a : call.b);
  if (config >= 0) problem->algorithm.config_id = config;
  MatmulCall run = call;
  run.problem = std::move(problem);
  const MatmulWork work(function, run);
  const long computed = reads_c(call) && call.c == call.d ? runs : std::min(runs, 1L);
  for (long i = 0; i < computed; ++i) {
    if (!work.run()) return false;
  }
  state().launches += runs - computed;
  return true;
}

}  // namespace

Status cusparseLtMatmul(const Handle* handle, const Plan* raw, const void* alpha, const void* a, const void* b,
                        const void* beta, const void* c, void* d, void* workspace, Stream* streams,
                        std::int32_t count) {
  static constexpr char kName[] = "cusparseLtMatmul";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    const PlanObject& plan = use_plan(raw, owner);
    MatmulCall call = checked_call(plan, alpha, a, b, beta, c, d, workspace, streams, count);
    submit(count > 0 ? streams[0] : nullptr, owner.device, kExecutionFailed,
           std::make_shared<const MatmulWork>(kName, std::move(call)));
    return kSuccess;
  });
}

Status cusparseLtMatmulSearch(const Handle* handle, Plan* raw, const void* alpha, const void* a, const void* b,
                              const void* beta, const void* c, void* d, void* workspace, Stream* streams,
                              std::int32_t count) {
  static constexpr char kName[] = "cusparseLtMatmulSearch";
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    PlanObject& plan = use_plan(raw, owner);
    const MatmulCall call = checked_call(plan, alpha, a, b, beta, c, d, workspace, streams, count);
    try {
      StreamObject& stream = find_stream(count > 0 ? streams[0] : nullptr);
      refuse_on_capturing_stream(stream, "a search cannot be captured");
      refuse_unsafe_call_while_capturing();
      synchronize(stream);
    } catch (const Refusal& refusal) {
      throw Refusal{kExecutionFailed, refusal.label, refusal.rule};
    }
    require(run_search(plan, call, kName), kExecutionFailed, kAssumed, "an operand is out of bounds");
    plan.algorithm->algorithm.config_id = search_winner(plan, call);
    fix_problem(plan);
    return kSuccess;
  });
}

}  // namespace emulator
