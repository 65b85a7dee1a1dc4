// Maskers written in Python: reticle.register adds a class to the registry like any other masker. Its config is a
// record whose fields are known at run time only.
#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/registry.hpp>

#include "call.hpp"
#include "fields.hpp"
#include "module.hpp"

namespace reticle::bindings {
namespace {

/// A Python object that can be released on any thread, with or without the GIL.
class Held {
 public:
  explicit Held(py::object object) : object_(std::move(object)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (Py_IsInitialized() == 0) {
      object_.release();  // the interpreter is finalised and has freed the object
      return;
    }
    const py::gil_scoped_acquire held;
    object_ = py::object();
  }
  const py::object& get() const { return object_; }

 private:
  py::object object_;
};

// --- configs --------------------------------------------------------------------------------------------------------

/// The values of a Python masker's fields, each of the C++ type that its FieldType describes.
using Record = std::vector<std::shared_ptr<void>>;

/// The storage of one field, as in C++ configs.
struct Storage {
  FieldType type;
  std::shared_ptr<void> (*make)();
};

template <class T>
Storage storage_of() {
  return {*type_of<T>(), []() -> std::shared_ptr<void> { return std::make_shared<T>(); }};
}

template <class T>
Storage storage_of(const std::string& container) {
  if (container.empty()) return storage_of<T>();
  if (container == "optional") return storage_of<std::optional<T>>();
  if (container == "list") return storage_of<std::vector<T>>();
  if (container == "optional list") return storage_of<std::optional<std::vector<T>>>();
  throw py::value_error("fields of kind \"" + container + "\" are not known");
}

/// The storage for a kind and container, which Python code derives from the annotation. Choices are stored as indices.
Storage storage_from(const std::string& kind, const std::string& container, const std::vector<std::string>& choices) {
  if (kind == "boolean") return container == "optional" ? storage_of<std::optional<bool>>() : storage_of<bool>();
  if (kind == "integer") return storage_of<Index>(container);
  if (kind == "real") return storage_of<double>(container);
  if (kind == "text") return storage_of<std::string>(container);
  if (kind == "path") return storage_of<std::filesystem::path>(container);
  if (kind == "size") {
    // Size has no default constructor: C++ configs always state a default.
    Storage storage{*type_of<Size>(), []() -> std::shared_ptr<void> { return std::make_shared<Size>(0); }};
    return storage;
  }
  Storage storage = storage_of<Index>();
  auto* const names = new std::vector<std::string>(choices);  // leaked: lives as long as the registry
  auto* const views = new std::vector<std::string_view>(names->begin(), names->end());
  storage.type.kind = FieldType::Kind::choice;
  storage.type.choices = *views;
  return storage;
}

/// The registration data of a Python masker; leaked, because it lives as long as the registry, which is never
/// destroyed.
struct PythonType {
  py::object cls;
  std::vector<std::string> texts;  // the strings that docs and fields view
  std::vector<Storage> storages;
  std::vector<py::object> defaults;
  std::vector<Field> fields;
  FieldType config_type;
  bool as_torch;

  /// An instance of the class with the record's values; needs the GIL.
  py::object instance(const Record& record) const {
    py::dict arguments;
    for (std::size_t i = 0; i < fields.size(); ++i)
      arguments[py::str(std::string(fields[i].name))] = to_python(*fields[i].type, record[i].get());
    return cls(**arguments);
  }

  /// Turns a ValueError from the class's constructor into InvalidField, to which the config reader adds the position in
  /// the JSON. The first word of the message is taken as the field: "name must be ...".
  void validate(const Record& record) const {
    const py::gil_scoped_acquire held;
    try {
      instance(record);
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_ValueError)) throw;
      const std::string message = py::str(error.value());
      const std::size_t space = std::min(message.find(' '), message.size());
      throw InvalidField(message.substr(0, space), message.substr(std::min(space + 1, message.size())));
    }
  }
};

// --- selection ------------------------------------------------------------------------------------------------------

/// AttentionInputs as passed to maskers in Python.
struct PythonInputs {
  py::object queries, keys, values, attention_mask;
  py::dict extras;
  float scaling;
  bool causal;
  int layer;
  std::string stage;
  std::uint64_t seed;
  std::array<Index, 4> shape;
  Index kv_heads;

  PythonInputs(const AttentionInputs& inputs, const Context& context, bool as_torch)
      : attention_mask(py::none()),
        scaling(inputs.scaling),
        causal(inputs.causal),
        layer(inputs.layer),
        stage(name_of_enumerator(inputs.stage)),
        seed(derive_seed(context.seed, static_cast<std::uint64_t>(inputs.layer))),
        shape{inputs.batch(), inputs.heads(), inputs.queries_length(), inputs.keys_length()},
        kv_heads(inputs.kv_heads()) {
    const auto tensor = [&](const TensorView& view) {
      if (is_quantised(view.dtype)) return to_python(Tensor::copy(view, DType::f32), as_torch);
      const py::object owner = Call::owner_of(view);
      return owner.is_none() ? to_python(Tensor::copy(view, view.dtype), as_torch) : to_python(view, owner, as_torch);
    };
    queries = tensor(inputs.queries);
    keys = tensor(inputs.keys);
    values = tensor(inputs.values);
    if (inputs.attention_mask) attention_mask = tensor(*inputs.attention_mask);
    for (const NamedTensor& extra : inputs.extras) extras[py::str(extra.name)] = tensor(extra.tensor);
  }
};

/// A Python masker's state for one layer of one sequence: a dict.
struct PythonState {
  std::shared_ptr<Held> values, masker;

  PythonState() = default;
  PythonState(const PythonState& other) : masker(other.masker) {
    if (!other.values) return;
    const py::gil_scoped_acquire held;
    values = std::make_shared<Held>(py::module_::import("copy").attr("deepcopy")(other.values->get()));
  }
  PythonState& operator=(const PythonState&) = delete;
  ~PythonState() = default;

  py::object dict(const py::object& instance) {
    if (!values) {
      values = std::make_shared<Held>(py::dict());
      masker = std::make_shared<Held>(instance);
    }
    return values->get();
  }
  void truncate(Index keys) const { follow("truncate", py::int_(keys)); }
  void select(std::span<const Index> rows) const {
    follow("select_rows", py::cast(std::vector<Index>(rows.begin(), rows.end())));
  }

 private:
  /// Calls the masker's method to update its state; an empty state needs no update.
  void follow(const char* method, const py::object& how) const {
    const py::gil_scoped_acquire held;
    if (!values || py::len(values->get()) == 0) return;
    if (!py::hasattr(masker->get(), method))
      throw CannotFollow(std::string("its class has no ") + method + "(state, ...)");
    masker->get().attr(method)(values->get(), how);
  }
};

class PythonMasker final : public Masker {
 public:
  PythonMasker(const PythonType& type, py::object instance) : type_(type), instance_(std::move(instance)) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
              const Context& context) const override {
    const py::gil_scoped_acquire held;
    const py::object selected = instance_.get().attr("select")(PythonInputs(inputs, context, type_.as_torch), previous,
                                                               state.get<PythonState>(*this).dict(instance_.get()));
    if (!py::isinstance<Mask>(selected))
      throw py::type_error(std::string(py::str(type_.cls.attr("__name__"))) + ".select returned a " +
                           std::string(py::str(py::type::of(selected).attr("__name__"))) + "; expected a reticle.Mask");
    return selected.cast<Mask>();
  }

  void observe(const AttentionInputs& prefill, LayerState& state, const Context& context) const override {
    const py::gil_scoped_acquire held;
    instance_.get().attr("observe")(PythonInputs(prefill, context, type_.as_torch),
                                    state.get<PythonState>(*this).dict(instance_.get()));
  }

  Index observed_queries() const override {
    const py::gil_scoped_acquire held;
    const py::object base = py::module_::import("reticle").attr("Masker");
    return type_.cls.attr("observe").is(base.attr("observe")) ? 0 : std::numeric_limits<Index>::max();
  }

 private:
  const PythonType& type_;
  Held instance_;
};

/// `fields` are tuples (name, doc, kind, container, choices, default); a field without a default is required. `docs`
/// are summary, source, rule and cost.
void register_masker(const std::string& name, const py::object& cls, const py::list& fields,
                     const std::array<std::string, 4>& docs, bool as_torch) {
  auto type = std::make_unique<PythonType>();
  type->cls = cls;
  type->as_torch = as_torch;
  type->texts.assign(docs.begin(), docs.end());
  for (const py::handle entry : fields) {
    const auto field = entry.cast<py::tuple>();
    type->texts.push_back(field[0].cast<std::string>());
    type->texts.push_back(field[1].cast<std::string>());
    type->storages.push_back(storage_from(field[2].cast<std::string>(), field[3].cast<std::string>(),
                                          field[4].cast<std::vector<std::string>>()));
    type->defaults.push_back(field.size() > 5 ? py::object(field[5]) : py::object());
  }
  for (std::size_t i = 0; i < type->storages.size(); ++i) {
    const bool required = !type->defaults[i];
    type->fields.push_back({type->texts[4 + 2 * i], type->texts[5 + 2 * i], required, &type->storages[i].type,
                            [i](void* config) { return (*static_cast<Record*>(config))[i].get(); }});
  }
  const PythonType* const self = type.get();
  type->config_type.kind = FieldType::Kind::object;
  type->config_type.fields = [self] { return std::span<const Field>(self->fields); };
  type->config_type.validate = [self](const void* config) { self->validate(*static_cast<const Record*>(config)); };

  MaskerFactory factory;
  factory.config_type = &type->config_type;
  factory.default_config = [self]() -> std::shared_ptr<void> {
    const py::gil_scoped_acquire held;
    auto record = std::make_shared<Record>();
    for (std::size_t i = 0; i < self->storages.size(); ++i) {
      record->push_back(self->storages[i].make());
      if (self->defaults[i]) store(self->storages[i].type, record->back().get(), self->defaults[i]);
    }
    return record;
  };
  factory.make = [self](const void* config) -> std::unique_ptr<Masker> {
    const py::gil_scoped_acquire held;
    return std::make_unique<PythonMasker>(*self, self->instance(*static_cast<const Record*>(config)));
  };
  factory.default_config();  // throws now if a default does not fit its annotation
  const std::vector<std::string>& texts = type->texts;
  Registry::global().add_or_replace(
      {name, {texts[0], texts[1], texts[2], texts[3], {}}, "written in Python", std::move(factory)});
  type.release();  // NOLINT(bugprone-unused-return-value): the registry refers to it for good
}

}  // namespace

void add_masker(py::module_& module) {
  py::class_<PythonInputs>(module, "AttentionInputs",
                           "What a masker written in Python selects by. Tensors are read-only views, without copies.")
      .def_readonly("queries", &PythonInputs::queries, "(batch, heads, queries, head_dim)")
      .def_readonly("keys", &PythonInputs::keys, "(batch, kv_heads, keys, head_dim)")
      .def_readonly("values", &PythonInputs::values, "(batch, kv_heads, keys, value_dim)")
      .def_readonly("attention_mask", &PythonInputs::attention_mask,
                    "Added to the scores, broadcastable to shape; or None.")
      .def_readonly("extras", &PythonInputs::extras, "Further tensors by name.")
      .def_readonly("scaling", &PythonInputs::scaling, "Of queries . keys.")
      .def_readonly("causal", &PythonInputs::causal,
                    "Keys after a query's own position are forbidden; the pipeline removes them.")
      .def_readonly("layer", &PythonInputs::layer, "Which of the model's layers this is, from 0.")
      .def_readonly("stage", &PythonInputs::stage, "\"prefill\" or \"generation\".")
      .def_readonly("seed", &PythonInputs::seed, "For random choices: of the config, the masker and the layer.")
      .def_property_readonly(
          "shape", [](const PythonInputs& inputs) { return std::tuple_cat(inputs.shape); },
          "The mask's: (batch, heads, queries, keys).")
      .def_readonly("kv_heads", &PythonInputs::kv_heads, "Query head h reads KV head h // (heads // kv_heads).")
      .def(
          "position", [](const PythonInputs& inputs, Index query) { return inputs.shape[3] - inputs.shape[2] + query; },
          py::arg("query"), "Where a query stands among the keys: the last one at the last key.");
  module.def("register_masker", &register_masker, py::arg("name"), py::arg("cls"), py::arg("fields"), py::arg("docs"),
             py::arg("as_torch"), "What reticle.register calls.");
}

}  // namespace reticle::bindings
