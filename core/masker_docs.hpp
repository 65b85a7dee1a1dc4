// Documentation of a registered masker and its parameters: Markdown for people, JSON Schema for editors and validators.
#pragma once

#include <string>
#include <string_view>

#include <reticle/core/registry.hpp>

namespace reticle {

/// Source, rule, parameters with defaults, and cost, as Markdown. ConfigError for an unknown type.
RETICLE_API std::string describe_masker(std::string_view type);
/// JSON Schema of a masker's parameters.
std::string schema_of(const MaskerType& masker);

}  // namespace reticle
