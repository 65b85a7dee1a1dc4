// What an error says.
#pragma once

#include <string>

namespace reticle::testing {

/// The message of the E that a call throws; "nothing was thrown" when it returns.
template <class E, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace reticle::testing
