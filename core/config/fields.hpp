// A config is a plain aggregate with defaults in place. Reflection walks it once, here, to make a table; reading,
// writing, schema and docs are loops over that table, compiled once in config.cpp. A file that defines a config never
// sees JSON.
//
//   namespace reticle::maskers {          // a named namespace: reflection needs external linkage
//   struct SinkConfig {
//     Size sink_size = 128;
//     static constexpr const char* docs[] = {"keys kept at the start; a count or a fraction of the keys"};
//     static constexpr std::string_view required[] = {"sink_size"};            // optional: no default
//     void validate() const { require(sink_size.positive(), "sink_size", "must be > 0"); }   // optional
//   };
//   }
#pragma once

#include <algorithm>
#include <concepts>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/error.hpp>
#include <reticle/core/config/field_names.hpp>
#include <reticle/core/config/size.hpp>
#include <reticle/core/config/subset.hpp>

namespace reticle {

struct Field;

/// A JSON scalar on its way into or out of a field.
using Scalar = std::variant<bool, Index, double, std::string>;

/// How one type is read, written and described. type_of<T>() makes it for C++ types. Scripting languages, whose fields
/// are only known at run time, make their own object types with fields of the types that type_of<T>() gives.
struct FieldType {
  enum class Kind : std::uint8_t {
    boolean,
    integer,
    real,
    text,
    path,
    size,
    choice,
    range,
    optional,
    list,
    subset,
    object
  };
  Kind kind;
  // integer
  Index least = 0, greatest = 0;
  // choice: names indexed by value; empty for a value without a name
  std::span<const std::string_view> choices;
  // scalars (boolean to range); a choice is passed as its value, an Index; a range as a number or text
  void (*assign)(void* field, const Scalar& value) = nullptr;
  Scalar (*read)(const void* field) = nullptr;
  // optional, list and subset: `grow` makes (or adds) a default element and returns it
  const FieldType* element = nullptr;
  void (*clear)(void* container) = nullptr;
  void* (*grow)(void* container) = nullptr;
  Index (*count)(const void* container) = nullptr;
  const void* (*at)(const void* container, Index i) = nullptr;
  // object
  std::function<std::span<const Field>()> fields;
  std::function<void(const void* config)> validate;
};

struct Field {
  std::string_view name, doc;
  bool required = false;
  const FieldType* type = nullptr;
  std::function<void*(void* config)> in;
};

/// Thrown by a config's validate(); the reader adds the JSON pointer and the value.
class RETICLE_API InvalidField : public ConfigError {
 public:
  InvalidField(std::string_view field, const std::string& expected)
      : ConfigError(std::string(field) + " " + expected), field(field), expected(expected) {}
  InvalidField(const InvalidField&) = default;
  InvalidField& operator=(const InvalidField&) = default;
  ~InvalidField() override;
  std::string field, expected;
};

/// For validate(): InvalidField unless `condition` holds; `expected` completes "<field> ...", e.g. "must be > 0".
inline void require(bool condition, std::string_view field, const std::string& expected) {
  if (!condition) throw InvalidField(field, expected);
}

/// For counts of keys, queries, heads or bits, bounded so that the sum of two of them cannot overflow.
inline void require_count(Index value, std::string_view field, Index least = 1) {
  require(value >= least && value <= 2147483647, field, "must be in [" + std::to_string(least) + ", 2^31)");
}

template <class T>
const FieldType* type_of();

namespace fields_detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_list = false;
template <class T>
inline constexpr bool is_list<std::vector<T>> = true;

template <class T>
concept Documented = requires { std::size(T::docs); };
template <class T>
concept Validated = requires(const T& config) { config.validate(); };
template <class T>
concept HasRequired = requires { std::size(T::required); };

template <class T>
bool is_required(std::string_view name) {
  if constexpr (HasRequired<T>) {
    for (const std::string_view required : T::required) {
      if (required == name) return true;
    }
  }
  return false;
}

template <class T, std::size_t... I>
std::vector<Field> make_fields(std::index_sequence<I...>) {
  constexpr auto names = field_names<T>();
  return {Field{names[I], T::docs[I], is_required<T>(names[I]), type_of<boost::pfr::tuple_element_t<I, T>>(),
                [](void* config) -> void* { return &boost::pfr::get<I>(*static_cast<T*>(config)); }}...};
}

template <class T>
std::span<const Field> fields_of() {
  constexpr std::size_t count = boost::pfr::tuple_size_v<T>;
  if constexpr (count == 0) {
    return {};
  } else {
    static_assert(Documented<T>, "a config documents its fields: static constexpr const char* docs[] = {...}");
    static_assert(std::size(T::docs) == count, "one line of docs per field");
    static const std::vector<Field> fields = make_fields<T>(std::make_index_sequence<count>{});
    return fields;
  }
}

template <class T>
FieldType make_type() {
  using Kind = FieldType::Kind;
  FieldType type{};
  const auto scalar = [&](Kind kind, void (*assign)(void*, const Scalar&), Scalar (*read)(const void*)) {
    type.kind = kind;
    type.assign = assign;
    type.read = read;
  };
  if constexpr (std::same_as<T, bool>) {
    scalar(
        Kind::boolean, [](void* to, const Scalar& v) { *static_cast<T*>(to) = std::get<bool>(v); },
        [](const void* from) -> Scalar { return *static_cast<const T*>(from); });
  } else if constexpr (std::integral<T>) {
    scalar(
        Kind::integer, [](void* to, const Scalar& v) { *static_cast<T*>(to) = static_cast<T>(std::get<Index>(v)); },
        [](const void* from) -> Scalar { return static_cast<Index>(*static_cast<const T*>(from)); });
    // Signed fields hold counts, bounded so that the product of two cannot overflow. Unsigned fields hold seeds, which
    // may be any number that is not negative.
    if constexpr (std::is_signed_v<T>) {
      type.greatest = std::min<Index>(std::numeric_limits<T>::max(), kMaxColumns);
      type.least = std::max<Index>(std::numeric_limits<T>::min(), -kMaxColumns - 1);
    } else {
      type.greatest = sizeof(T) == sizeof(Index) ? std::numeric_limits<Index>::max()
                                                 : static_cast<Index>(std::numeric_limits<T>::max());
    }
  } else if constexpr (std::floating_point<T>) {
    scalar(
        Kind::real, [](void* to, const Scalar& v) { *static_cast<T*>(to) = static_cast<T>(std::get<double>(v)); },
        [](const void* from) -> Scalar { return static_cast<double>(*static_cast<const T*>(from)); });
  } else if constexpr (std::same_as<T, std::string>) {
    scalar(
        Kind::text, [](void* to, const Scalar& v) { *static_cast<T*>(to) = std::get<std::string>(v); },
        [](const void* from) -> Scalar { return *static_cast<const T*>(from); });
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    scalar(
        Kind::path, [](void* to, const Scalar& v) { *static_cast<T*>(to) = std::get<std::string>(v); },
        [](const void* from) -> Scalar { return static_cast<const T*>(from)->string(); });
  } else if constexpr (std::same_as<T, Size>) {
    scalar(
        Kind::size,
        [](void* to, const Scalar& v) {
          *static_cast<T*>(to) =
              std::holds_alternative<Index>(v) ? Size(std::get<Index>(v)) : Size(std::get<double>(v));
        },
        [](const void* from) -> Scalar {
          const T& size = *static_cast<const T*>(from);
          if (size.is_fraction()) return size.fraction();
          return size.count();
        });
  } else if constexpr (std::is_enum_v<T>) {
    scalar(
        Kind::choice, [](void* to, const Scalar& v) { *static_cast<T*>(to) = static_cast<T>(std::get<Index>(v)); },
        [](const void* from) -> Scalar { return static_cast<Index>(*static_cast<const T*>(from)); });
    type.choices = enumerator_names<T>;
  } else if constexpr (std::same_as<T, IndexRange>) {
    scalar(
        Kind::range,
        [](void* to, const Scalar& v) {
          const auto* const number = std::get_if<Index>(&v);
          *static_cast<T*>(to) = number != nullptr ? T{*number, *number} : T::parse(std::get<std::string>(v)).value();
        },
        [](const void* from) -> Scalar {
          const T& range = *static_cast<const T*>(from);
          if (range.first == range.last) return range.first;
          return range.text();
        });
  } else if constexpr (std::same_as<T, Subset>) {
    type = make_type<std::vector<IndexRange>>();  // its only member, so that both have one address
    type.kind = Kind::subset;
  } else if constexpr (is_optional<T>) {
    type.kind = Kind::optional;
    type.element = type_of<typename T::value_type>();
    type.clear = [](void* container) { static_cast<T*>(container)->reset(); };
    type.grow = [](void* container) -> void* { return &static_cast<T*>(container)->emplace(typename T::value_type{}); };
    type.count = [](const void* container) -> Index { return static_cast<const T*>(container)->has_value() ? 1 : 0; };
    type.at = [](const void* container, Index) -> const void* { return &**static_cast<const T*>(container); };
  } else if constexpr (is_list<T>) {
    static_assert(!std::same_as<T, std::vector<bool>>, "std::vector<bool> has no elements to point to");
    type.kind = Kind::list;
    type.element = type_of<typename T::value_type>();
    type.clear = [](void* container) { static_cast<T*>(container)->clear(); };
    type.grow = [](void* container) -> void* {
      return &static_cast<T*>(container)->emplace_back(typename T::value_type{});
    };
    type.count = [](const void* container) { return static_cast<Index>(static_cast<const T*>(container)->size()); };
    type.at = [](const void* container, Index i) -> const void* {
      return &(*static_cast<const T*>(container))[static_cast<std::size_t>(i)];
    };
  } else {
    static_assert(std::is_aggregate_v<T>,
                  "a config field is a number, bool, string, path, Size, enum, optional, vector "
                  "or an aggregate of those");
    type.kind = Kind::object;
    type.fields = fields_of<T>;
    if constexpr (Validated<T>) type.validate = [](const void* config) { static_cast<const T*>(config)->validate(); };
  }
  return type;
}

}  // namespace fields_detail

template <class T>
const FieldType* type_of() {
  static const FieldType type = fields_detail::make_type<T>();
  return &type;
}

/// A value as JSON text.
RETICLE_API std::string json_of(const FieldType& type, const void* value);
template <class T>
std::string json_of(const T& value) {
  return json_of(*type_of<T>(), &value);
}

}  // namespace reticle
