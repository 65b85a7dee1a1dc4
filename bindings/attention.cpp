#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/output_file.hpp>
#include <reticle/core/masker_docs.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "call.hpp"
#include "fields.hpp"
#include "module.hpp"
#include "pattern.hpp"

namespace reticle::bindings {
namespace {

/// Sink logits, one per query head, from any array of numbers.
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

/// The options view the logits, which must outlive them.
AttentionOptions options_from(std::optional<float> soft_cap, const SinkLogits& sink_logits) {
  AttentionOptions options;
  options.soft_cap = soft_cap;
  options.sink_logits = sink_logits.values;
  return options;
}

/// Returns the output of an operation without gradients. If an input is a torch tensor that requires gradients, a
/// backward pass through the output raises an error that says so.
py::object without_gradients(py::object output, const char* what, std::span<const py::object> inputs) {
  const auto asks = [](const py::object& tensor) {
    return py::hasattr(tensor, "detach") && tensor.attr("requires_grad").cast<bool>();
  };
  if (!py::hasattr(output, "detach") || std::none_of(inputs.begin(), inputs.end(), asks)) return output;
  const std::string why = std::string(what) + " has no gradients; take the mask, and reticle.attention's";
  py::list asking;
  for (const py::object& tensor : inputs) asking.append(tensor);
  return py::module_::import("reticle.torch").attr("without_gradients")(std::move(output), why, *asking);
}

template <bool with_weights>
py::tuple attend(const py::object& queries, const py::object& keys, const py::object& values, const GivenMask& mask,
                 std::optional<float> scaling, bool causal, const py::object& attention_mask,
                 std::optional<float> soft_cap, const SinkLogits& sink_logits) {
  Call call(queries, keys, values, attention_mask, scaling, causal);
  AttentionOptions options = options_from(soft_cap, sink_logits);
  options.weights = with_weights;
  call.inputs.validate();
  if (call.on_gpu()) {
    const Result result(call);
    run_released([&](const Context& context) {
      with_mask(mask, call.inputs.shape(), [&](const auto& how) {
        attention_into(call.inputs, how, result.output(), result.lse(), options, call.on_stream(context));
      });
      return 0;
    });
    return result.take();
  }
  AttentionResult result = run_released([&](const Context& context) {
    return with_mask(mask, call.inputs.shape(),
                     [&](const auto& how) { return attention(call.inputs, how, options, context); });
  });
  py::object output = call.queries.hand_over(std::move(result.output));
  py::object lse = call.queries.hand_over(std::move(result.lse));
  if constexpr (with_weights)
    output =
        without_gradients(std::move(output), "attention_weights", std::array{queries, keys, values, attention_mask});
  if constexpr (!with_weights) return py::make_tuple(std::move(output), std::move(lse));
  AttentionWeights& weights = *result.weights;
  const auto entries = static_cast<py::ssize_t>(weights.values.size());
  return py::make_tuple(
      std::move(output), std::move(lse),
      py::make_tuple(copied(weights.row_ptr), copied(weights.indices), to_numpy(std::move(weights.values), {entries})));
}

/// Sums a gradient over the batch, for an input of one sequence that was broadcast over the batch.
Tensor summed_over_batch(const Tensor& gradient) {
  const TensorView& view = gradient.view();
  Tensor sum(DType::f32, {1, view.size(1), view.size(2), view.size(3)});
  const std::span<const float> from = gradient.span<float>();
  const std::span<float> to = sum.span<float>();
  std::fill(to.begin(), to.end(), 0.0f);
  for (std::size_t i = 0; i < from.size(); ++i) to[i % to.size()] += from[i];
  return sum;
}

/// attend_backward on a GPU; the gradients are torch tensors.
py::tuple attend_backward_on_gpu(const Call& call, const Pattern& pattern, const Borrowed& output, const Borrowed& lse,
                                 const Borrowed& d_output, const AttentionOptions& options) {
  const AttentionInputs& inputs = call.inputs;
  py::object gradients[3];
  float* to[3];
  std::size_t i = 0;
  for (const TensorView* const view : {&inputs.queries, &inputs.keys, &inputs.values}) {
    gradients[i] = call.queries.empty_like({view->size(0), view->size(1), view->size(2), view->size(3)}, DType::f32);
    to[i] = static_cast<float*>(const_cast<void*>(Borrowed(gradients[i], "gradient", Device::Kind::cuda).view().data));
    ++i;
  }
  run_released([&](const Context& context) {
    attention_backward_into(inputs, pattern, output.view(), lse.view(), d_output.view(), to[0], to[1], to[2], options,
                            call.on_stream(context));
    return 0;
  });
  i = 0;
  for (const Borrowed* const given : {&call.queries, &call.keys, &call.values}) {
    if (given->view().size(0) == 1 && inputs.batch() != 1) gradients[i] = gradients[i].attr("sum")(0, true);
    ++i;
  }
  return py::make_tuple(gradients[0], gradients[1], gradients[2]);
}

py::tuple attend_backward(const py::object& queries, const py::object& keys, const py::object& values,
                          const std::variant<Mask, HeldPattern>& mask, const py::object& output, const py::object& lse,
                          const py::object& d_output, std::optional<float> scaling, bool causal,
                          const py::object& attention_mask, std::optional<float> soft_cap) {
  Call call(queries, keys, values, attention_mask, scaling, causal);
  call.inputs.validate();
  const Device::Kind where = call.inputs.queries.device.kind;
  const Borrowed result(output, "output", where), logs(lse, "lse", where), upstream(d_output, "d_output", where);
  AttentionOptions options;
  options.soft_cap = soft_cap;
  const auto* const held = std::get_if<HeldPattern>(&mask);
  const Pattern pattern = held != nullptr ? held->pattern : Pattern(std::get<Mask>(mask));
  if (call.on_gpu()) return attend_backward_on_gpu(call, pattern, result, logs, upstream, options);
  AttentionGradients gradients = run_released([&](const Context& context) {
    return attention_backward(call.inputs, pattern, result.view(), logs.view(), upstream.view(), options, context);
  });
  const auto gradient_for = [&](const Borrowed& given, Tensor gradient) {
    const bool summed = given.view().size(0) == 1 && gradient.view().size(0) != 1;
    return given.hand_over(summed ? summed_over_batch(gradient) : std::move(gradient));
  };
  return py::make_tuple(call.queries.hand_over(std::move(gradients.queries)),
                        gradient_for(call.keys, std::move(gradients.keys)),
                        gradient_for(call.values, std::move(gradients.values)));
}

/// Copies of an immutable value are the value itself.
template <class T, class... Options>
void copies_are_itself(py::class_<T, Options...>& type) {
  type.def("__copy__", [](const py::object& self) { return self; });
  type.def(
      "__deepcopy__", [](const py::object& self, const py::dict&) { return self; }, py::arg("memo"));
}

/// Deep copies are forks. Pickling raises TypeError, because the maskers' state cannot be serialised.
template <class State>
void copies_are_forks(py::class_<State>& type) {
  type.def(
      "__deepcopy__", [](const State& state, const py::dict&) { return state.fork(); }, py::arg("memo"));
  type.def("__reduce__", [](const py::object& self) -> py::object {
    throw py::type_error(std::string(py::str(py::type::of(self).attr("__name__"))) +
                         ": cannot be pickled; keep the tensors and run the prompt again");
  });
}

Stage stage_from(const std::string& stage) { return enum_from<Stage>(stage, "stage"); }

/// The caller's state, or a temporary one for this call.
class StateOfCall {
 public:
  explicit StateOfCall(SequenceState* given) : state_(given == nullptr ? &own_.emplace() : given) {}
  SequenceState& get() const { return *state_; }

 private:
  std::optional<SequenceState> own_;
  SequenceState* state_;
};

/// One call at a layer and stage: its tensors and the sequence's state.
struct Step {
  Call call;
  StateOfCall state;
  std::array<py::object, 4> tensors;  // as given

  AttentionInputs& inputs() { return call.inputs; }
};

/// The remaining keys of a cache after eviction, as Python passes them: (positions, begin, end, length).
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

Mask build_mask(const SparseAttention& sparse, Step& step) {
  return run_released([&](const Context& context) {
    return sparse.mask(step.inputs(), step.state.get(), step.call.on_stream(context));
  });
}

std::vector<std::pair<std::string, Mask>> contributions(const SparseAttention& sparse, Step& step) {
  std::vector<std::pair<std::string, Mask>> found;
  for (Contribution& each : run_released(
           [&](const Context& context) { return sparse.contributions(step.inputs(), step.state.get(), context); }))
    found.emplace_back(std::move(each.type), std::move(each.mask));
  return found;
}

/// Returns (output, mask), or (output, lse).
template <bool with_mask>
py::tuple attend_by_masker(const SparseAttention& sparse, Step& step, std::optional<float> soft_cap,
                           const SinkLogits& sink_logits, const std::optional<StoredLists>& stored) {
  Call& call = step.call;
  set_stored(call.inputs, stored);
  call.inputs.validate();
  const AttentionOptions options = options_from(soft_cap, sink_logits);
  std::optional<Result> gpu_result;
  Wanted wanted{.mask = with_mask};
  if (call.on_gpu()) {
    gpu_result.emplace(call);
    wanted.output = gpu_result->output();
    wanted.lse = gpu_result->lse();
  }
  Attended attended = run_released([&](const Context& context) {
    return sparse.attend(call.inputs, step.state.get(), options, wanted, call.on_stream(context));
  });
  py::object output =
      gpu_result ? gpu_result->output_object() : call.queries.hand_over(std::move(attended.attention.output));
  output =
      without_gradients(std::move(output), with_mask ? "SparseAttention.run" : "SparseAttention.attend", step.tensors);
  if constexpr (with_mask) return py::make_tuple(std::move(output), std::move(*attended.mask));
  if (gpu_result) return py::make_tuple(std::move(output), gpu_result->lse_object());
  return py::make_tuple(std::move(output), call.queries.hand_over(std::move(attended.attention.lse)));
}

py::tuple measure(const SparseAttention& sparse, Step& step, std::optional<float> soft_cap,
                  const SinkLogits& sink_logits, bool compare) {
  SparseAttentionResult result = run_released([&](const Context& context) {
    return sparse.run(step.inputs(), step.state.get(), compare, options_from(soft_cap, sink_logits), context);
  });
  py::object output = step.call.queries.hand_over(std::move(result.attention.output));
  output = without_gradients(std::move(output), "SparseAttention.measure", step.tensors);
  py::dict metrics = to_python(result.metrics);
  const py::object comparison = metrics.attr("pop")("comparison");
  if (!comparison.is_none()) metrics.attr("update")(comparison);
  return py::make_tuple(std::move(output), std::move(result.mask), metrics);
}

Mask lasting(const SparseAttention& sparse, Step& step, Index first, const std::optional<StoredLists>& stored) {
  set_stored(step.inputs(), stored);
  return run_released(
      [&](const Context& context) { return sparse.lasting(step.inputs(), first, step.state.get(), context); });
}

/// Defines a method of SparseAttention that calls body(sparse, step, more...); `more` are keyword arguments.
template <class Returned, class... More, class... Arguments>
void define_step(py::class_<SparseAttention>& type, const char* name,
                 Returned (*body)(const SparseAttention&, Step&, More...), const char* doc, const Arguments&... more) {
  type.def(
      name,
      [body](const SparseAttention& sparse, const py::object& queries, const py::object& keys, const py::object& values,
             SequenceState* state, std::optional<float> scaling, bool causal, const py::object& attention_mask,
             int layer, const std::string& stage, const py::object& extras, More... given) {
        Step step{.call{queries, keys, values, attention_mask, scaling, causal, extras},
                  .state = StateOfCall(state),
                  .tensors = {queries, keys, values, attention_mask}};
        step.call.inputs.stage = stage_from(stage);
        step.call.inputs.layer = layer;
        return body(sparse, step, std::forward<More>(given)...);
      },
      py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("state") = py::none(), py::kw_only(),
      py::arg("scaling") = py::none(), py::arg("causal") = false, py::arg("attention_mask") = py::none(),
      py::arg("layer") = 0, py::arg("stage") = "prefill", py::arg("extras") = py::none(), more..., doc);
}

void add_records(py::module_& module) {
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
          "(layer, mask) of each call, if masks are recorded.");
  const auto recording_from = [](const std::string& name) { return enum_from<Recording>(name, "record"); };
  py::class_<SequenceState> state(
      module, "SequenceState",
      "What the maskers of every layer keep for one sequence (or batch), and, if asked for, a record of what its calls "
      "attended to.");
  copies_are_forks(state);
  state
      .def(py::init([recording_from](const std::string& record) { return SequenceState(recording_from(record)); }),
           py::kw_only(), py::arg("record") = "none")
      .def_property(
          "record", [](const SequenceState& self) { return name_of_enumerator(self.recording()); },
          [recording_from](SequenceState& self, const std::string& record) { self.record(recording_from(record)); },
          "\"none\", \"figures\" or \"masks\": what is recorded of the calls from now on.")
      .def_property_readonly(
          "prefill", [](SequenceState& self) -> StageRecord& { return self.recorded(Stage::prefill); },
          "The record of the prefill stage: what prompts attended to.")
      .def_property_readonly(
          "generation", [](SequenceState& self) -> StageRecord& { return self.recorded(Stage::generation); },
          "The record of the generation stage.")
      .def("reset", &SequenceState::reset, "Forgets everything: the next call starts a new sequence.")
      .def("truncate", &SequenceState::truncate, py::arg("keys"),
           "As if keys from position `keys` on had never been seen: the cache was cropped. ValueError, naming the "
           "masker, where what it keeps cannot follow.")
      .def(
          "select", [](SequenceState& self, const std::vector<Index>& rows) { self.select(rows); }, py::arg("rows"),
          "Sequence i of the batch becomes what sequence rows[i] was: beams were reordered, repeated or dropped.")
      .def("fork", &SequenceState::fork, "A copy with an empty record: the sequences go on in two ways.");
}

/// Files: bytes and tensors.
void add_files(py::module_& module) {
  module.def(
      "read_file",
      [](const std::filesystem::path& path) {
        const auto bytes = read_file<FormatError>(existing(path));
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
  module.def(
      "load_tensors",
      [](const std::filesystem::path& path) {
        const SafeTensors file{existing(path)};
        py::dict tensors;
        for (const auto& [name, view] : file.tensors()) {
          const bool narrow = view.dtype == DType::f16 || view.dtype == DType::bf16;
          tensors[py::str(name)] = to_python(Tensor::copy(view, narrow ? DType::f32 : view.dtype), /*as_torch=*/false);
        }
        return tensors;
      },
      py::arg("path"), "The tensors of a safetensors file by name; F16 and BF16 as float32.");
}

/// Other forms of masks, and plans.
void add_forms(py::module_& module) {
  py::class_<HeldPattern>(module, "Pattern", "What attention takes for a mask beside a Mask, planned where it lies.")
      .def_static(
          "of_bytes",
          [](const py::object& attended, std::pair<Index, Index> block_size) {
            auto tensor = std::make_shared<const Borrowed>(attended, "mask", Borrowed::device_of(attended));
            return HeldPattern{tensor, AttendedBytes{tensor->view(), block_size.first, block_size.second}};
          },
          py::arg("attended"), py::arg("block_size") = std::pair<Index, Index>(1, 1),
          "Of booleans (batch, heads, queries, keys), or of blocks of positions; a dimension of 1 is shared.")
      .def_static(
          "of_numbers",
          [](const py::object& numbers, Index block_size) {
            auto tensor = std::make_shared<const Borrowed>(numbers, "numbers", Borrowed::device_of(numbers));
            return HeldPattern{tensor, NumberedKeyBlocks{tensor->view(), block_size}};
          },
          py::arg("numbers"), py::arg("block_size"),
          "Of the int32 numbers of key blocks, (batch, kv_heads, queries, n), ascending, -1 behind them; causal.")
      .def_static(
          "of_band",
          [](Index first_query, Index kernel, Index stride, Index width) {
            return HeldPattern{nullptr, Band{first_query, kernel, stride, width}};
          },
          py::arg("first_query"), py::arg("kernel"), py::arg("stride"), py::arg("width"),
          "Of keys that end where a query does.")
      .def(
          "mask",
          [](const HeldPattern& held, const std::array<Index, 4>& shape, Index kv_heads) {
            AttentionInputs inputs;
            inputs.queries = TensorView(nullptr, DType::f32, {shape[0], shape[1], shape[2], 1});
            inputs.keys = inputs.values = TensorView(nullptr, DType::f32, {shape[0], kv_heads, shape[3], 1});
            inputs.validate();
            Context context;
            context.stream = held.tensor ? held.tensor->stream() : nullptr;
            const py::gil_scoped_release released;
            return mask_of(held.pattern, inputs, context);
          },
          py::arg("shape"), py::arg("kv_heads") = 1, "The same as a Mask. Waits for what lies on a GPU.");
  py::class_<AttentionPlan>(module, "AttentionPlan",
                            "How attention over a mask is computed, kept for several calls with equal shapes.")
      .def("__repr__", &AttentionPlan::describe);
  module.def(
      "plan",
      [](const py::object& queries, const py::object& keys, const std::variant<Mask, HeldPattern>& mask,
         const py::object& values, bool causal, const py::object& attention_mask) {
        const Call call(queries, keys, values.is_none() ? keys : values, attention_mask, std::nullopt, causal);
        call.inputs.validate();
        const auto* const held = std::get_if<HeldPattern>(&mask);
        return run_released([&](const Context& context) {
          return AttentionPlan(call.inputs, held != nullptr ? held->pattern : Pattern(std::get<Mask>(mask)),
                               call.on_stream(context));
        });
      },
      py::arg("queries"), py::arg("keys"), py::arg("mask"), py::kw_only(), py::arg("values") = py::none(),
      py::arg("causal") = false, py::arg("attention_mask") = py::none(),
      "A plan for attention over a mask, where the tensors lie, which `reticle.attention` takes for one; of the "
      "tensors "
      "only the extents count. On a GPU it is for calls with an attention_mask if one is given here, and values of "
      "other "
      "extents than the keys' are given.");
}

/// Attention over a mask, and what belongs to it.
void add_calls(py::module_& module) {
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

/// The pipeline, and what its maskers choose by.
void add_pipeline(py::module_& module) {
  py::class_<Rule>(module, "Rule", "What a masker chooses, said as data.")
      .def_property_readonly(
          "kind", [](const Rule& rule) { return name_of_enumerator(rule.kind); },
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
            return SparseAttention::from_file(existing(path), plugins ? Plugins::load : Plugins::refuse);
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
      .def_static("by_stage", &SparseAttention::by_stage, py::arg("prefill"), py::arg("generation"),
                  "The prefill stage of one pipeline and the generation stage of another. ConfigError when they differ "
                  "in seed or merge rule; causal when either is.")
      .def("require_forgetful", &SparseAttention::require_forgetful,
           "ValueError, naming the generation's maskers that may come back to any key, where there are some.");
  const auto soft_cap = py::arg("soft_cap") = py::none();
  const auto sink_logits = py::arg("sink_logits") = SinkLogits();
  const auto stored = py::arg("stored") = py::none();
  define_step(sparse, "mask", &build_mask, "The mask alone.");
  define_step(
      sparse, "contributions", &contributions,
      "[(type, mask)]: who chose which key. Disjoint masks, one per masker in order, of the entries that it was "
      "the first to choose (\"dense\": of heads that no masker serves); their union is what `mask` gives. One "
      "step of `state`, in place of `mask`. `reticle.plot_contributions` draws them.");
  define_step(sparse, "run", &attend_by_masker<true>,
              "(output, mask). On a GPU the mask lies there if the keys were chosen there.", soft_cap, sink_logits,
              stored);
  define_step(
      sparse, "attend", &attend_by_masker<false>,
      "(output, lse) of attention over what the maskers choose. On a GPU nothing waits where the keys are "
      "chosen there. `stored`, of a cache that evicted keys: (positions, begin, end, length), the int32 position "
      "of each row of keys in its sequence, the rows [begin, end) of each (batch, KV head), and the keys of the "
      "sequence, evicted ones included.",
      soft_cap, sink_logits, stored);
  define_step(sparse, "measure", &measure,
              "(output, mask, metrics): what was kept and what it cost, and with compare, how far the output is from "
              "dense attention, which is run as well.",
              soft_cap, sink_logits, py::arg("compare") = true);
  define_step(
      sparse, "lasting", &lasting,
      "(batch, heads, 1, keys): of the keys so far, those that generation may attend to from position `first` "
      "on; a cache may evict the others. `stored` as for attend. ValueError that names the maskers that may come "
      "back to any key.",
      py::arg("first"), stored);
}

/// What is registered.
void add_maskers(py::module_& module) {
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
}

}  // namespace

void add_attention(py::module_& module) {
  add_files(module);
  module.def("set_num_threads", &set_threads, py::arg("threads"),
             "How many threads later calls use; 0: RETICLE_NUM_THREADS or the process's cores.");
  module.def(
      "get_num_threads", [] { return Context().pool->threads(); }, "How many threads calls use.");
  add_forms(module);
  add_calls(module);
  add_records(module);
  add_pipeline(module);
  add_maskers(module);
}

}  // namespace reticle::bindings
