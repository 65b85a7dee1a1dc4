#include "module.hpp"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/warning.hpp>
#include <reticle/version.hpp>

namespace reticle::bindings {

namespace {
PyObject* missing_file = nullptr;  // the class MissingFileError, created with the module
}

/// Exports every error of the library under its name. The base is reticle.Error; each also derives from the builtin
/// that Python programs would catch: ValueError, or RuntimeError for devices and plugins.
void add_errors(pybind11::module_& module) {
  namespace py = pybind11;
  static const py::handle base = py::register_exception<Error>(module, "Error", PyExc_Exception).release();
  py::setattr(base, "__doc__", py::str("What the library raises; the others derive from it."));
  const auto bases = [](PyObject* builtin) { return py::make_tuple(base, py::handle(builtin)); };
  const auto add = [&]<class Kind>(const char* name, PyObject* builtin, const char* doc) {
    py::setattr(py::register_exception<Kind>(module, name, bases(builtin)), "__doc__", py::str(doc));
  };
  add.operator()<ConfigError>("ConfigError", PyExc_ValueError,
                              "A config is wrong: says where, what and what is expected.");
  add.operator()<ShapeError>("ShapeError", PyExc_ValueError, "Extents or dtypes do not fit together.");
  add.operator()<FormatError>("FormatError", PyExc_ValueError, "A file or a pickle is not what it has to be.");
  add.operator()<ValueError>("InvalidValueError", PyExc_ValueError,
                             "A number is out of its range, or a result is not finite.");
  add.operator()<PluginError>("PluginError", PyExc_RuntimeError, "A plugin cannot be loaded.");
  add.operator()<DeviceError>("DeviceError", PyExc_RuntimeError,
                              "There is no GPU, it failed, or tensors lie elsewhere.");
  // FileNotFoundError comes first, because its __init__ sets errno and filename.
  const py::tuple kinds =
      py::make_tuple(py::handle(PyExc_FileNotFoundError), module.attr("ConfigError"), module.attr("FormatError"));
  missing_file =
      PyErr_NewExceptionWithDoc("reticle._core.MissingFileError", "A file that is not there.", kinds.ptr(), nullptr);
  module.attr("MissingFileError") = py::handle(missing_file);
}

std::filesystem::path existing(const std::filesystem::path& path) {
  namespace py = pybind11;
  if (std::error_code failed; std::filesystem::exists(path, failed) || failed) return path;
  const py::gil_scoped_acquire held;
  errno = ENOENT;
  PyErr_SetFromErrnoWithFilenameObject(missing_file, py::cast(path.string()).ptr());
  throw py::error_already_set();
}

/// Makes pickling use protocol 2 or higher: protocols 0 and 1 create objects through a base class that pybind11 cannot
/// create, which aborts the process.
void pickle_by_protocol_2(const pybind11::module_& module) {
  namespace py = pybind11;
  const py::object reduce = py::cpp_function(
      [](const py::object& self, int protocol) {
        return py::module_::import("builtins").attr("object").attr("__reduce_ex__")(self, std::max(protocol, 2));
      },
      py::is_method(py::none()), py::name("__reduce_ex__"), py::arg("protocol"));
  for (const auto& [name, object] : py::dict(module.attr("__dict__"))) {
    if (PyType_Check(object.ptr()) && !PyExceptionClass_Check(object.ptr()) && !py::hasattr(object, "__members__"))
      py::setattr(object, "__reduce_ex__", reduce);
  }
}

/// Refuses objects created by __new__ without __init__, as a crafted pickle can: they hold no value, and methods would
/// read the uninitialised memory that pybind11 allocates for them.
void refuse_objects_without_values(const pybind11::module_& module) {
  namespace py = pybind11;
  for (const auto& [name, object] : py::dict(module.attr("__dict__"))) {
    if (!PyType_Check(object.ptr())) continue;
    auto* type = reinterpret_cast<PyTypeObject*>(object.ptr());
    const auto& known = py::detail::get_internals().registered_types_py;
    const auto found = known.find(type);
    if (found == known.end()) continue;
    for (py::detail::type_info* info : found->second)
      info->operator_new = [](std::size_t) -> void* { throw py::type_error("an object was made without __init__"); };
  }
}

/// Raises the library's warnings as Python warnings, which filters may turn into errors.
void raise_warnings() {
  namespace py = pybind11;
  set_warning_handler([](const std::string& message) {
    const py::gil_scoped_acquire held;
    if (PyErr_WarnEx(PyExc_RuntimeWarning, message.c_str(), 1) != 0) throw py::error_already_set();
  });
}

/// Refuses to instantiate pybind11's base class, which would abort the process: type(mask).__mro__[1](), or copying by
/// an old protocol.
void refuse_bare_objects() {
  namespace py = pybind11;
  static newfunc make = nullptr;
  auto* const base = reinterpret_cast<PyTypeObject*>(pybind11::detail::get_internals().instance_base);
  if (base->tp_new == nullptr || make != nullptr) return;
  make = base->tp_new;
  const newfunc refuse = [](PyTypeObject* type, PyObject* arguments, PyObject* words) -> PyObject* {
    if (reinterpret_cast<PyObject*>(type) != pybind11::detail::get_internals().instance_base)
      return make(type, arguments, words);
    PyErr_SetString(PyExc_TypeError, "pybind11_object: cannot be made by itself");
    return nullptr;
  };
  // Python requires that subtypes which inherited tp_new keep the same one, other modules' types included.
  const auto replace = [&](const auto& self, PyTypeObject* type) -> void {
    if (type->tp_new != make) return;
    type->tp_new = refuse;
    PyType_Modified(type);
    for (const py::handle each : py::handle(reinterpret_cast<PyObject*>(type)).attr("__subclasses__")())
      self(self, reinterpret_cast<PyTypeObject*>(each.ptr()));
  };
  replace(replace, base);
}

}  // namespace reticle::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "Reticle's C++ library. Import reticle instead.";
  module.attr("__version__") = RETICLE_VERSION;
  reticle::bindings::add_errors(module);
  reticle::bindings::add_mask(module);
  reticle::bindings::add_attention(module);
  reticle::bindings::add_masker(module);
  reticle::bindings::add_nsa(module);
  reticle::bindings::add_quantised(module);
  reticle::bindings::add_cuda(module);
  reticle::bindings::pickle_by_protocol_2(module);
  reticle::bindings::refuse_objects_without_values(module);
  reticle::bindings::refuse_bare_objects();
  reticle::bindings::raise_warnings();
}
