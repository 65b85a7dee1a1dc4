#include <cstdio>
#include <mutex>
#include <utility>

#include <reticle/core/base/warning.hpp>

namespace reticle {
namespace {

struct Handler {
  std::mutex mutex;
  std::function<void(const std::string&)> handle;
};

/// Leaked on purpose: threads may outlive static destruction.
Handler& handler() {
  static auto* const made = new Handler;
  return *made;
}

}  // namespace

void set_warning_handler(std::function<void(const std::string&)> handle) {
  const std::lock_guard lock(handler().mutex);
  handler().handle = std::move(handle);
}

void warn(const std::string& message) {
  std::function<void(const std::string&)> handle;
  {
    const std::lock_guard lock(handler().mutex);
    handle = handler().handle;
  }
  if (handle) {
    handle(message);
  } else {
    std::fprintf(stderr, "reticle: warning: %s\n", message.c_str());
  }
}

}  // namespace reticle
