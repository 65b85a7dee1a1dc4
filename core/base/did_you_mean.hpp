// "did you mean ...?": finds the known name nearest to a given one, by edit distance. A name that begins with the given
// text also counts as near.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// Returns `; did you mean "x"?`, or an empty string if no known name is near.
RETICLE_API std::string did_you_mean(std::string_view given, std::span<const std::string_view> known);

}  // namespace reticle
