// Converts JSON to configs and back. Internal: public headers pass JSON as text only.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <reticle/core/config/fields.hpp>

namespace reticle {

/// The JSON pointer of a value in its document, and the directory that relative paths in the document refer to.
struct JsonPlace {
  std::string pointer;  // RFC 6901; empty for the whole document
  std::filesystem::path directory;

  JsonPlace operator/(std::string_view key) const;
  JsonPlace operator/(std::size_t index) const;
  /// ConfigError "<pointer>: <message>".
  [[noreturn]] void fail(const std::string& message) const;
};

/// Parses strict JSON in which comments are allowed and a repeated key is an error. ConfigError names line and column.
nlohmann::ordered_json parse_json(std::string_view text);
/// Throws ConfigError unless `value` is an object whose keys are all known.
void require_keys(const nlohmann::ordered_json& value, const JsonPlace& place, std::span<const std::string_view> known);

/// Fills `config`, which must hold its defaults. ConfigError gives the JSON pointer, the value, what was expected and,
/// for an unknown key, the nearest known one.
void from_json(const FieldType& type, void* config, const nlohmann::ordered_json& value, const JsonPlace& place);
nlohmann::ordered_json to_json(const FieldType& type, const void* config);
/// JSON Schema (draft 2020-12) of a config type; `defaults` is a default-constructed config.
nlohmann::ordered_json schema_of(const FieldType& type, const void* defaults);
/// "integer", "integer >= 0 or fraction in [0, 1]", ..., for docs.
std::string type_name(const FieldType& type);

}  // namespace reticle
