#include "fields.hpp"

#include <algorithm>
#include <filesystem>
#include <pybind11/stl/filesystem.h>
#include <variant>

namespace reticle::bindings {
namespace {

Scalar scalar_from(const FieldType& type, const py::handle& value) {
  using Kind = FieldType::Kind;
  switch (type.kind) {
    case Kind::boolean:
      return value.cast<bool>();
    case Kind::integer:
      return value.cast<Index>();
    case Kind::real:
      return value.cast<double>();
    case Kind::size:
      if (py::isinstance<py::float_>(value)) return value.cast<double>();
      return value.cast<Index>();
    case Kind::choice: {
      const auto name = value.cast<std::string>();
      return static_cast<Index>(std::find(type.choices.begin(), type.choices.end(), name) - type.choices.begin());
    }
    default:
      return std::string(py::str(value));
  }
}

}  // namespace

void store(const FieldType& type, void* to, const py::handle& value) {
  if (type.kind == FieldType::Kind::optional) {
    type.clear(to);
    if (!value.is_none()) store(*type.element, type.grow(to), value);
  } else if (type.kind == FieldType::Kind::list) {
    type.clear(to);
    for (const py::handle element : value) store(*type.element, type.grow(to), element);
  } else {
    type.assign(to, scalar_from(type, value));
  }
}

py::object to_python(const FieldType& type, const void* from) {
  using Kind = FieldType::Kind;
  if (type.kind == Kind::optional)
    return type.count(from) == 0 ? py::none() : to_python(*type.element, type.at(from, 0));
  if (type.kind == Kind::list) {
    py::list list;
    for (Index i = 0; i < type.count(from); ++i) list.append(to_python(*type.element, type.at(from, i)));
    return list;
  }
  if (type.kind == Kind::object) {
    py::dict fields;
    for (const Field& field : type.fields())
      fields[py::str(std::string(field.name))] = to_python(*field.type, field.in(const_cast<void*>(from)));
    return fields;
  }
  const Scalar value = type.read(from);
  if (type.kind == Kind::choice)
    return py::str(std::string(type.choices[static_cast<std::size_t>(std::get<Index>(value))]));
  if (type.kind == Kind::path) return py::cast(std::filesystem::path(std::get<std::string>(value)));
  return std::visit([](const auto& scalar) -> py::object { return py::cast(scalar); }, value);
}

}  // namespace reticle::bindings
