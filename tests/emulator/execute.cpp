// Matmul and MatmulSearch.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "exports.h"
#include "plan.h"
#include "product.h"
#include "submit.h"

namespace emulator {

namespace {

std::size_t blob_bytes(const Product& p) {
  const View view = p.sparse_view();
  return copy_bytes(p.sparse(), &view, p.sm) * static_cast<std::size_t>(compressed_copies(p.sparse()));
}

std::size_t operand_bytes(const Product& p, const Matrix& matrix) {
  return matrix.structured ? blob_bytes(p) : bytes(matrix.type, matrix.extent());
}

bool reads_c(const MatmulCall& call) {
  const Epilogue& epilogue = call.problem->epilogue;
  return epilogue.beta_vector || (!epilogue.alpha_vector && call.beta != 0);
}

bool operand_in_range(const Product& p, const Matrix& matrix, const void* data, const char* name) {
  return check_range(data, operand_bytes(p, matrix), name);
}

// The lines of a matrix in memory, in order: [first byte, last byte) of each.
std::vector<std::pair<std::uintptr_t, std::uintptr_t>> lines_of(const Product& p, const Matrix& m, const void* data) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  if (m.structured) return {{begin, begin + blob_bytes(p)}};
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> lines;
  const std::int64_t batches = m.batch_stride == 0 ? 1 : m.batches;
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    for (std::int64_t line = 0; line < m.lines(); ++line) {
      const std::uintptr_t at = begin + bytes(m.type, batch * m.batch_stride + line * m.ld);
      lines.emplace_back(at, at + bytes(m.type, m.line_length()));
    }
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

using Lines = std::vector<std::pair<std::uintptr_t, std::uintptr_t>>;

bool overlap(const Lines& a, const Lines& b) {
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (a[i].first < b[j].second && b[j].first < a[i].second) return true;
    a[i].second <= b[j].second ? ++i : ++j;
  }
  return false;
}

// A product reads its operands while it writes D, in no order.
void check_aliases(const MatmulCall& call) {
  const Product& p = call.problem->product;
  if (p.d.batches > 1 && p.d.batch_stride == 0) violate(kDocumented, "the batches of D overlap each other");
  const Lines d = lines_of(p, p.d, call.d);
  const auto check = [&](const Lines& other, const char* text) {
    if (overlap(d, other)) violate(kDocumented, text);
  };
  check(lines_of(p, p.a, call.a), "D lies over A");
  check(lines_of(p, p.b, call.b), "D lies over B");
  if (call.c != call.d && reads_c(call)) check(lines_of(p, p.c, call.c), "D lies over C, and is not C itself");
  const auto range = [](const void* data, std::size_t size) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    return Lines{{begin, begin + size}};
  };
  if (call.workspace) {
    const Lines workspace = range(call.workspace, call.problem->workspace);
    check(workspace, "D lies over the workspace");
    for (const Matrix* operand : {&p.a, &p.b}) {
      const void* data = operand == &p.a ? call.a : call.b;
      if (overlap(workspace, lines_of(p, *operand, data))) violate(kDocumented, "the workspace lies over an operand");
    }
  }
  if (call.pointers.bias) check(range(call.pointers.bias, bytes(bias_type(p), p.d.rows)), "D lies over the bias");
  if (call.alpha_vector) {
    check(range(call.alpha_vector, static_cast<std::size_t>(p.d.rows) * sizeof(float)), "D lies over the alpha vector");
  }
}

bool all_in_range(const MatmulCall& call) {
  const Product& p = call.problem->product;
  const Epilogue& epilogue = call.problem->epilogue;
  const std::int64_t rows = p.d.rows;
  const auto vector_bytes = static_cast<std::size_t>(rows) * sizeof(float);
  bool good = operand_in_range(p, p.a, call.a, "A") & operand_in_range(p, p.b, call.b, "B") &
              operand_in_range(p, p.d, call.d, "D");
  if (reads_c(call)) good &= operand_in_range(p, p.c, call.c, "C");
  if (call.pointers.bias) {
    good &=
        check_range(call.pointers.bias, bytes(bias_type(p), rows + (p.d.batches - 1) * epilogue.bias_stride), "bias");
  }
  if (epilogue.alpha_vector) good &= check_range(call.alpha_vector, vector_bytes, "the alpha vector");
  if (epilogue.beta_vector) good &= check_range(call.beta_vector, vector_bytes, "the beta vector");
  if (call.workspace) good &= check_range(call.workspace, call.problem->workspace, "the workspace");
  return good;
}

// What is known, or was asked for, to happen to whoever runs this algorithm. True: nothing was computed.
bool meet_fate(const Product& p, const Algorithm& algorithm, bool in_search = false) {
  const Config& config = state().config;
  // measured on an H100 with 0.8.1: it "runs" in no time, and leaves an illegal instruction. Assumed: the library's own
  // search knows better than to try it.
  const int id = algorithm.config_id;
  const bool deadly = !in_search && p.sm == 90 && p.a.type == kReal16F && config.version / 100 == 8 && id == 36;
  // Others guard Segment-K below so many tokens, where it is said to hang; rows of measurements are there, too.
  constexpr std::int64_t kGuarded = 400;
  const bool segments = !in_search && algorithm.split_k == -1 && p.d.cols < kGuarded && config.fates.contains(-1);
  const auto asked = config.fates.find(segments ? -1 : id);
  const Fate fate = deadly ? Fate::kIllegal : asked == config.fates.end() ? Fate::kNone : asked->second;
  switch (fate) {
    case Fate::kNone: return false;
    case Fate::kIllegal: state().context_is_dead = true; return true;
    case Fate::kAbort: std::abort();
    case Fate::kHang:
      for (;;) pause();
  }
  return false;
}

class MatmulWork final : public QueuedOperation {
 public:
  MatmulWork(const char* function, MatmulCall call) : QueuedOperation(function), call_(std::move(call)) {}

  bool run() const override {
    ++state().launches;
    if (meet_fate(call_.problem->product, call_.problem->algorithm)) return true;
    if (!all_in_range(call_)) return false;
    check_aliases(call_);
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
  if (!workspace && plan.problem->workspace > 0 && plan.problem->algorithm.split_k > 1) {
    violate(kAssumed, "no workspace is given though split-K needs one");
  }
  return call;
}

// The last one wins, so that it is never taken for granted that the default does; from 256 rows on one that the blob
// was not compressed for, so that a client that multiplies with the blob of before the search is told (assumed:
// NVIDIA's sample does that, on a matrix of fewer rows).
int search_winner(const PlanObject& plan, const MatmulCall& call) {
  const Product& p = plan.problem->product;
  const int configs = plan.problem->algorithm.config_max_id, forced = state().config.search_winner;
  if (forced >= 0) return std::min(forced, configs - 1);
  const View view = p.sparse_view();
  if (view.extent < kLayoutRows) return configs - 1;
  const int config = blob_config(p.sparse(), view, p.sparse_a(), p.sm, configs, p.sparse_a() ? call.a : call.b);
  return config == configs - 1 ? 0 : configs - 1;
}

// Runs every configuration (iterations + 1) times, as the library does. Products repeat exactly, so that only one
// that adds to its own result is worth computing again.
bool run_search(const PlanObject& plan, const MatmulCall& call, const char* function) {
  const Algorithm& algorithm = plan.problem->algorithm;
  const long runs = static_cast<long>(algorithm.config_max_id) * (std::max(algorithm.search_iterations, 0) + 1);
  const Product& p = plan.problem->product;
  auto problem = std::make_shared<Problem>(*plan.problem);
  if (!operand_in_range(p, p.sparse(), p.sparse_a() ? call.a : call.b, "the compressed operand")) return false;
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
  if (state().config.idle) return kSuccess;
  return guarded<Status>(kName, [&] {
    const HandleObject& owner = use_handle(handle);
    const PlanObject& plan = use_plan(raw, owner);
    MatmulCall call = checked_call(plan, alpha, a, b, beta, c, d, workspace, streams, count);
    const void* const scratch = call.workspace;
    const std::size_t scratch_bytes = call.problem->workspace;
    const Stream stream = count > 0 ? streams[0] : nullptr;
    submit(stream, owner.device, kExecutionFailed, std::make_shared<const MatmulWork>(kName, std::move(call)));
    note_scratch(find_stream(stream), scratch, scratch_bytes);
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
    const int configs = plan.problem->algorithm.config_max_id;
    for (int id = 0; id < configs; ++id) {  // it runs them all
      if (meet_fate(plan.problem->product, {.config_id = id}, true))
        throw Refusal{kExecutionFailed, kAssumed, "a kernel of the search died"};
    }
    require(run_search(plan, call, kName), kExecutionFailed, kAssumed, "an operand is out of bounds");
    plan.algorithm->algorithm.config_id = search_winner(plan, call);
    fix_problem(plan);
    return kSuccess;
  });
}

}  // namespace emulator
