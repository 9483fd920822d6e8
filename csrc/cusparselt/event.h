// A CUDA event with one owner, for times on a stream.
#pragma once

#include "api.h"

namespace sparse24::cusparselt {

class Event {
 public:
  Event() { check_cuda(cuda().EventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cuda().EventDestroy(event_); }  // nobody is left to hear of a failed release
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(abi::Stream stream) { check_cuda(cuda().EventRecord(event_, stream), "cudaEventRecord"); }
  // Waits for this event.
  float microseconds_since(const Event& start) const {
    check_cuda(cuda().EventSynchronize(event_), "cudaEventSynchronize");
    float milliseconds = 0;
    check_cuda(cuda().EventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return 1000 * milliseconds;
  }

 private:
  abi::CudaEvent event_ = nullptr;
};

}  // namespace sparse24::cusparselt
