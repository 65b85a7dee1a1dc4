#include <algorithm>
#include <filesystem>
#include <optional>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/inference_handler.hpp>
#include <reticle/attention/objective.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/output_file.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "call.hpp"
#include "module.hpp"

namespace reticle::bindings {
namespace {

/// One logit to a query head, of any array.
struct SinkLogits {
  std::vector<float> values;
};

}  // namespace
}  // namespace reticle::bindings

template <>
struct pybind11::detail::type_caster<reticle::bindings::SinkLogits> {
  PYBIND11_TYPE_CASTER(reticle::bindings::SinkLogits, const_name("Sequence[float]"));

  bool load(handle given, bool) {
    const auto array = reticle::bindings::floats_of(given, "sink_logits");
    if (array.ndim() != 1)
      throw reticle::ShapeError("sink_logits: has " + std::to_string(array.ndim()) + " dimensions; expected (heads)");
    value.values.assign(array.data(), array.data() + array.size());
    return true;
  }
  static handle cast(const reticle::bindings::SinkLogits& logits, return_value_policy, handle) {
    list values;
    for (const float logit : logits.values) values.append(logit);
    return values.release();
  }
};

namespace reticle::bindings {
namespace {

using py::literals::operator""_a;

/// The options view the logits.
AttentionOptions options_from(std::optional<float> soft_cap, const SinkLogits& sink_logits) {
  AttentionOptions options;
  options.soft_cap = soft_cap;
  options.sink_logits = sink_logits.values;
  return options;
}

template <bool with_weights>
py::tuple attend(const py::object& queries, const py::object& keys, const py::object& values, std::optional<Mask> mask,
                 std::optional<float> scaling, bool causal, const py::object& attention_mask,
                 std::optional<float> soft_cap, const SinkLogits& sink_logits) {
  Call call(queries, keys, values, attention_mask, scaling, causal);
  AttentionOptions options = options_from(soft_cap, sink_logits);
  options.weights = with_weights;
  AttentionResult result = run_released([&](const Context& context) {
    call.inputs.validate();
    return attention(call.inputs, mask ? *mask : Mask::full(call.inputs.shape()), options, context);
  });
  py::object output = call.queries.hand_over(std::move(result.output));
  py::object lse = call.queries.hand_over(std::move(result.lse));
  if constexpr (!with_weights) return py::make_tuple(std::move(output), std::move(lse));
  AttentionWeights& weights = *result.weights;
  const auto entries = static_cast<py::ssize_t>(weights.values.size());
  return py::make_tuple(
      std::move(output), std::move(lse),
      py::make_tuple(copied(weights.row_ptr), copied(weights.indices), to_numpy(std::move(weights.values), {entries})));
}

/// The gradient by a tensor of one sequence that served a batch.
Tensor summed_over_batch(const Tensor& gradient) {
  const TensorView& view = gradient.view();
  Tensor sum(DType::f32, {1, view.size(1), view.size(2), view.size(3)});
  const std::span<const float> from = gradient.span<float>();
  const std::span<float> to = sum.span<float>();
  std::fill(to.begin(), to.end(), 0.0f);
  for (std::size_t i = 0; i < from.size(); ++i) to[i % to.size()] += from[i];
  return sum;
}

py::tuple attend_backward(const py::object& queries, const py::object& keys, const py::object& values, const Mask& mask,
                          const py::object& output, const py::object& lse, const py::object& d_output,
                          std::optional<float> scaling, bool causal, const py::object& attention_mask,
                          std::optional<float> soft_cap) {
  Call call(queries, keys, values, attention_mask, scaling, causal);
  const Borrowed result(output, "output"), logs(lse, "lse"), upstream(d_output, "d_output");
  AttentionOptions options;
  options.soft_cap = soft_cap;
  AttentionGradients gradients = run_released([&](const Context& context) {
    return attention_backward(call.inputs, mask, result.view(), logs.view(), upstream.view(), options, context);
  });
  const auto of_given = [&](const Borrowed& given, Tensor gradient) {
    const bool summed = given.view().size(0) == 1 && gradient.view().size(0) != 1;
    return given.hand_over(summed ? summed_over_batch(gradient) : std::move(gradient));
  };
  return py::make_tuple(call.queries.hand_over(std::move(gradients.queries)),
                        of_given(call.keys, std::move(gradients.keys)),
                        of_given(call.values, std::move(gradients.values)));
}

/// Whether a caller's tensor lies on a GPU: torch's say so.
bool on_gpu(const py::object& tensor) { return py::hasattr(tensor, "is_cuda") && tensor.attr("is_cuda").cast<bool>(); }

/// What a pipeline does with tensors on a GPU is Python's: maskers on the host, attention over there.
py::object on_gpu(const char* function, const py::object& pipeline, const py::object& queries, const py::object& keys,
                  const py::object& values, const py::object& state, const py::dict& call) {
  return py::module_::import("reticle.gpu").attr(function)(pipeline, queries, keys, values, state, **call);
}

/// Forgets everything that is kept for a sequence, what reticle.gpu keeps included.
template <class State>
void reset(const py::object& state) {
  state.cast<State&>().reset();
  state.attr("__dict__").attr("clear")();
}

/// What reticle.gpu keeps is made again from the keys.
template <class State>
void truncate(const py::object& state, Index keys) {
  state.cast<State&>().truncate(keys);
  state.attr("__dict__").attr("clear")();
}

template <class State>
void select_rows_of(const py::object& state, const std::vector<Index>& rows) {
  state.cast<State&>().select(rows);
  state.attr("__dict__").attr("clear")();
}

/// A value that nothing changes is its own copy.
template <class T, class... Options>
void copies_are_itself(py::class_<T, Options...>& type) {
  type.def("__copy__", [](const py::object& self) { return self; });
  type.def(
      "__deepcopy__", [](const py::object& self, const py::dict&) { return self; }, py::arg("memo"));
}

/// deepcopy forks; what maskers keep has no form outside of this process.
template <class State>
void copies_are_forks(py::class_<State>& type) {
  type.def(
      "__deepcopy__", [](const State& state, const py::dict&) { return state.fork(); }, py::arg("memo"));
  type.def("__reduce__", [](const py::object& self) -> py::object {
    throw py::type_error("a " + std::string(py::str(py::type::of(self).attr("__name__"))) +
                         " cannot be pickled; keep the tensors and run the prompt again");
  });
}

constexpr const char* kTruncate =
    "As if keys from position `keys` on had never been seen: the cache was cropped. ValueError, naming the masker, "
    "where "
    "what it keeps cannot follow.";
constexpr const char* kSelect =
    "Sequence i of the batch becomes what sequence rows[i] was: beams were reordered, repeated or dropped.";
constexpr const char* kFork = "A copy: the sequences go on in two ways.";

Stage stage_from(const std::string& stage) {
  if (stage == "prefill") return Stage::prefill;
  if (stage == "generation") return Stage::generation;
  throw py::value_error("stage is \"" + stage + "\"; expected \"prefill\" or \"generation\"");
}

py::object build_mask(const py::object& pipeline, const py::object& queries, const py::object& keys,
                      const py::object& values, const py::object& of_sequence, std::optional<float> scaling,
                      bool causal, const py::object& attention_mask, int layer, const std::string& stage,
                      const py::object& extras) {
  if (on_gpu(queries))
    return on_gpu("mask", pipeline, queries, keys, values, of_sequence,
                  py::dict("scaling"_a = scaling, "causal"_a = causal, "attention_mask"_a = attention_mask,
                           "layer"_a = layer, "stage"_a = stage, "extras"_a = extras));
  const auto& sparse = pipeline.cast<const SparseAttention&>();
  auto& state = of_sequence.cast<SequenceState&>();
  Call call(queries, keys, values, attention_mask, scaling, causal, extras);
  call.inputs.stage = stage_from(stage);
  call.inputs.layer = layer;
  return py::cast(run_released([&](const Context& context) { return sparse.mask(call.inputs, state, context); }));
}

std::vector<std::pair<std::string, Mask>> contributions(const SparseAttention& sparse, const py::object& queries,
                                                        const py::object& keys, const py::object& values,
                                                        SequenceState& state, std::optional<float> scaling, bool causal,
                                                        const py::object& attention_mask, int layer,
                                                        const std::string& stage, const py::object& extras) {
  Call call(queries, keys, values, attention_mask, scaling, causal, extras);
  call.inputs.stage = stage_from(stage);
  call.inputs.layer = layer;
  std::vector<std::pair<std::string, Mask>> found;
  for (Contribution& each :
       run_released([&](const Context& context) { return sparse.contributions(call.inputs, state, context); }))
    found.emplace_back(std::move(each.type), std::move(each.mask));
  return found;
}

py::dict dict_of(const Metrics& metrics) {
  py::dict dict;
  dict["density"] = metrics.density;
  dict["visible_density"] = metrics.visible_density;
  dict["head_density"] = metrics.head_density;
  dict["entries"] = metrics.entries;
  dict["mask_bytes"] = metrics.mask_bytes;
  dict["mask_seconds"] = metrics.mask_seconds;
  dict["attention_seconds"] = metrics.attention_seconds;
  py::list maskers;
  for (const MaskerMetrics& masker : metrics.maskers) {
    py::dict entry;
    entry["type"] = masker.type;
    entry["added"] = masker.added;
    entry["seconds"] = masker.seconds;
    maskers.append(entry);
  }
  dict["maskers"] = maskers;
  if (!metrics.comparison) return dict;
  const Comparison& comparison = *metrics.comparison;
  dict["relative_error"] = comparison.relative_error;
  dict["head_relative_error"] = comparison.head_relative_error;
  dict["mean_mass"] = comparison.mean_mass;
  dict["least_mass"] = comparison.least_mass;
  dict["head_mean_mass"] = comparison.head_mean_mass;
  dict["dense_seconds"] = comparison.dense_seconds;
  return dict;
}

/// (output, mask), or (output, mask, metrics).
py::tuple run_pipeline(bool measured, bool compare, const SparseAttention& sparse, const py::object& queries,
                       const py::object& keys, const py::object& values, SequenceState& state,
                       std::optional<float> scaling, bool causal, const py::object& attention_mask, int layer,
                       const std::string& stage, const py::object& extras, std::optional<float> soft_cap,
                       const SinkLogits& sink_logits) {
  Call call(queries, keys, values, attention_mask, scaling, causal, extras);
  call.inputs.stage = stage_from(stage);
  call.inputs.layer = layer;
  SparseAttentionResult result = run_released([&](const Context& context) {
    return sparse.run(call.inputs, state, compare, options_from(soft_cap, sink_logits), context);
  });
  py::object output = call.queries.hand_over(std::move(result.attention.output));
  if (!measured) return py::make_tuple(std::move(output), std::move(result.mask));
  return py::make_tuple(std::move(output), std::move(result.mask), dict_of(result.metrics));
}

py::tuple run(const py::object& sparse, const py::object& queries, const py::object& keys, const py::object& values,
              const py::object& state, std::optional<float> scaling, bool causal, const py::object& attention_mask,
              int layer, const std::string& stage, const py::object& extras, std::optional<float> soft_cap,
              const SinkLogits& sink_logits) {
  if (on_gpu(queries))
    return on_gpu(
        "run", sparse, queries, keys, values, state,
        py::dict("scaling"_a = scaling, "causal"_a = causal, "attention_mask"_a = attention_mask, "layer"_a = layer,
                 "stage"_a = stage, "extras"_a = extras, "soft_cap"_a = soft_cap, "sink_logits"_a = sink_logits));
  return run_pipeline(false, false, sparse.cast<const SparseAttention&>(), queries, keys, values,
                      state.cast<SequenceState&>(), scaling, causal, attention_mask, layer, stage, extras, soft_cap,
                      sink_logits);
}

py::tuple measure(const SparseAttention& sparse, const py::object& queries, const py::object& keys,
                  const py::object& values, SequenceState& state, bool compare, std::optional<float> scaling,
                  bool causal, const py::object& attention_mask, int layer, const std::string& stage,
                  const py::object& extras, std::optional<float> soft_cap, const SinkLogits& sink_logits) {
  return run_pipeline(true, compare, sparse, queries, keys, values, state, scaling, causal, attention_mask, layer,
                      stage, extras, soft_cap, sink_logits);
}

/// Keys of a cache that evicted others, as Python gives them: (positions, begin, end, length).
using StoredLists = std::tuple<py::array_t<std::int32_t, py::array::c_style>, py::array_t<Index, py::array::c_style>,
                               py::array_t<Index, py::array::c_style>, Index>;

template <class T>
std::span<const T> span_of(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

void set_stored(AttentionInputs& inputs, const std::optional<StoredLists>& stored) {
  if (!stored) return;
  const auto& [positions, begin, end, length] = *stored;
  inputs.stored = StoredKeys{span_of(positions), span_of(begin), span_of(end), length};
}

py::tuple handle(const py::object& handler, const py::object& queries, const py::object& keys, const py::object& values,
                 const py::object& state, std::optional<float> scaling, const py::object& attention_mask, int layer,
                 const std::string& stage, std::optional<float> soft_cap, const SinkLogits& sink_logits,
                 const py::object& extras, const std::optional<StoredLists>& stored) {
  if (stored && on_gpu(queries))
    throw DeviceError("stored keys: caches that evict are supported on the CPU; the queries are on a GPU");
  if (on_gpu(queries))
    return on_gpu(
        "attend", handler, queries, keys, values, state,
        py::dict("scaling"_a = scaling, "attention_mask"_a = attention_mask, "layer"_a = layer, "stage"_a = stage,
                 "soft_cap"_a = soft_cap, "sink_logits"_a = sink_logits, "extras"_a = extras));
  Call call(queries, keys, values, attention_mask, scaling, true, extras);
  call.inputs.stage = stage_from(stage);
  call.inputs.layer = layer;
  set_stored(call.inputs, stored);
  auto& own = state.cast<InferenceState&>();
  AttentionResult result =
      run_released([&, &handler = handler.cast<const InferenceHandler&>()](const Context& context) {
        return handler.attend(call.inputs, own, options_from(soft_cap, sink_logits), context);
      });
  return py::make_tuple(call.queries.hand_over(std::move(result.output)),
                        call.queries.hand_over(std::move(result.lse)));
}

Mask choose(const InferenceHandler& handler, const py::object& queries, const py::object& keys,
            const py::object& values, InferenceState& state, std::optional<float> scaling,
            const py::object& attention_mask, int layer, const std::string& stage, const py::object& extras) {
  Call call(queries, keys, values, attention_mask, scaling, true, extras);
  call.inputs.stage = stage_from(stage);
  call.inputs.layer = layer;
  return run_released([&](const Context& context) { return handler.mask(call.inputs, state, context); });
}

Mask lasting(const InferenceHandler& handler, const py::object& queries, const py::object& keys,
             const py::object& values, InferenceState& state, Index first, int layer,
             const std::optional<StoredLists>& stored) {
  Call call(queries, keys, values, py::none(), std::nullopt, true);
  call.inputs.layer = layer;
  call.inputs.stage = Stage::generation;
  set_stored(call.inputs, stored);
  return run_released([&](const Context& context) { return handler.lasting(call.inputs, first, state, context); });
}

void add_handler(py::module_& module) {
  py::class_<StageRecord>(module, "StageRecord", "What one stage of one sequence attended to, call by call.")
      .def_readonly("sparsity", &StageRecord::sparsity, "1 - entries / positions that causality leaves, of each call.")
      .def("add", &StageRecord::add, py::arg("entries"), py::arg("visible"),
           "Adds a call that attended to `entries` of `visible` positions.")
      .def_readonly("entries", &StageRecord::entries, "Positions attended to, of all calls.")
      .def_readonly("visible", &StageRecord::visible, "Positions that causality leaves, of all calls.")
      .def_property_readonly("mean_sparsity", &StageRecord::mean_sparsity,
                             "nano-sparse-attention's figure: the mean over the calls; 0 without calls.")
      .def_property_readonly("density", &StageRecord::density,
                             "Entries over causal positions of all calls together; 1 without calls.")
      .def_property_readonly(
          "masks",
          [](const StageRecord& record) {
            py::list masks;
            for (const StageRecord::SavedMask& saved : record.masks)
              masks.append(py::make_tuple(saved.layer, saved.mask));
            return masks;
          },
          "(layer, mask) of each call, where the handler keeps them.");
  py::class_<InferenceState> state(module, "InferenceState",
                                   "One sequence's (or batch's) way through a handler, over all layers.",
                                   py::dynamic_attr());
  copies_are_forks(state);
  state.def(py::init<>())
      .def_readonly("prefill", &InferenceState::prefill, "What prompts attended to.")
      .def_readonly("generation", &InferenceState::generation, "What was generated after them attended to.")
      .def("reset", &reset<InferenceState>, "Forgets everything: the next call starts a new sequence.")
      .def("truncate", &truncate<InferenceState>, py::arg("keys"), kTruncate)
      .def("select", &select_rows_of<InferenceState>, py::arg("rows"), kSelect)
      .def("fork", &InferenceState::fork, kFork);
  py::class_<InferenceHandler> handler(
      module, "InferenceHandler",
      "One sparse pattern for the prompt, another for what is generated after it. Immutable.");
  copies_are_itself(handler);
  handler
      .def(py::pickle(
          [](const InferenceHandler& self) { return py::make_tuple(self.sparse().to_json(), self.keeps_masks()); },
          [](const py::tuple& given) {
            if (given.size() != 2) throw FormatError("pickled handler: expected (config, keep_masks)");
            InferenceHandler made(SparseAttention::from_json(given[0].cast<std::string>()));
            made.keep_masks(given[1].cast<bool>());
            return made;
          }))
      .def(py::init([](const SparseAttention& prefill, const SparseAttention& generation, bool keep_masks) {
             InferenceHandler handler(prefill, generation);
             handler.keep_masks(keep_masks);
             return handler;
           }),
           py::arg("prefill"), py::arg("generation"), py::kw_only(), py::arg("keep_masks") = false)
      .def(
          "require_forgetful", [](const InferenceHandler& handler) { handler.sparse().require_forgetful(); },
          "ValueError, naming the generation's maskers that may come back to any key, where there are some.")
      .def_property_readonly("sparse", &InferenceHandler::sparse, "Both stages' pipelines.")
      .def_property_readonly("keeps_masks", &InferenceHandler::keeps_masks, "Whether records keep every call's mask.")
      .def("attend", &handle, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
           py::arg("scaling") = py::none(), py::arg("attention_mask") = py::none(), py::arg("layer") = 0,
           py::arg("stage") = "prefill", py::arg("soft_cap") = py::none(), py::arg("sink_logits") = SinkLogits(),
           py::arg("extras") = py::none(), py::arg("stored") = py::none(),
           "(output, lse) of causal attention over the keys that the stage's pipeline chooses. `stored`, of a cache "
           "that "
           "evicted keys: (positions, begin, end, length), the int32 position of each row of keys in its sequence, the "
           "rows [begin, end) of each (batch, KV head), and the keys of the sequence, evicted ones included.")
      .def("lasting", &lasting, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
           py::arg("first"), py::arg("layer") = 0, py::arg("stored") = py::none(),
           "(batch, heads, 1, keys): of the keys so far, those that generation may attend to from position `first` on; "
           "a "
           "cache may evict the others. ValueError that names the maskers that may come back to any key.")
      .def("mask", &choose, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
           py::arg("scaling") = py::none(), py::arg("attention_mask") = py::none(), py::arg("layer") = 0,
           py::arg("stage") = "prefill", py::arg("extras") = py::none(),
           "The keys that the stage's pipeline chooses, recorded: for attention that is computed elsewhere.");
}

}  // namespace

void add_attention(py::module_& module) {
  module.def(
      "read_file",
      [](const std::filesystem::path& path) {
        const auto bytes = read_file<FormatError>(path);
        return py::bytes(bytes);
      },
      py::arg("path"),
      "The bytes of a file; FormatError for a directory, a pipe that nobody writes to, an endless device.");
  module.def(
      "write_file",
      [](const std::filesystem::path& path, const py::bytes& data) {
        const std::string_view bytes = data;
        const py::gil_scoped_release released;
        write_file(path, bytes);
      },
      py::arg("path"), py::arg("data"),
      "A file that is there whole or as it was: written beside it, brought to the disk and put in its place. Links are "
      "followed, modes kept; what is not a regular file is written to in place.");
  module.def("set_num_threads", &set_threads, py::arg("threads"),
             "How many threads later calls use; 0: RETICLE_NUM_THREADS or the process's cores.");
  module.def(
      "get_num_threads", [] { return Context().pool->threads(); }, "How many threads calls use.");
  const auto define_attention = [&](const char* name, auto* function, const char* doc) {
    module.def(name, function, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("mask") = py::none(),
               py::kw_only(), py::arg("scaling") = py::none(), py::arg("causal") = false,
               py::arg("attention_mask") = py::none(), py::arg("soft_cap") = py::none(),
               py::arg("sink_logits") = SinkLogits(), doc);
  };
  define_attention("attention", &attend<false>, "(output, lse)");
  define_attention("attention_weights", &attend<true>,
                   "(output, lse, (row_ptr, indices, weights)): attention, and the normalised weight of every entry.");
  module.def("attention_backward", &attend_backward, py::arg("queries"), py::arg("keys"), py::arg("values"),
             py::arg("mask"), py::arg("output"), py::arg("lse"), py::arg("d_output"), py::kw_only(),
             py::arg("scaling") = py::none(), py::arg("causal") = false, py::arg("attention_mask") = py::none(),
             py::arg("soft_cap") = py::none(),
             "Gradients (queries, keys, values), float32, of sum(output * d_output) by what attention was given.");
  py::class_<AttentionPlan>(module, "AttentionPlan",
                            "How attention over a mask is computed, kept for several calls with equal shapes.")
      .def("__repr__", &AttentionPlan::describe);
  module.def(
      "plan",
      [](const py::object& queries, const py::object& keys, const Mask& mask, bool causal) {
        const Call call(queries, keys, keys, py::none(), std::nullopt, causal);
        const py::gil_scoped_release released;
        return AttentionPlan(call.inputs, mask);
      },
      py::arg("queries"), py::arg("keys"), py::arg("mask"), py::kw_only(), py::arg("causal") = false);
  py::class_<SequenceState> state(module, "SequenceState", "What the maskers of every layer keep for one sequence.",
                                  py::dynamic_attr());
  copies_are_forks(state);
  state.def(py::init<>())
      .def("reset", &reset<SequenceState>, "Forgets everything: the next call starts a new sequence.")
      .def("truncate", &truncate<SequenceState>, py::arg("keys"), kTruncate)
      .def("select", &select_rows_of<SequenceState>, py::arg("rows"), kSelect)
      .def("fork", &SequenceState::fork, kFork);
  py::class_<Rule>(module, "Rule", "What a masker chooses, said as data.")
      .def_property_readonly(
          "kind",
          [](const Rule& rule) {
            constexpr const char* kNames[] = {"sinks",     "window", "top_k",  "top_p",    "hashed",
                                              "quantised", "pages",  "sample", "adaptive", "colliding"};
            return kNames[static_cast<std::size_t>(rule.kind)];
          },
          "\"sinks\", \"window\", \"top_k\", \"top_p\", \"hashed\", \"quantised\", \"pages\", \"sample\", "
          "\"adaptive\" or \"colliding\".")
      .def_readonly("count", &Rule::count, "Keys, of sinks, window, top_k, hashed and quantised; pages.")
      .def_readonly("dilation", &Rule::dilation, "From one key to the next, of a window.")
      .def_readonly("page_size", &Rule::page_size, "Keys, of pages.")
      .def_readonly("share", &Rule::share, "Of the mass (top_p) or of the keys not chosen yet (sample).");
  py::class_<SparseAttention> sparse(
      module, "SparseAttention",
      "A pipeline of maskers for each stage, made from a config, and attention over the mask "
      "that they build. Immutable: what maskers keep of a sequence is in its SequenceState.");
  copies_are_itself(sparse);
  sparse
      .def(py::pickle([](const SparseAttention& self) { return py::make_tuple(self.to_json()); },
                      [](const py::tuple& given) {
                        if (given.size() != 1) throw FormatError("pickled pipeline: expected (config)");
                        return SparseAttention::from_json(given[0].cast<std::string>());
                      }))
      .def_static(
          "from_json",
          [](const std::string& text, const std::filesystem::path& directory, bool plugins) {
            return SparseAttention::from_json(text, directory, plugins ? Plugins::load : Plugins::refuse);
          },
          py::arg("text"), py::arg("directory") = ".", py::kw_only(), py::arg("plugins") = true,
          "From a JSON config; relative paths in it are relative to `directory`. ConfigError says where and what. A "
          "config may name plugins, whose code runs when they are loaded: with plugins=False it is refused, as a "
          "config "
          "that somebody else sent should be.")
      .def_static(
          "from_file",
          [](const std::filesystem::path& path, bool plugins) {
            return SparseAttention::from_file(path, plugins ? Plugins::load : Plugins::refuse);
          },
          py::arg("path"), py::kw_only(), py::arg("plugins") = true,
          "From a file with a JSON config; `plugins` as in from_json.")
      .def("to_json", &SparseAttention::to_json, "The config with every default filled in.")
      .def_property_readonly(
          "observed_queries", &SparseAttention::observed_queries,
          "How many of a prompt's last queries the generation stage's maskers decide by; 0: none does.")
      .def(
          "maskers_of_whole_prompts",
          [](const SparseAttention& sparse, const std::string& stage) {
            return sparse.maskers_of_whole_prompts(stage_from(stage));
          },
          py::arg("stage") = "prefill",
          "Types of the stage's maskers that choose for a query by more than it and the keys up to its position.")
      .def(
          "rules",
          [](const SparseAttention& sparse, Index keys, const std::string& stage, int layer) {
            return sparse.rules(stage_from(stage), layer, keys);
          },
          py::arg("keys"), py::kw_only(), py::arg("stage") = "generation", py::arg("layer") = 0,
          "What the stage's maskers choose at one layer from so many keys, as rules that a GPU can follow. DeviceError "
          "names the masker for which there is none.")
      .def("mask", &build_mask, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
           py::arg("scaling") = py::none(), py::arg("causal") = false, py::arg("attention_mask") = py::none(),
           py::arg("layer") = 0, py::arg("stage") = "prefill", py::arg("extras") = py::none(), "The mask alone.")
      .def("contributions", &contributions, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"),
           py::kw_only(), py::arg("scaling") = py::none(), py::arg("causal") = false,
           py::arg("attention_mask") = py::none(), py::arg("layer") = 0, py::arg("stage") = "prefill",
           py::arg("extras") = py::none(),
           "[(type, mask)]: who chose which key. Disjoint masks, one per masker in order, of the entries that it was "
           "the "
           "first to choose (\"dense\": of heads that no masker serves); their union is what `mask` gives. One step of "
           "`state`, in place of `mask`. `reticle.plot_contributions` draws them.")
      .def("run", &run, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
           py::arg("scaling") = py::none(), py::arg("causal") = false, py::arg("attention_mask") = py::none(),
           py::arg("layer") = 0, py::arg("stage") = "prefill", py::arg("extras") = py::none(),
           py::arg("soft_cap") = py::none(), py::arg("sink_logits") = SinkLogits(), "(output, mask)")
      .def(
          "measure", &measure, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state"), py::kw_only(),
          py::arg("compare") = true, py::arg("scaling") = py::none(), py::arg("causal") = false,
          py::arg("attention_mask") = py::none(), py::arg("layer") = 0, py::arg("stage") = "prefill",
          py::arg("extras") = py::none(), py::arg("soft_cap") = py::none(), py::arg("sink_logits") = SinkLogits(),
          "(output, mask, metrics): what was kept and what it cost, and with compare, how far the output is from dense "
          "attention, which is run as well.");
  add_handler(module);
  module.def(
      "merge_states",
      [](const py::object& output_a, const py::object& lse_a, const py::object& output_b, const py::object& lse_b) {
        const Borrowed borrowed[] = {
            {output_a, "output_a"}, {lse_a, "lse_a"}, {output_b, "output_b"}, {lse_b, "lse_b"}};
        const auto copy = [](const Borrowed& from) { return Tensor::copy(from.view(), from.view().dtype); };
        AttentionResult merged = run_released([&](const Context&) {
          return merge({copy(borrowed[0]), copy(borrowed[1]), std::nullopt},
                       {copy(borrowed[2]), copy(borrowed[3]), std::nullopt});
        });
        return py::make_tuple(borrowed[0].hand_over(std::move(merged.output)),
                              borrowed[0].hand_over(std::move(merged.lse)));
      },
      py::arg("output_a"), py::arg("lse_a"), py::arg("output_b"), py::arg("lse_b"),
      "(output, lse) of the union of two disjoint sets of keys, from those of each.");
  module.def(
      "load_tensors",
      [](const std::filesystem::path& path) {
        const SafeTensors file{path};
        py::dict tensors;
        for (const auto& [name, view] : file.tensors()) {
          const bool narrow = view.dtype == DType::f16 || view.dtype == DType::bf16;
          tensors[py::str(name)] = to_python(Tensor::copy(view, narrow ? DType::f32 : view.dtype), /*as_torch=*/false);
        }
        return tensors;
      },
      py::arg("path"), "The tensors of a safetensors file by name; F16 and BF16 as float32.");
  module.def("objective_at_density", &objective_at_density, py::arg("error"), py::arg("density"), py::arg("percent"));
  module.def("balanced_objective", &balanced_objective, py::arg("error"), py::arg("density"));
  module.def(
      "masker_types",
      [] {
        std::vector<std::string> types;
        for (const MaskerType* type : Registry::global().list()) types.push_back(type->name);
        return types;
      },
      "The registered maskers, sorted.");
  module.def(
      "schema", [](const std::string& type) { return schema(type); }, py::arg("type") = "",
      "JSON Schema of a masker's config, or of a whole config.");
  module.def(
      "describe_masker", [](const std::string& type) { return describe_masker(type); }, py::arg("type"),
      "A masker's source, rule, parameters and cost, as Markdown.");
  module.def(
      "top_k",
      [](const py::array_t<float, py::array::c_style>& scores, Index k) {
        if (scores.ndim() != 1) throw ShapeError("scores: expected one row");
        const std::span<const float> row(scores.data(), static_cast<std::size_t>(scores.size()));
        std::vector<std::int32_t> selected;
        {
          const py::gil_scoped_release released;
          top_k(row, k, selected);
        }
        return py::array_t<std::int32_t>(static_cast<py::ssize_t>(selected.size()), selected.data());
      },
      py::arg("scores"), py::arg("k"), "The k columns of the highest scores, ascending.");
}

}  // namespace reticle::bindings
