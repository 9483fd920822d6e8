// One exception type for everything the library refuses.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace sparse24 {

// A caller's mistake: becomes ValueError in Python. The text names the rule, what was given, and
// what to do.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A backend that failed or is missing: becomes sparse24.Error in Python.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace sparse24
