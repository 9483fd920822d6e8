// A little over 300 lines: streams, events and captures have one scheduler.
#include "streams.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <utility>

#include "memory.h"

namespace emulator {

namespace {

struct Scheduler {
  std::uint64_t last_number = 0, last_handle = 0, last_capture = 0;
  std::unordered_map<std::uint64_t, std::shared_ptr<StreamObject>> streams;  // by handle
  std::unordered_map<int, std::shared_ptr<StreamObject>> legacy;             // by device
  std::vector<std::shared_ptr<Capture>> captures;
  Clock host;  // what some thread has waited for
  std::vector<Scratch> scratch;
};

void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) {
    std::uint64_t& own = clock[stream];
    own = std::max(own, number);
  }
}

Scheduler& scheduler() {
  static Scheduler* scheduler = new Scheduler;
  return *scheduler;
}

// Handles are small numbers that no client may look into. 1 and 2 are taken by the runtime.
constexpr std::uint64_t kFirstHandle = 0x1000;

std::shared_ptr<StreamObject>& legacy_stream(int device) {
  auto& stream = scheduler().legacy[device];
  if (!stream) {
    stream = std::make_shared<StreamObject>();
    stream->device = device;
    stream->legacy = true;
  }
  return stream;
}

void run_dependencies(const StreamObject& stream, std::uint64_t number) {
  if (stream.legacy) {
    for (const auto& other : all_streams()) {
      if (other->blocking && other->device == stream.device) run_until(*other, number - 1);
    }
  } else if (stream.blocking) {
    run_until(*legacy_stream(stream.device), number - 1);
  }
}

void run(StreamObject& stream, const QueuedOperation& work) {
  State& s = state();
  const char* caller = std::exchange(s.function, work.function);
  if (!work.run()) stream.faulted = true;
  s.function = caller;
}

// Streams of unrelated captures cannot wait for each other.
void join(StreamObject& stream, const std::shared_ptr<Capture>& capture, StreamObject& from) {
  if (!stream.capture) {
    stream.capture = capture;  // a fork
    stream.captured.clear();
    capture->unjoined.push_back(&stream);
  } else if (stream.capture != capture) {
    capture->invalid = stream.capture->invalid = true;
    throw Refusal{kCudaCaptureMerge, kDocumented, "the event belongs to another capture"};
  }
  if (&from != &stream && stream.capture->origin == &stream) std::erase(capture->unjoined, &from);
}

}  // namespace

std::uint64_t this_thread() {
  static std::atomic<std::uint64_t> last{0};
  thread_local const std::uint64_t id = ++last;
  return id;
}

int& current_device() {
  thread_local int device = 0;
  return device;
}

std::shared_ptr<StreamObject> share_stream(Stream stream) {
  const auto handle = reinterpret_cast<std::uintptr_t>(stream);
  if (handle <= 2) return legacy_stream(current_device());
  const auto found = scheduler().streams.find(handle);
  require(found != scheduler().streams.end(), kCudaInvalidHandle, kDocumented, "no such stream");
  return found->second;
}

StreamObject& find_stream(Stream stream) { return *share_stream(stream); }

Stream add_stream(bool blocking) {
  auto stream = std::make_shared<StreamObject>();
  stream->device = current_device();
  stream->blocking = blocking;
  const std::uint64_t handle = kFirstHandle + 16 * ++scheduler().last_handle;
  scheduler().streams.emplace(handle, std::move(stream));
  return reinterpret_cast<Stream>(handle);  // NOLINT: a handle is not an address
}

void remove_stream(Stream stream) {
  const auto handle = reinterpret_cast<std::uintptr_t>(stream);
  require(handle > 2, kCudaInvalidHandle, kDocumented, "the default stream cannot be destroyed");
  const auto removed = share_stream(stream);
  run_all(*removed);  // the runtime lets the work finish
  join(scheduler().host, removed->clock);
  std::erase_if(scheduler().scratch, [&](const auto& use) { return use.stream == removed.get(); });
  scheduler().streams.erase(handle);
}

// Newest first: an order that nobody should rely on.
std::vector<std::shared_ptr<StreamObject>> all_streams() {
  std::vector<std::pair<std::uint64_t, std::shared_ptr<StreamObject>>> sorted(scheduler().streams.begin(),
                                                                              scheduler().streams.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::shared_ptr<StreamObject>> streams;
  for (auto& [handle, stream] : sorted) streams.push_back(std::move(stream));
  return streams;
}

void enqueue(StreamObject& stream, Work work) {
  if (stream.capture) {
    require(!stream.capture->invalid, kCudaCaptureInvalidated, kDocumented, "the capture was invalidated");
    stream.capture->graph.work.push_back(std::move(work));
    stream.captured[&stream] = ++scheduler().last_number;
    if (stream.capture->origin != &stream &&
        std::ranges::find(stream.capture->unjoined, &stream) == stream.capture->unjoined.end()) {
      stream.capture->unjoined.push_back(&stream);
    }
    return;
  }
  if (stream.legacy && !scheduler().captures.empty()) {
    for (const auto& [handle, other] : scheduler().streams) {
      if (!other->capture || !other->blocking || other->device != stream.device) continue;
      other->capture->invalid = true;
      throw Refusal{kCudaCaptureImplicit, kDocumented,
                    "work on the default stream would depend on a blocking stream that is being captured"};
    }
  }
  const std::uint64_t number = ++scheduler().last_number;
  join(stream.clock, scheduler().host);
  if (stream.legacy) {
    for (const auto& other : all_streams()) {
      if (other->blocking && other->device == stream.device) join(stream.clock, other->clock);
    }
  } else if (stream.blocking) {
    join(stream.clock, legacy_stream(stream.device)->clock);
  }
  stream.clock[&stream] = number;
  stream.queue.push_back({number, std::move(work)});
  if (!state().config.deferred) run_until(stream, number);
}

void run_until(StreamObject& stream, std::uint64_t number) {
  while (!stream.queue.empty() && stream.queue.front().number <= number) {
    const StreamObject::Queued next = std::move(stream.queue.front());
    stream.queue.pop_front();
    run_dependencies(stream, next.number);
    run(stream, *next.work);
  }
}

void run_all(StreamObject& stream) {
  const std::uint64_t now = scheduler().last_number;
  if (stream.legacy) run_dependencies(stream, now + 1);
  run_until(stream, now);
}

void run_everything() {
  for (const auto& stream : all_streams()) run_all(*stream);
  for (auto& [device, stream] : scheduler().legacy) run_all(*stream);
}

bool synchronize(StreamObject& stream) {
  ++state().synchronizations;
  run_all(stream);
  join(scheduler().host, stream.clock);
  check_margins();
  return std::exchange(stream.faulted, false);
}

bool synchronize_device() {
  ++state().synchronizations;
  run_everything();
  for (const auto& stream : all_streams()) join(scheduler().host, stream->clock);
  for (auto& [device, stream] : scheduler().legacy) join(scheduler().host, stream->clock);
  check_margins();
  bool faulted = false;
  for (const auto& stream : all_streams()) faulted |= std::exchange(stream->faulted, false);
  for (auto& [device, stream] : scheduler().legacy) faulted |= std::exchange(stream->faulted, false);
  return faulted;
}

bool capturing(const StreamObject& stream) { return stream.capture != nullptr; }

void refuse_unsafe_call_while_capturing() {
  for (const auto& capture : scheduler().captures) {
    const bool forbidden = capture->mode == CaptureMode::kGlobal ||
                           (capture->mode == CaptureMode::kThreadLocal && capture->thread == this_thread());
    if (!forbidden) continue;
    capture->invalid = true;
    throw Refusal{kCudaCaptureUnsupported, kDocumented, "this call is not allowed while a stream is being captured"};
  }
}

void refuse_on_capturing_stream(StreamObject& stream, const char* rule) {
  if (!stream.capture) return;
  stream.capture->invalid = true;
  throw Refusal{kCudaCaptureUnsupported, kDocumented, rule};
}

void begin_capture(StreamObject& stream, CaptureMode mode) {
  require(!stream.legacy, kCudaCaptureUnsupported, kDocumented, "the default stream cannot be captured");
  require(!stream.capture, kCudaCaptureUnmatched, kDocumented, "the stream is already being captured");
  auto capture = std::make_shared<Capture>();
  capture->id = ++scheduler().last_capture;
  capture->mode = mode;
  capture->thread = this_thread();
  capture->origin = &stream;
  stream.capture = capture;
  stream.captured.clear();
  scheduler().captures.push_back(std::move(capture));
}

std::shared_ptr<Graph> end_capture(StreamObject& stream) {
  const std::shared_ptr<Capture> capture = stream.capture;
  require(capture && capture->origin == &stream, kCudaCaptureUnmatched, kDocumented,
          "the capture was not begun on this stream");
  require(capture->mode == CaptureMode::kRelaxed || capture->thread == this_thread(), kCudaCaptureWrongThread,
          kDocumented, "the capture was begun by another thread");
  std::erase(scheduler().captures, capture);
  auto graph = std::make_shared<Graph>(std::move(capture->graph));
  for (auto& [handle, other] : scheduler().streams) {
    if (other->capture == capture) other->capture.reset();
  }
  require(!capture->invalid, kCudaCaptureInvalidated, kDocumented, "the capture was invalidated");
  require(capture->unjoined.empty(), kCudaCaptureUnjoined, kDocumented,
          "a stream that was forked from the capture was not joined again");
  return graph;
}

void record_event(EventObject& event, Stream stream_handle) {
  const auto stream = share_stream(stream_handle);
  auto record = std::make_shared<EventObject::Record>();
  record->stream = stream;
  record->capture = stream->capture;
  enqueue(*stream, make_work("cudaEventRecord", [record] {
    record->done = true;
    record->time = std::chrono::steady_clock::now();
    return true;
  }));
  record->number = scheduler().last_number;
  record->clock = stream->capture ? stream->captured : stream->clock;
  event.record = std::move(record);
  event.asked = false;
}

void wait_for_event(StreamObject& stream, EventObject& event) {
  if (!event.record) return;  // documented: an event never recorded is complete
  if (event.record->capture) {
    require(std::ranges::find(scheduler().captures, event.record->capture) != scheduler().captures.end(),
            kCudaCaptureIsolation, kDocumented, "the event was recorded in a capture that has ended");
    join(stream, event.record->capture, *event.record->stream);
    join(stream.captured, event.record->clock);
    return;  // a graph keeps the order of its recording
  }
  if (stream.capture) {
    stream.capture->invalid = true;
    throw Refusal{kCudaCaptureIsolation, kDocumented, "a captured stream cannot wait for work outside the capture"};
  }
  join(stream.clock, event.record->clock);
  enqueue(stream, make_work("cudaStreamWaitEvent", [record = event.record] {
            run_until(*record->stream, record->number);
            return true;
          }));
}

void note_event_waited_for(const EventObject::Record& record) { join(scheduler().host, record.clock); }

void note_scratch(StreamObject& stream, const void* memory, std::size_t size) {
  if (!memory || size == 0) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const Scratch use{begin, begin + size, &stream, scheduler().last_number};
  const Clock& before = stream.capture ? stream.captured : stream.clock;
  auto& all = stream.capture ? stream.capture->graph.scratch : scheduler().scratch;
  for (const auto& other : all) {
    if (other.stream == &stream || begin >= other.end || other.begin >= use.end) continue;
    const auto known = before.find(other.stream);
    if (known == before.end() || known->second < other.number) {
      violate(kDocumented, std::string("one workspace is used on two streams that nothing orders") +
                               (stream.capture ? ", in a capture" : ""));
    }
  }
  std::erase_if(all, [&](const auto& other) { return other.begin >= begin && other.end <= use.end; });
  all.push_back(use);
}

void note_scratch_of(StreamObject& stream, const Graph& graph) {
  for (const auto& use : graph.scratch) {
    note_scratch(stream, reinterpret_cast<const void*>(use.begin), use.end - use.begin);  // NOLINT: an address
  }
}

void forget_streams() {
  Scheduler& s = scheduler();
  s.host.clear();
  s.scratch.clear();
  // Queued work may hold the stream that holds it.
  for (auto& [handle, stream] : s.streams) stream->queue.clear();
  for (auto& [device, stream] : s.legacy) stream->queue.clear();
  for (const auto& capture : s.captures) capture->graph = {};
  s.streams.clear();
  s.legacy.clear();
  s.captures.clear();
}

long live_streams() { return static_cast<long>(scheduler().streams.size()); }

}  // namespace emulator
