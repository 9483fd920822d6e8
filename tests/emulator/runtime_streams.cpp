// Streams, events and graphs of the runtime.
#include <cmath>
#include <unordered_map>
#include <utility>

#include "memory.h"
#include "runtime.h"

namespace emulator {

namespace {

// Handles that are not addresses: a client that looks into one faults.
template <typename T>
class Table {
 public:
  void* add(std::shared_ptr<T> object) {
    const std::uintptr_t handle = kFirst + 16 * ++last_;
    objects_.emplace(handle, std::move(object));
    return reinterpret_cast<void*>(handle);  // NOLINT
  }
  std::shared_ptr<T> find(const void* handle, const char* rule) const {
    const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
    require(found != objects_.end(), kCudaInvalidHandle, kDocumented, rule);
    return found->second;
  }
  void remove(const void* handle, const char* rule) {
    require(objects_.erase(reinterpret_cast<std::uintptr_t>(handle)) == 1, kCudaInvalidHandle, kDocumented, rule);
  }
  void clear() { objects_.clear(); }
  long size() const { return static_cast<long>(objects_.size()); }

 private:
  static constexpr std::uintptr_t kFirst = 0x2000;
  std::uintptr_t last_ = 0;
  std::unordered_map<std::uintptr_t, std::shared_ptr<T>> objects_;
};

struct Tables {
  Table<EventObject> events;
  Table<Graph> graphs;
  Table<const Graph> executables;
};
Tables& tables() {
  static Tables* tables = new Tables;
  return *tables;
}

constexpr char kNoEvent[] = "no such event", kNoGraph[] = "no such graph";
constexpr unsigned kNonBlocking = 1, kDisableTiming = 2;

CudaError create_stream(const char* function, Stream* stream, unsigned flags) {
  return runtime_call(function, [&] {
    require(stream != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    require(flags <= kNonBlocking, kCudaInvalidValue, kDocumented, "unknown flags of a stream");
    *stream = add_stream((flags & kNonBlocking) == 0);
    return kCudaSuccess;
  });
}

CudaError create_event(const char* function, CudaEvent* event, unsigned flags) {
  return runtime_call(function, [&] {
    require(event != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    auto object = std::make_shared<EventObject>();
    object->timing = (flags & kDisableTiming) == 0;
    *event = tables().events.add(std::move(object));
    return kCudaSuccess;
  });
}

void require_outside_capture(const EventObject& event) {
  if (!event.record || !event.record->capture) return;
  event.record->capture->invalid = true;
  throw Refusal{kCudaCaptureUnsupported, kDocumented, "the event belongs to a capture"};
}

CudaError instantiate(const char* function, GraphExecHandle* executable, GraphHandle graph) {
  return runtime_call(function, [&] {
    require(executable != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    *executable = tables().executables.add(std::make_shared<const Graph>(*tables().graphs.find(graph, kNoGraph)));
    return kCudaSuccess;
  });
}

}  // namespace

void forget_runtime() {
  tables().events.clear();
  tables().graphs.clear();
  tables().executables.clear();
}

long live_runtime_objects() { return tables().events.size() + tables().graphs.size() + tables().executables.size(); }

CudaError cudaStreamCreate(Stream* stream) { return create_stream("cudaStreamCreate", stream, 0); }
CudaError cudaStreamCreateWithFlags(Stream* stream, unsigned flags) {
  return create_stream("cudaStreamCreateWithFlags", stream, flags);
}
CudaError cudaStreamCreateWithPriority(Stream* stream, unsigned flags, int) {
  return create_stream("cudaStreamCreateWithPriority", stream, flags);
}

CudaError cudaStreamDestroy(Stream stream) {
  return runtime_call("cudaStreamDestroy", [&] {
    remove_stream(stream);
    return kCudaSuccess;
  });
}

CudaError cudaStreamSynchronize(Stream stream) {
  return runtime_call("cudaStreamSynchronize", [&] {
    StreamObject& object = find_stream(stream);
    refuse_on_capturing_stream(object, "a stream that is being captured cannot be waited for");
    if (object.legacy) refuse_unsafe_call_while_capturing();
    return faulted(synchronize(object));
  });
}

// The first question about unfinished work is answered with "not ready", and lets it run.
CudaError cudaStreamQuery(Stream stream) {
  return runtime_call("cudaStreamQuery", [&]() -> CudaError {
    StreamObject& object = find_stream(stream);
    refuse_on_capturing_stream(object, "a stream that is being captured cannot be asked");
    if (object.queue.empty()) return faulted(std::exchange(object.faulted, false));
    run_all(object);
    return kCudaNotReady;
  });
}

CudaError cudaStreamWaitEvent(Stream stream, CudaEvent event, unsigned) {
  return runtime_call("cudaStreamWaitEvent", [&] {
    wait_for_event(find_stream(stream), *tables().events.find(event, kNoEvent));
    return kCudaSuccess;
  });
}

CudaError cudaEventCreate(CudaEvent* event) { return create_event("cudaEventCreate", event, 0); }
CudaError cudaEventCreateWithFlags(CudaEvent* event, unsigned flags) {
  return create_event("cudaEventCreateWithFlags", event, flags);
}

CudaError cudaEventRecord(CudaEvent event, Stream stream) {
  return runtime_call("cudaEventRecord", [&] {
    record_event(*tables().events.find(event, kNoEvent), stream);
    return kCudaSuccess;
  });
}
CudaError cudaEventRecordWithFlags(CudaEvent event, Stream stream, unsigned) { return cudaEventRecord(event, stream); }

CudaError cudaEventSynchronize(CudaEvent event) {
  return runtime_call("cudaEventSynchronize", [&] {
    const auto object = tables().events.find(event, kNoEvent);
    require_outside_capture(*object);
    ++state().synchronizations;
    if (!object->record) return kCudaSuccess;
    run_until(*object->record->stream, object->record->number);
    note_event_waited_for(*object->record);
    check_margins();
    return faulted(std::exchange(object->record->stream->faulted, false));
  });
}

CudaError cudaEventQuery(CudaEvent event) {
  return runtime_call("cudaEventQuery", [&]() -> CudaError {
    const auto object = tables().events.find(event, kNoEvent);
    require_outside_capture(*object);
    if (object->record && object->record->done) note_event_waited_for(*object->record);
    if (!object->record || object->record->done) return kCudaSuccess;
    run_until(*object->record->stream, object->record->number);
    return kCudaNotReady;
  });
}

CudaError cudaEventElapsedTime(float* milliseconds, CudaEvent start, CudaEvent end) {
  return runtime_call("cudaEventElapsedTime", [&]() -> CudaError {
    require(milliseconds != nullptr, kCudaInvalidValue, kDocumented, "the result is a null pointer");
    const auto from = tables().events.find(start, kNoEvent), to = tables().events.find(end, kNoEvent);
    require(from->timing && to->timing && from->record && to->record, kCudaInvalidHandle, kDocumented,
            "an event takes no time or was never recorded");
    if (!from->record->done || !to->record->done) return kCudaNotReady;
    const std::chrono::duration<float, std::milli> elapsed = to->record->time - from->record->time;
    constexpr float kResolution = 0.0005f;  // documented: about half a microsecond
    *milliseconds = std::max(elapsed.count(), kResolution);
    return kCudaSuccess;
  });
}

CudaError cudaEventDestroy(CudaEvent event) {
  return runtime_call("cudaEventDestroy", [&] {
    tables().events.remove(event, kNoEvent);
    return kCudaSuccess;
  });
}

CudaError cudaStreamIsCapturing(Stream stream, CaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

CudaError cudaStreamGetCaptureInfo(Stream stream, CaptureStatus* status, unsigned long long* id, GraphHandle* graph,
                                   const void** dependencies, const void** edges, std::size_t* count) {
  return runtime_call("cudaStreamGetCaptureInfo", [&] {
    require(status != nullptr, kCudaInvalidValue, kDocumented, "status is a null pointer");
    const StreamObject& object = find_stream(stream);
    *status = !object.capture ? kCaptureNone : object.capture->invalid ? kCaptureInvalidated : kCaptureActive;
    if (id) *id = object.capture ? object.capture->id : 0;
    if (graph) *graph = nullptr;
    if (dependencies) *dependencies = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return kCudaSuccess;
  });
}

CudaError cudaThreadExchangeStreamCaptureMode(CaptureMode* mode) {
  thread_local CaptureMode current = CaptureMode::kGlobal;
  return runtime_call("cudaThreadExchangeStreamCaptureMode", [&] {
    require(mode != nullptr, kCudaInvalidValue, kDocumented, "mode is a null pointer");
    std::swap(*mode, current);  // assumed: kept and given back, without effect
    return kCudaSuccess;
  });
}

CudaError cudaStreamBeginCapture(Stream stream, CaptureMode mode) {
  return runtime_call("cudaStreamBeginCapture", [&] {
    begin_capture(find_stream(stream), mode);
    return kCudaSuccess;
  });
}

CudaError cudaStreamEndCapture(Stream stream, GraphHandle* graph) {
  return runtime_call("cudaStreamEndCapture", [&] {
    require(graph != nullptr, kCudaInvalidValue, kDocumented, "graph is a null pointer");
    *graph = nullptr;
    *graph = tables().graphs.add(end_capture(find_stream(stream)));
    return kCudaSuccess;
  });
}

CudaError cudaGraphInstantiate(GraphExecHandle* executable, GraphHandle graph, unsigned long long) {
  return instantiate("cudaGraphInstantiate", executable, graph);
}
CudaError cudaGraphInstantiateWithFlags(GraphExecHandle* executable, GraphHandle graph, unsigned long long) {
  return instantiate("cudaGraphInstantiateWithFlags", executable, graph);
}

CudaError cudaGraphUpload(GraphExecHandle executable, Stream stream) {
  return runtime_call("cudaGraphUpload", [&] {
    tables().executables.find(executable, kNoGraph);
    find_stream(stream);
    return kCudaSuccess;
  });
}

CudaError cudaGraphLaunch(GraphExecHandle executable, Stream stream) {
  return runtime_call("cudaGraphLaunch", [&] {
    const auto graph = tables().executables.find(executable, kNoGraph);
    StreamObject& on = find_stream(stream);
    enqueue(on, make_work("cudaGraphLaunch", [graph] {
              bool good = true;
              for (const Work& work : graph->work) {
                state().function = work->function;
                good = work->run() && good;
              }
              return good;
            }));
    note_scratch_of(on, *graph);
    return kCudaSuccess;
  });
}

CudaError cudaGraphGetNodes(GraphHandle graph, void** nodes, std::size_t* count) {
  return runtime_call("cudaGraphGetNodes", [&] {
    require(count != nullptr, kCudaInvalidValue, kDocumented, "count is a null pointer");
    const auto object = tables().graphs.find(graph, kNoGraph);
    require(nodes == nullptr, kCudaNotSupported, kAssumed, "the emulator gives the number of nodes only");
    *count = object->work.size();
    return kCudaSuccess;
  });
}

CudaError cudaGraphDestroy(GraphHandle graph) {
  return runtime_call("cudaGraphDestroy", [&] {
    tables().graphs.remove(graph, kNoGraph);
    return kCudaSuccess;
  });
}

CudaError cudaGraphExecDestroy(GraphExecHandle executable) {
  return runtime_call("cudaGraphExecDestroy", [&] {
    tables().executables.remove(executable, kNoGraph);
    return kCudaSuccess;
  });
}

}  // namespace emulator
