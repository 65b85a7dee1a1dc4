// "did you mean ...?": the nearest of some known names by edit distance; one that begins with what is given is near,
// too.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// `; did you mean "x"?`, or an empty string when nothing is near.
RETICLE_API std::string did_you_mean(std::string_view given, std::span<const std::string_view> known);

}  // namespace reticle
