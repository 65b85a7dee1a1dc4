// Enumerators by their names, which reflection reads from the source.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <reticle/core/config/field_names.hpp>

namespace reticle {

template <class Enum>
constexpr std::string_view name_of_enumerator(Enum value) {
  return enumerator_names<Enum>[static_cast<std::size_t>(value)];
}

/// Nothing for a name that no enumerator has.
template <class Enum>
constexpr std::optional<Enum> enumerator_of(std::string_view name) {
  for (std::size_t i = 0; i < enumerator_names<Enum>.size(); ++i) {
    if (!name.empty() && enumerator_names<Enum>[i] == name) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

/// For messages: the names in order, each in `quote`s, with `last` before the last one.
template <class Enum>
std::string list_enumerators(std::string_view quote = "", std::string_view last = ", ") {
  std::string list, pending;
  for (const std::string_view name : enumerator_names<Enum>) {
    if (name.empty()) continue;
    if (!pending.empty()) list += (list.empty() ? "" : ", ") + pending;
    pending = std::string(quote) + std::string(name) + std::string(quote);
  }
  return list.empty() ? pending : list + std::string(last) + pending;
}

}  // namespace reticle
