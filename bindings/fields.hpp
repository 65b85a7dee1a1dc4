// Converts reflected values to Python objects and back.
#pragma once

#include <optional>
#include <pybind11/pybind11.h>
#include <string>

#include <reticle/core/config/enumerators.hpp>
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

/// The enumerator of a name; ValueError, which says what the argument is called and lists the names, for another.
template <class Enum>
Enum enum_from(const std::string& name, const char* argument) {
  const std::optional<Enum> found = enumerator_of<Enum>(name);
  if (!found)
    throw py::value_error(std::string(argument) + " is \"" + name + "\"; expected " +
                          list_enumerators<Enum>("\"", " or "));
  return *found;
}

}  // namespace reticle::bindings
