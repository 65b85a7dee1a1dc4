// Which of our maskers make a pattern of another project, from the parameters that its cases record.
#pragma once

#include <string>

#include "golden/case.hpp"

namespace reticle::golden {

bool has_pattern(const std::string& name);

/// The maskers of the pattern "family/name", as in a config. Of a case, `parameters` are the pattern's own and `keys`
/// the length of the prompt. FormatError, which names the case's file and the parameter that is wrong.
Json maskers_of_pattern(const std::string& name, const Json& parameters, Index keys, const Case& file);

}  // namespace reticle::golden
