// Converts reflected values to Python objects and back.
#pragma once

#include <pybind11/pybind11.h>
#include <string>

#include <reticle/core/config/fields.hpp>

namespace reticle::bindings {

namespace py = pybind11;

/// Stores a Python value of the right kind in a field.
void store(const FieldType& type, void* to, const py::handle& value);
/// Converts to numbers, strings and lists; aggregates become dicts with a key per field.
py::object to_python(const FieldType& type, const void* from);
template <class T>
py::object to_python(const T& value) {
  return to_python(*type_of<T>(), &value);
}

template <class Enum>
std::string name_of(Enum value) {
  return std::string(enumerator_names<Enum>[static_cast<std::size_t>(value)]);
}

/// The enumerator with this name. ValueError for an unknown name, with the argument's name and the known names.
template <class Enum>
Enum enum_from(const std::string& name, const char* argument) {
  std::string known, last;
  for (std::size_t i = 0; i < enumerator_names<Enum>.size(); ++i) {
    const std::string each(enumerator_names<Enum>[i]);
    if (each.empty()) continue;
    if (each == name) return static_cast<Enum>(i);
    if (!last.empty()) known += (known.empty() ? "" : ", ") + last;
    last = '"' + each + '"';
  }
  if (!known.empty()) known += " or ";
  throw py::value_error(std::string(argument) + " is \"" + name + "\"; expected " + known + last);
}

}  // namespace reticle::bindings
