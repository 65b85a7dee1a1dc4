// The names of an aggregate's fields and of an enum's values, as the compiler spells them.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

#include <boost/pfr.hpp>
#if __has_include(<boost/pfr/core_name.hpp>)
#include <boost/pfr/core_name.hpp>
#endif

namespace reticle {
namespace names_detail {

/// The last identifier in a text.
consteval std::string_view last_identifier(std::string_view signature) {
  const auto is_identifier = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  std::size_t end = signature.size();
  while (end > 0 && !is_identifier(signature[end - 1])) --end;
  std::size_t begin = end;
  while (begin > 0 && is_identifier(signature[begin - 1])) --begin;
  return signature.substr(begin, end - begin);
}

/// The compiler's spelling of a template argument, taken from "... [with auto Value = SPELLING; ...]" (g++) or "...
/// [Value = SPELLING]" (clang, which omits unnamed parameters).
consteval std::string_view spelling(std::string_view signature) {
  constexpr std::string_view kBefore = "Value = ";
  signature.remove_prefix(signature.find(kBefore) + kBefore.size());
  return signature.substr(0, signature.find_first_of(";]"));
}

/// Empty for a value without an enumerator, which is spelled as a cast, "(ns::Enum)7".
template <auto Value>
consteval std::string_view enumerator_name() {
  const std::string_view name = last_identifier(spelling(__PRETTY_FUNCTION__));
  return name[0] >= '0' && name[0] <= '9' ? std::string_view() : name;
}

#if !defined(BOOST_PFR_CORE_NAME_ENABLED) || !BOOST_PFR_CORE_NAME_ENABLED
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wundefined-var-template"
#pragma clang diagnostic ignored "-Wundefined-internal"
#endif
template <class T>
struct External {
  static const T object;  // never defined: only addresses of its members are formed
};

template <class T>
struct Pointer {
  const T* to;
};
template <class T>
Pointer(const T*) -> Pointer<T>;

/// Spelled "Pointer<T>{(& External<C>::object.C::name)}" (g++) or "Pointer<T>{&object.name}" (clang).
template <auto Value>
consteval std::string_view member_name() {
  return last_identifier(spelling(__PRETTY_FUNCTION__));
}

template <class T, std::size_t... I>
consteval auto member_names(std::index_sequence<I...>) {
  return std::array<std::string_view, sizeof...(I)>{
      member_name<Pointer{&boost::pfr::get<I>(External<T>::object)}>()...};
}
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#endif

inline constexpr int kMaxEnumerators = 32;

template <class E, std::size_t... I>
consteval auto enum_names(std::index_sequence<I...>) {
  return std::array<std::string_view, sizeof...(I)>{enumerator_name<static_cast<E>(I)>()...};
}

}  // namespace names_detail

/// Field names in order. T must be an aggregate with external linkage (in a named namespace). Boost.PFR provides the
/// names since version 1.84; for older versions they are parsed above.
template <class T>
constexpr auto field_names() {
#if defined(BOOST_PFR_CORE_NAME_ENABLED) && BOOST_PFR_CORE_NAME_ENABLED
  return boost::pfr::names_as_array<T>();
#else
  return names_detail::member_names<T>(std::make_index_sequence<boost::pfr::tuple_size_v<T> >{});
#endif
}

/// Enumerator names indexed by value, for values 0 to 31; empty where there is none.
template <class E>
  requires std::is_enum_v<E>
inline constexpr auto enumerator_names =
    names_detail::enum_names<E>(std::make_index_sequence<names_detail::kMaxEnumerators>{});

}  // namespace reticle
