// What a GPU benchmark needs: device memory, event timing of calls that take turns, operands whose products are
// known, JSON.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cusparselt/api.h"
#include "cusparselt/event.h"
#include "cusparselt/types.h"

namespace harness {

using namespace sparse24;
using cusparselt::check_cuda, cusparselt::cuda, cusparselt::Event;

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) {
    check_cuda(cuda().Malloc(&data_, std::max<std::size_t>(bytes, 16)), "cudaMalloc");
  }
  ~DeviceMemory() { cuda().Free(data_); }  // nobody is left to hear of a failure
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

class Stream {
 public:
  Stream() { check_cuda(cuda().StreamCreate(&stream_), "cudaStreamCreate"); }
  ~Stream() { cuda().StreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  abi::Stream get() const { return stream_; }

 private:
  abi::Stream stream_ = nullptr;
};

inline double median(std::vector<double> samples) {
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

using Call = std::function<void()>;

// Times calls on the device as a network would meet them: each launch finds the L2 cache emptied, and the writes
// that empty it keep the device busy while the host queues the launch, so that the host's cost does not count.
class DeviceTimer {
 public:
  // flush_bytes: more than the L2 cache of any GPU.
  DeviceTimer(abi::Stream stream, std::size_t flush_bytes)
      : stream_(stream), flush_bytes_(flush_bytes), flush_(flush_bytes) {}

  // Median microseconds of each of the calls, which take turns, after a warm-up.
  std::vector<double> in_turns(const std::vector<Call>& calls, int rounds) {
    std::vector<std::vector<double>> samples(calls.size());
    for (const Call& call : calls) microseconds(call);
    for (int round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < calls.size(); ++i) samples[i].push_back(microseconds(calls[i]));
    }
    std::vector<double> medians;
    for (const auto& sample : samples) medians.push_back(median(sample));
    return medians;
  }

 private:
  double microseconds(const Call& call) {
    check_cuda(cuda().MemsetAsync(flush_.get(), 0, flush_bytes_, stream_), "cudaMemsetAsync");
    start_.record(stream_);
    call();
    stop_.record(stream_);
    return stop_.microseconds_since(start_);
  }

  abi::Stream stream_;
  std::size_t flush_bytes_;
  DeviceMemory flush_;
  Event start_, stop_;
};

// Median host microseconds until a call returns. The device is idle at its start, so its queue never fills.
inline double time_on_host(const Call& call, int rounds, abi::Stream stream) {
  std::vector<double> samples;
  for (int i = 0; i < rounds; ++i) {
    cusparselt::synchronize(stream);
    const auto start = std::chrono::steady_clock::now();
    call();
    samples.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  cusparselt::synchronize(stream);
  return median(samples);
}

// ---- operands ----

// The bits of a number that the type holds exactly.
inline std::uint32_t encode(double value, DType dtype) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const std::uint32_t exponent = bits >> 23 & 255, fraction = bits & 0x7fffff;
  switch (dtype) {
    case DType::kInt8: return static_cast<std::uint8_t>(static_cast<std::int8_t>(value));
    case DType::kBFloat16: return bits >> 16;
    case DType::kFloat16: return value == 0 ? 0 : bits >> 31 << 15 | (exponent - 112) << 10 | fraction >> 13;
    case DType::kFloat8E4M3: return value == 0 ? 0 : bits >> 31 << 7 | (exponent - 120) << 3 | fraction >> 20;
    default: return bits;
  }
}

inline double decode(const unsigned char* bytes, DType dtype) {
  const auto as = [bytes]<typename T>(T value) {
    std::memcpy(&value, bytes, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::kInt8: return as(std::int8_t{});
    case DType::kBFloat16: return std::bit_cast<float>(std::uint32_t{as(std::uint16_t{})} << 16);
    case DType::kFloat16: {
      const int bits = as(std::uint16_t{}), exponent = bits >> 10 & 31, fraction = bits & 1023;
      const double size = exponent == 31  ? (fraction != 0 ? std::nan("") : INFINITY)
                          : exponent == 0 ? std::ldexp(fraction, -24)
                                          : std::ldexp(1024 + fraction, exponent - 25);
      return bits >> 15 != 0 ? -size : size;
    }
    default: return as(float{});
  }
}

// A matrix of random numbers, exact in every type, that repeats after a while, so that any element is known
// without a copy of the matrix on the host. 2:4 with two of every four kept (float32: 1:2, one of every two).
class Operand {
 public:
  enum class Kind { kDense, kSparse24 };

  Operand(DType dtype, Kind kind, unsigned seed) : dtype_(dtype), numbers_(kPeriod) {
    std::mt19937 rng(seed);
    for (double& number : numbers_) {
      const unsigned draw = rng();
      const double sign = draw & 1 ? -1 : 1, fraction = 1 + (draw >> 1 & 3) / 4.0;
      number = dtype == DType::kInt8 ? sign * (1 + (draw >> 1) % 15)
                                     : std::ldexp(sign * fraction, -static_cast<int>((draw >> 3) % 3));
    }
    if (kind == Kind::kSparse24) prune(rng);
    const std::size_t size = static_cast<std::size_t>(cusparselt::size_of(dtype));
    bytes_.resize(kPeriod * size);
    for (std::size_t i = 0; i < kPeriod; ++i) {
      const std::uint32_t bits = encode(numbers_[i], dtype);
      std::memcpy(bytes_.data() + i * size, &bits, size);  // little endian, as every GPU's host
    }
  }

  double at(std::int64_t i) const { return numbers_[static_cast<std::size_t>(i) % kPeriod]; }

  // Doubles what is there until `elements` are.
  void fill(void* device, std::int64_t elements, abi::Stream stream) const {
    const std::size_t all = static_cast<std::size_t>(elements * cusparselt::size_of(dtype_));
    std::size_t done = std::min(all, bytes_.size());
    check_cuda(cuda().MemcpyAsync(device, bytes_.data(), done, abi::kHostToDevice, stream), "cudaMemcpyAsync");
    while (done < all) {
      const std::size_t next = std::min(all - done, done);
      check_cuda(
          cuda().MemcpyAsync(static_cast<unsigned char*>(device) + done, device, next, abi::kDeviceToDevice, stream),
          "cudaMemcpyAsync");
      done += next;
    }
  }

 private:
  static constexpr std::size_t kPeriod = 4 * 65537;  // a prime number of groups: rows differ

  void prune(std::mt19937& rng) {
    for (std::size_t group = 0; group < kPeriod; group += 4) {
      std::size_t gone[2] = {rng() % 2, 2 + rng() % 2};
      if (dtype_ != DType::kFloat32 && rng() % 3 == 0) gone[0] = gone[1] ^ 1;
      for (const std::size_t i : gone) numbers_[group + i] = 0;
    }
  }

  DType dtype_;
  std::vector<double> numbers_;
  std::vector<unsigned char> bytes_;
};

// ---- JSON ----

class Json {
 public:
  Json& add(const char* name, const std::string& text) { return raw(name, quoted(text)); }
  Json& add(const char* name, const char* text) { return raw(name, quoted(text)); }
  Json& add(const char* name, const Json& object) { return raw(name, object.text()); }
  Json& add(const char* name, const std::vector<Json>& objects) {
    std::string list;
    for (const Json& object : objects) list += (list.empty() ? "\n" : ",\n") + object.text();
    return raw(name, "[" + list + "]");
  }
  template <typename T>
    requires std::is_arithmetic_v<T>
  Json& add(const char* name, T value) {
    if constexpr (std::is_same_v<T, bool>) return raw(name, value ? "true" : "false");
    if constexpr (std::is_integral_v<T>) return raw(name, std::to_string(value));
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.6g", static_cast<double>(value));
    return raw(name, std::isfinite(static_cast<double>(value)) ? digits : "null");
  }
  std::string text() const { return "{" + members_ + "}"; }

 private:
  Json& raw(const char* name, const std::string& value) {
    members_ += (members_.empty() ? "" : ", ") + quoted(name) + ": " + value;
    return *this;
  }
  static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
      if (c == '\n') {
        out += "\\n";
        continue;
      }
      if (c == '"' || c == '\\') out += '\\';
      if (static_cast<unsigned char>(c) >= 0x20) out += c;
    }
    return out + '"';
  }

  std::string members_;
};

}  // namespace harness
