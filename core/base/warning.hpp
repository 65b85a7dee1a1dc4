// What a caller should know of a call that did what it was asked: that keys were copied from a GPU, say.
#pragma once

#include <functional>
#include <string>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// Hands a sentence to the handler; to standard error where none was set. Any thread.
RETICLE_API void warn(const std::string& message);
/// From now on; an empty function brings standard error back. The Python package sets one that raises its warnings.
RETICLE_API void set_warning_handler(std::function<void(const std::string&)> handler);

}  // namespace reticle
