// Streams, events and captures: what is queued, in which order it runs, and when.
//
// Nothing runs before somebody waits for it (unless deferral is off). A wait runs the work of that stream alone,
// and what it depends on: earlier work on the legacy default stream, or on the blocking streams if it is the
// default stream itself, and events it was told to wait for. Work that was never ordered runs as late as can be.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <vector>

#include "state.h"

namespace emulator {

// CUDA's error codes that are used here.
enum : int {
  kCudaInvalidValue = 1,
  kCudaInsufficientDriver = 35,
  kCudaNoDevice = 100,
  kCudaInvalidDevice = 101,
  kCudaNoKernelImage = 209,
  kCudaInvalidHandle = 400,
  kCudaNotReady = 600,
  kCudaIllegalAddress = 700,
  kCudaIllegalInstruction = 715,
  kCudaNotSupported = 801,
  kCudaCaptureUnsupported = 900,
  kCudaCaptureInvalidated = 901,
  kCudaCaptureMerge = 902,
  kCudaCaptureUnmatched = 903,
  kCudaCaptureUnjoined = 904,
  kCudaCaptureIsolation = 905,
  kCudaCaptureImplicit = 906,
  kCudaCaptureWrongThread = 908,
};

// A queued operation. Run possibly many times, when it is part of a graph. False: it faulted.
class QueuedOperation {
 public:
  explicit QueuedOperation(const char* function) : function(function) {}
  virtual ~QueuedOperation() = default;
  virtual bool run() const = 0;
  const char* const function;
};
using Work = std::shared_ptr<const QueuedOperation>;

template <typename Body>
Work make_work(const char* function, Body body) {
  struct Closure final : QueuedOperation {
    Closure(const char* function, Body&& body) : QueuedOperation(function), body(std::move(body)) {}
    bool run() const override { return body(); }
    Body body;
  };
  return std::make_shared<const Closure>(function, std::move(body));
}

struct StreamObject;

// By stream, the number of the last of its operations that is known to come before.
using Clock = std::map<const void*, std::uint64_t>;

// The last use of scratch memory that is known.
struct Scratch {
  std::uintptr_t begin, end;
  const StreamObject* stream;
  std::uint64_t number;
};

// The recorded work, and the scratch memory that it uses.
struct Graph {
  std::vector<Work> work;
  std::vector<Scratch> scratch;
};

enum class CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };
struct Capture {
  std::uint64_t id = 0;
  Graph graph;
  CaptureMode mode = CaptureMode::kGlobal;
  std::uint64_t thread = 0;
  bool invalid = false;
  StreamObject* origin = nullptr;
  std::vector<StreamObject*> unjoined;  // streams that were forked and have work the origin does not wait for
};

struct StreamObject {
  int device = 0;
  Clock clock;
  Clock captured;  // the same for what a capture records of it
  bool legacy = false, blocking = true;
  struct Queued {
    std::uint64_t number;
    Work work;
  };
  std::deque<Queued> queue;
  std::shared_ptr<Capture> capture;
  bool faulted = false;
};

struct EventObject {
  // One cudaEventRecord: its place in a stream, or in a capture.
  struct Record {
    std::shared_ptr<StreamObject> stream;
    std::uint64_t number = 0;
    std::shared_ptr<Capture> capture;
    Clock clock;
    bool done = false;
    std::chrono::steady_clock::time_point time;
  };
  std::shared_ptr<Record> record;
  bool timing = true;
  bool asked = false;
};

std::uint64_t this_thread();
int& current_device();

// Refuses an unknown handle with kCudaInvalidHandle. 0, 1 and 2 are the default stream.
StreamObject& find_stream(Stream stream);
std::shared_ptr<StreamObject> share_stream(Stream stream);
Stream add_stream(bool blocking);
void remove_stream(Stream stream);
std::vector<std::shared_ptr<StreamObject>> all_streams();

// Queues, records into the capture, or runs. Refuses (with a CUDA code) what a capture forbids.
void enqueue(StreamObject& stream, Work work);
void run_until(StreamObject& stream, std::uint64_t number);
void run_all(StreamObject& stream);
void run_everything();

// Counts a synchronisation and checks the margins. True when something faulted since the last time.
bool synchronize(StreamObject& stream);
bool synchronize_device();

bool capturing(const StreamObject& stream);
// For calls that a capture in progress forbids (allocation, synchronisation): invalidates it and refuses.
void refuse_unsafe_call_while_capturing();
void refuse_on_capturing_stream(StreamObject& stream, const char* rule);
void begin_capture(StreamObject& stream, CaptureMode mode);
// Ends it; null when it was invalidated.
std::shared_ptr<Graph> end_capture(StreamObject& stream);

void record_event(EventObject& event, Stream stream);
void wait_for_event(StreamObject& stream, EventObject& event);

// A thread has waited for what was recorded.
void note_event_waited_for(const EventObject::Record& record);
// The last operation of a stream writes to this scratch memory: a violation where that of another stream did, and
// nothing orders the two. So within a capture; and what a graph uses, every launch of it does.
void note_scratch(StreamObject& stream, const void* memory, std::size_t size);
void note_scratch_of(StreamObject& stream, const Graph& graph);

void forget_streams();
long live_streams();

}  // namespace emulator
