// What a call is refused with.
#pragma once

#include <string>

namespace reticle::testing {

/// The message of the Exception that `call` throws; empty when it throws nothing. Other exceptions pass through, and
/// fail the test.
template <class Exception, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace reticle::testing
