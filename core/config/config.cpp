#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include <reticle/core/base/did_you_mean.hpp>
#include <reticle/core/config/config.hpp>

namespace reticle {

using Json = nlohmann::ordered_json;
using Kind = FieldType::Kind;

InvalidField::~InvalidField() = default;

JsonPlace JsonPlace::operator/(std::string_view key) const {
  JsonPlace place = *this;
  place.pointer += '/';
  for (const char c : key) {
    if (c == '~') {
      place.pointer += "~0";
    } else if (c == '/') {
      place.pointer += "~1";
    } else {
      place.pointer += c;
    }
  }
  return place;
}

JsonPlace JsonPlace::operator/(std::size_t index) const {
  JsonPlace place = *this;
  place.pointer += '/' + std::to_string(index);
  return place;
}

namespace {

/// Bounds the nesting of JSON, which is read recursively.
constexpr int kMaxDepth = 100;

}  // namespace

void JsonPlace::fail(const std::string& message) const {
  throw ConfigError((pointer.empty() ? std::string("config") : pointer) + ": " + message);
}

Json parse_json(std::string_view text) {
  std::vector<std::set<std::string>> keys_of_open_objects;
  const auto check_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth)
      throw ConfigError("config: is nested more than " + std::to_string(kMaxDepth) + " levels deep");
    if (event == Json::parse_event_t::object_start) keys_of_open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) keys_of_open_objects.pop_back();
    if (event == Json::parse_event_t::key && !keys_of_open_objects.back().insert(parsed.get<std::string>()).second)
      throw ConfigError("config: key " + parsed.dump() + " occurs twice in one object");
    return true;
  };
  try {
    return Json::parse(text, check_keys, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const nlohmann::json::exception& error) {
    const std::string_view what = error.what();
    throw ConfigError("config: is not JSON: " + std::string(what.substr(what.find("] ") + 2)));
  }
}

namespace {

/// A value as messages show it; long values are shortened.
std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  constexpr std::size_t kMaxLength = 60;
  if (text.size() > kMaxLength) text = text.substr(0, kMaxLength) + "...";
  return text;
}

[[noreturn]] void expected(const Json& value, const JsonPlace& place, const std::string& what) {
  place.fail(shown(value) + " is not " + what);
}

std::string list_choices(std::span<const std::string_view> choices) {
  std::string text;
  for (const std::string_view choice : choices) {
    if (choice.empty()) continue;
    if (!text.empty()) text += ", ";
    text += '"' + std::string(choice) + '"';
  }
  return text;
}

bool fits_index(const Json& value) {
  return value.is_number_integer() &&
         !(value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{INT64_MAX});
}

Scalar scalar_from(const FieldType& type, const Json& value, const JsonPlace& place) {
  switch (type.kind) {
    case Kind::boolean:
      if (!value.is_boolean()) expected(value, place, "true or false");
      return value.get<bool>();
    case Kind::integer: {
      const auto range = [&] {
        return "an integer in [" + std::to_string(type.least) + ", " + std::to_string(type.greatest) + "]";
      };
      if (!fits_index(value)) expected(value, place, range());
      const auto number = value.get<Index>();
      if (number < type.least || number > type.greatest) expected(value, place, range());
      return number;
    }
    case Kind::real:
      if (!value.is_number()) expected(value, place, "a number");
      return value.get<double>();
    case Kind::text:
      if (!value.is_string()) expected(value, place, "a string");
      return value.get<std::string>();
    case Kind::path: {
      if (!value.is_string()) expected(value, place, "a path");
      const std::filesystem::path path = value.get<std::string>();
      return path.is_relative() && !path.empty() ? (place.directory / path).string() : path.string();
    }
    case Kind::size: {
      const std::string what =
          "a size: expected an integer in [0, 2^31) (a count) or a real in [0, 1] (a fraction of the keys)";
      if (fits_index(value) && value.get<Index>() >= 0 && value.get<Index>() <= kMaxColumns) return value.get<Index>();
      if (value.is_number_float()) {
        const auto fraction = value.get<double>();
        if (fraction >= 0 && fraction <= 1) return fraction;
      }
      expected(value, place, what);
    }
    case Kind::choice: {
      if (value.is_string()) {
        const auto& name = value.get_ref<const std::string&>();
        for (std::size_t i = 0; i < type.choices.size(); ++i) {
          if (!name.empty() && type.choices[i] == name) return static_cast<Index>(i);
        }
        expected(value, place, "one of " + list_choices(type.choices) + did_you_mean(name, type.choices));
      }
      expected(value, place, "one of " + list_choices(type.choices));
    }
    case Kind::range:
      if (value.is_number_unsigned() && fits_index(value) && value.get<Index>() <= kMaxColumns)
        return value.get<Index>();
      if (value.is_string() && IndexRange::parse(value.get_ref<const std::string&>())) return value.get<std::string>();
      place.fail(shown(value) + R"(: expected a number or a range, as 0, "4-7" or "16-")");
    case Kind::optional:
    case Kind::list:
    case Kind::subset:
    case Kind::object:
      break;
  }
  place.fail("is not a scalar");
}

/// Reports the field that a config's validate() rejected, by its JSON pointer and value (the default if none was
/// given).
[[noreturn]] void fail_validation(const InvalidField& error, const FieldType& type, void* config, const Json& value,
                                  const JsonPlace& place) {
  for (const Field& field : type.fields()) {
    if (field.name != error.field) continue;
    const Json given = value.contains(error.field) ? value.at(error.field) : to_json(*field.type, field.in(config));
    (place / field.name).fail(error.expected + ", got " + shown(given));
  }
  place.fail(error.what());
}

}  // namespace

void require_keys(const Json& value, const JsonPlace& place, std::span<const std::string_view> known) {
  if (!value.is_object()) expected(value, place, "an object");
  for (const auto& [key, unused] : value.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string hint = did_you_mean(key, known);
    if (!hint.empty()) (place / key).fail("unknown key" + hint);
    std::string names;
    for (const std::string_view name : known) names += (names.empty() ? "" : ", ") + std::string(name);
    (place / key).fail("unknown key; known are " + (names.empty() ? "none" : names));
  }
}

void from_json(const FieldType& type, void* config, const Json& value, const JsonPlace& place) {
  switch (type.kind) {
    case Kind::optional:
      type.clear(config);
      if (!value.is_null()) from_json(*type.element, type.grow(config), value, place);
      return;
    case Kind::subset:
      if (!value.is_array() || value.empty())
        place.fail(R"(expected a list of numbers and ranges, as [0, "4-7", "16-"])");
      [[fallthrough]];
    case Kind::list:
      if (!value.is_array()) expected(value, place, "a list");
      type.clear(config);
      for (std::size_t i = 0; i < value.size(); ++i) from_json(*type.element, type.grow(config), value[i], place / i);
      return;
    case Kind::object: {
      std::vector<std::string_view> known;
      for (const Field& field : type.fields()) known.push_back(field.name);
      require_keys(value, place, known);
      for (const Field& field : type.fields()) {
        const auto found = value.find(field.name);
        if (found != value.end()) {
          from_json(*field.type, field.in(config), *found, place / field.name);
        } else if (field.required) {
          place.fail("\"" + std::string(field.name) + "\" is missing: " + std::string(field.doc));
        }
      }
      if (!type.validate) return;
      try {
        type.validate(config);
      } catch (const InvalidField& error) {
        fail_validation(error, type, config, value, place);
      }
      return;
    }
    default:
      type.assign(config, scalar_from(type, value, place));
  }
}

Json to_json(const FieldType& type, const void* config) {
  switch (type.kind) {
    case Kind::optional:
      return type.count(config) == 0 ? Json() : to_json(*type.element, type.at(config, 0));
    case Kind::list:
    case Kind::subset: {
      Json list = Json::array();
      for (Index i = 0; i < type.count(config); ++i) list.push_back(to_json(*type.element, type.at(config, i)));
      return list;
    }
    case Kind::object: {
      Json object = Json::object();
      for (const Field& field : type.fields()) {
        const void* const value = field.in(const_cast<void*>(config));
        const bool is_all = field.type->kind == Kind::subset && field.type->count(value) == 0;
        if (!is_all) object[std::string(field.name)] = to_json(*field.type, value);
      }
      return object;
    }
    case Kind::choice:
      return std::string(type.choices[static_cast<std::size_t>(std::get<Index>(type.read(config)))]);
    default:
      return std::visit([](const auto& value) { return Json(value); }, type.read(config));
  }
}

std::string json_of(const FieldType& type, const void* value) { return to_json(type, value).dump(); }

Json schema_of(const FieldType& type, const void* defaults) {
  switch (type.kind) {
    case Kind::boolean:
      return {{"type", "boolean"}};
    case Kind::integer: {
      Json schema = {{"type", "integer"}};
      if (type.least != INT64_MIN) schema["minimum"] = type.least;
      if (type.greatest != INT64_MAX) schema["maximum"] = type.greatest;
      return schema;
    }
    case Kind::real:
      return {{"type", "number"}};
    case Kind::text:
    case Kind::path:
      return {{"type", "string"}};
    case Kind::size: {
      Json count = {{"type", "integer"}, {"minimum", 0}};
      Json fraction = {{"type", "number"}, {"minimum", 0}, {"maximum", 1}};
      return {{"anyOf", Json::array({std::move(count), std::move(fraction)})}};
    }
    case Kind::choice: {
      Json names = Json::array();
      for (const std::string_view choice : type.choices) {
        if (!choice.empty()) names.push_back(std::string(choice));
      }
      return {{"enum", std::move(names)}};
    }
    case Kind::range: {
      Json number = {{"type", "integer"}, {"minimum", 0}};
      Json range = {{"type", "string"}, {"pattern", "^[0-9]+-[0-9]*$"}};
      return {{"anyOf", Json::array({std::move(number), std::move(range)})}};
    }
    case Kind::optional: {
      Json none = {{"type", "null"}};
      return {{"anyOf", Json::array({schema_of(*type.element, nullptr), std::move(none)})}};
    }
    case Kind::list:
      return {{"type", "array"}, {"items", schema_of(*type.element, nullptr)}};
    case Kind::subset:
      return {{"type", "array"}, {"minItems", 1}, {"items", schema_of(*type.element, nullptr)}};
    case Kind::object: {
      Json properties = Json::object();
      Json required = Json::array();
      for (const Field& field : type.fields()) {
        const void* value = defaults == nullptr ? nullptr : field.in(const_cast<void*>(defaults));
        Json schema = schema_of(*field.type, value);
        schema["description"] = std::string(field.doc);
        if (field.required) {
          required.push_back(std::string(field.name));
        } else if (value != nullptr && field.type->kind != Kind::subset) {
          schema["default"] = to_json(*field.type, value);
        }
        properties[std::string(field.name)] = std::move(schema);
      }
      Json schema = {{"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
      if (!required.empty()) schema["required"] = std::move(required);
      return schema;
    }
  }
  return {};
}

std::string type_name(const FieldType& type) {
  switch (type.kind) {
    case Kind::boolean:
      return "boolean";
    case Kind::integer:
      return "integer";
    case Kind::real:
      return "number";
    case Kind::text:
      return "string";
    case Kind::path:
      return "path";
    case Kind::size:
      return "count or fraction";
    case Kind::choice:
      return "one of " + list_choices(type.choices);
    case Kind::range:
      return "number or range";
    case Kind::optional:
      return type_name(*type.element) + " or null";
    case Kind::list:
      return "list of " + type_name(*type.element);
    case Kind::subset:
      return "list of numbers and ranges";
    case Kind::object:
      return "object";
  }
  return {};
}

}  // namespace reticle
