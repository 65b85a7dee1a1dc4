// Warnings about calls that succeeded, e.g. that keys were copied from a GPU.
#pragma once

#include <functional>
#include <string>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// Passes a sentence to the handler, or to standard error if none is set. May be called from any thread.
RETICLE_API void warn(const std::string& message);
/// Replaces the handler; an empty function restores standard error. The Python package sets a handler that raises
/// Python warnings.
RETICLE_API void set_warning_handler(std::function<void(const std::string&)> handler);

}  // namespace reticle
