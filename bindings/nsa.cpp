// Native Sparse Attention: the module's forward and backward pass, its caches, and its operations.
#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <pybind11/stl.h>
#include <string>
#include <vector>

#include <reticle/attention/nsa/native_sparse_attention.hpp>

#include "call.hpp"
#include "fields.hpp"
#include "module.hpp"

namespace reticle::bindings {
namespace {

using Offsets = std::vector<Index>;

NsaConfig config_from(const std::string& compress_type, Index kernel_size, Index kernel_stride, Index block_size,
                      Index topk, Index init_blocks, Index local_blocks, Index window_size) {
  const NsaConfig config{enum_from<Compression>(compress_type, "compress_type"),
                         kernel_size,
                         kernel_stride,
                         block_size,
                         topk,
                         init_blocks,
                         local_blocks,
                         window_size};
  config.validate();
  return config;
}

/// Parses a Hugging Face config's rope_scaling. Missing values and unknown types are errors, never guessed.
RopeScaling scaling_from(const py::dict& given, const std::string& type) {
  const bool llama3 = type == "llama3";
  RopeScaling scaling;
  scaling.type = llama3 ? RopeScaling::Type::llama3 : RopeScaling::Type::linear;
  const auto number = [&](const char* key) {
    if (!given.contains(key))
      throw py::value_error("rope_scaling of type \"" + type + "\" has no \"" + key + "\"; expected a number");
    const py::object value = given[key];
    if (!(py::isinstance<py::float_>(value) || py::isinstance<py::int_>(value)) || py::isinstance<py::bool_>(value))
      throw py::value_error("rope_scaling: " + std::string(key) + " is " + std::string(py::repr(value)) +
                            "; expected a number");
    return value.cast<double>();
  };
  scaling.factor = number("factor");
  if (!llama3) return scaling;
  scaling.low_freq_factor = number("low_freq_factor");
  scaling.high_freq_factor = number("high_freq_factor");
  const double length = number("original_max_position_embeddings");
  if (!(length >= 1 && length <= 1e15 && length == std::floor(length)))
    throw py::value_error("rope_scaling: original_max_position_embeddings is " +
                          std::string(py::repr(given["original_max_position_embeddings"])) +
                          "; expected a whole number of positions");
  scaling.original_max_position_embeddings = static_cast<Index>(length);
  return scaling;
}

Rope rope_from(Index head_dim, double theta, const py::object& scaling) {
  if (scaling.is_none()) return {head_dim, theta, std::nullopt};
  if (!py::isinstance<py::dict>(scaling) || !(scaling.contains("rope_type") || scaling.contains("type")))
    throw py::value_error("rope_scaling is " + std::string(py::repr(scaling)) +
                          "; expected a dict with \"rope_type\", or None");
  const auto given = py::reinterpret_borrow<py::dict>(scaling);
  const py::str type = given[given.contains("rope_type") ? "rope_type" : "type"];
  const std::string name = type;
  if (name != "llama3" && name != "linear" && name != "default")
    throw py::value_error("rope_scaling has type \"" + name + "\"; known are llama3, linear and default");
  constexpr const char* kKnown[] = {
      "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
  for (const auto& [key, value] : given) {
    const std::string word = py::str(key);
    if (std::find(std::begin(kKnown), std::end(kKnown), word) == std::end(kKnown))
      throw py::value_error("rope_scaling has \"" + word +
                            "\", which is not understood; expected rope_type, factor, low_freq_factor, "
                            "high_freq_factor and original_max_position_embeddings");
  }
  if (name == "default") return {head_dim, theta, std::nullopt};
  return {head_dim, theta, scaling_from(given, name)};
}

/// Keys, values and compressed keys of a batch of sequences.
struct NsaState {
  NsaState() = default;
  NsaState(NsaState&&) = default;
  NsaState(const NsaState&) = delete;  // explicit: pybind11 takes vectors of move-only types for copyable
  NsaState& operator=(const NsaState&) = delete;

  std::vector<KvCache> caches;
  std::vector<NsaCache> compressed;
  Index sequences() const { return static_cast<Index>(caches.size()); }
};

/// The NSA module over a caller's parameters, which it keeps alive.
class Module {
 public:
  Module(const NsaConfig& config, Index hidden_size, Index heads, Index kv_heads, const Rope& rope,
         const py::dict& parameters)
      : shape_{config, hidden_size, heads, kv_heads, 2 * static_cast<Index>(rope.inverse_frequencies().size())} {
    std::map<std::string, TensorView, std::less<>> views;
    for (const auto& [name, tensor] : parameters) {
      const auto key = name.cast<std::string>();
      views[key] = parameters_.emplace_back(tensor, key).view();
    }
    const Weights weights = Weights::from_views("parameters", std::move(views));
    WeightReader reader(weights);
    const NsaWeights module_weights = read_nsa_weights(reader, "", shape_);
    reader.finish();
    module_.emplace(shape_, rope, module_weights);
  }

  py::tuple forward(const py::object& x, const Offsets& cu_seqlens) const {
    const Borrowed input(x, "x");
    auto tape = std::make_unique<NsaTape>(
        run_released([&](const Context& context) { return module_->forward(input.view(), cu_seqlens, context); }));
    py::object output = input.hand_over(Tensor::copy(tape->output.view(), DType::f32));
    return py::make_tuple(std::move(output), std::move(tape));
  }

  py::tuple backward(const NsaTape& tape, const py::object& dy) const {
    const Borrowed upstream(dy, "dy");
    NsaGradients gradients =
        run_released([&](const Context& context) { return module_->backward(tape, upstream.view(), context); });
    py::dict weights;
    for (auto& [name, gradient] : gradients.weights) weights[py::str(name)] = upstream.hand_over(std::move(gradient));
    return py::make_tuple(upstream.hand_over(std::move(gradients.x)), std::move(weights));
  }

  NsaState start(Index sequences, Index capacity) const {
    NsaState state;
    for (Index i = 0; i < sequences; ++i) {
      state.caches.emplace_back(
          KvCacheShape{1, shape_.kv_heads, shape_.head_dim, shape_.head_dim, capacity, DType::f32});
      state.compressed.emplace_back(shape_.config, shape_.kv_heads, shape_.head_dim);
    }
    return state;
  }

  py::object extend(const py::object& x, const Offsets& cu_seqlens, NsaState& state) const {
    const Borrowed input(x, "x");
    require_offsets(cu_seqlens, input.view().rank > 0 ? input.view().size(0) : 0, "cu_seqlens");
    if (static_cast<Index>(cu_seqlens.size()) != state.sequences() + 1)
      throw ShapeError("cu_seqlens: has " + std::to_string(cu_seqlens.size()) + " entries; expected " +
                       std::to_string(state.sequences() + 1) + ", for the sequences of the state");
    std::vector<NsaSequence> sequences;
    std::vector<Index> before;
    for (std::size_t i = 0; i < state.caches.size(); ++i) {
      before.push_back(state.caches[i].length());
      sequences.push_back({&state.caches[i], 0, &state.compressed[i]});
    }
    try {
      return input.hand_over(run_released([&](const Context& context) {
        for (std::size_t i = 0; i < state.caches.size(); ++i) {
          const std::vector<std::int32_t> unnamed(static_cast<std::size_t>(cu_seqlens[i + 1] - cu_seqlens[i]), 0);
          state.caches[i].extend(unnamed);
        }
        return module_->extend(input.view(), cu_seqlens, sequences, context);
      }));
    } catch (...) {
      for (std::size_t i = 0; i < state.caches.size(); ++i) state.caches[i].truncate(before[i]);
      throw;
    }
  }

 private:
  NsaShape shape_;
  std::vector<Borrowed> parameters_;
  std::optional<NativeSparseAttention> module_;
};

CompressionWeights weights_from(const std::optional<Borrowed>& weight, const std::optional<Borrowed>& pe) {
  CompressionWeights weights;
  if (weight) weights.weight = weight->view();
  if (pe) weights.position_embedding = pe->view();
  return weights;
}

std::optional<Borrowed> borrow_optional(const py::object& object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return Borrowed(object, name);
}

void add_operations(py::module_& module) {
  module.def(
      "nsa_compress",
      [](const py::object& x, const Offsets& cu_seqlens, const py::object& weight, const py::object& pe,
         const NsaConfig& config) {
        const Borrowed input(x, "x");
        const auto given_weight = borrow_optional(weight, "weight"), given_pe = borrow_optional(pe, "pe");
        Packed packed = run_released([&](const Context& context) {
          return compress(input.view(), cu_seqlens, weights_from(given_weight, given_pe), config, context);
        });
        return py::make_tuple(input.hand_over(std::move(packed.data)), std::move(packed.cu_seqlens));
      },
      py::arg("x"), py::arg("cu_seqlens"), py::arg("weight"), py::arg("pe"), py::arg("config"));
  module.def(
      "nsa_compress_backward",
      [](const py::object& x, const Offsets& cu_seqlens, const py::object& weight, const py::object& pe,
         const NsaConfig& config, const py::object& dy) {
        const Borrowed input(x, "x"), upstream(dy, "dy");
        const auto given_weight = borrow_optional(weight, "weight"), given_pe = borrow_optional(pe, "pe");
        CompressionGradients gradients = run_released([&](const Context& context) {
          return compress_backward(input.view(), cu_seqlens, weights_from(given_weight, given_pe), config,
                                   upstream.view(), context);
        });
        const auto given = [&](std::optional<Tensor>& gradient) -> py::object {
          return gradient ? input.hand_over(std::move(*gradient)) : py::none();
        };
        return py::make_tuple(input.hand_over(std::move(gradients.x)), given(gradients.weight),
                              given(gradients.position_embedding));
      },
      py::arg("x"), py::arg("cu_seqlens"), py::arg("weight"), py::arg("pe"), py::arg("config"), py::arg("dy"));
  module.def(
      "nsa_compressed_attention",
      [](const py::object& queries, const py::object& keys, const py::object& values, Index first_query,
         std::optional<float> scaling, const NsaConfig& config) {
        const Borrowed q(queries, "queries"), k(keys, "keys"), v(values, "values");
        require_rank(q.view(), 3, "queries");
        const float factor = scaling.value_or(1 / std::sqrt(static_cast<float>(std::max<Index>(1, q.view().size(2)))));
        CompressedAttention result = run_released([&](const Context& context) {
          return compressed_attention(q.view(), k.view(), v.view(), first_query, factor, config, context);
        });
        const py::ssize_t extents[] = {result.blocks.kv_heads, result.blocks.queries, result.blocks.width};
        py::object blocks = to_numpy(std::move(result.blocks.indices), {extents[0], extents[1], extents[2]});
        return py::make_tuple(q.hand_over(std::move(result.output)), q.hand_over(std::move(result.lse)), blocks);
      },
      py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("first_query"), py::arg("scaling"),
      py::arg("config"), "(output, lse, blocks) of one sequence; blocks (kv_heads, n, width) int32, -1 on the right.");
}

}  // namespace

void add_nsa(py::module_& module) {
  const NsaConfig defaults;
  py::class_<NsaConfig> config(module, "NsaConfig", "How much the three branches of Native Sparse Attention see.");
  config
      .def(py::init(&config_from), py::kw_only(), py::arg("compress_type") = "weightedpool",
           py::arg("kernel_size") = defaults.kernel_size, py::arg("kernel_stride") = defaults.kernel_stride,
           py::arg("block_size") = defaults.block_size, py::arg("topk") = defaults.topk,
           py::arg("init_blocks") = defaults.init_blocks, py::arg("local_blocks") = defaults.local_blocks,
           py::arg("window_size") = defaults.window_size)
      .def(py::pickle(
          [](const NsaConfig& c) {
            return py::make_tuple(name_of_enumerator(c.compress_type), c.kernel_size, c.kernel_stride, c.block_size,
                                  c.topk, c.init_blocks, c.local_blocks, c.window_size);
          },
          [](const py::tuple& given) {
            if (given.size() != 8) throw FormatError("pickled NsaConfig: expected 8 fields");
            const auto number = [&](std::size_t i) { return given[i].cast<Index>(); };
            return config_from(given[0].cast<std::string>(), number(1), number(2), number(3), number(4), number(5),
                               number(6), number(7));
          }))
      .def("compressed_length", &NsaConfig::compressed_length, py::arg("tokens"),
           "Compressed keys of a sequence of so many tokens.");
  for (const Field& field : type_of<NsaConfig>()->fields()) {
    config.def_property_readonly(
        std::string(field.name).c_str(), [&field](NsaConfig& self) { return to_python(*field.type, field.in(&self)); },
        std::string(field.doc).c_str());
  }
  py::class_<Rope>(module, "Rope", "Rotary position embeddings.")
      .def(py::init(&rope_from), py::arg("head_dim"), py::arg("theta"), py::arg("scaling") = py::none())
      .def(py::pickle(
          [](const Rope& rope) {
            return py::make_tuple(
                std::vector<float>(rope.inverse_frequencies().begin(), rope.inverse_frequencies().end()));
          },
          [](const py::tuple& given) {
            if (given.size() != 1) throw FormatError("pickled Rope: expected its frequencies");
            return Rope(given[0].cast<std::vector<float>>());
          }))
      .def_property_readonly("inverse_frequencies", [](const Rope& rope) {
        return std::vector<float>(rope.inverse_frequencies().begin(), rope.inverse_frequencies().end());
      });
  py::class_<NsaTape>(module, "NsaTape", "What a forward pass leaves for the backward one.");
  py::class_<NsaState>(module, "NsaState", "What decoding keeps of a batch of sequences.")
      .def_property_readonly("lengths", [](const NsaState& state) {
        Offsets lengths;
        for (const KvCache& cache : state.caches) lengths.push_back(cache.length());
        return lengths;
      });
  py::class_<Module>(module, "NsaModule", "Native Sparse Attention over a caller's parameters.")
      .def(py::init<const NsaConfig&, Index, Index, Index, const Rope&, const py::dict&>(), py::arg("config"),
           py::arg("hidden_size"), py::arg("heads"), py::arg("kv_heads"), py::arg("rope"), py::arg("parameters"))
      .def("forward", &Module::forward, py::arg("x"), py::arg("cu_seqlens"), "(output, tape)")
      .def("backward", &Module::backward, py::arg("tape"), py::arg("dy"), "(dx, {parameter: gradient})")
      .def("start", &Module::start, py::arg("sequences"), py::arg("capacity"),
           "An empty NsaState for so many sequences of at most `capacity` tokens.")
      .def("extend", &Module::extend, py::arg("x"), py::arg("cu_seqlens"), py::arg("state"),
           "The output of the next tokens of each sequence, whose state goes on.");
  add_operations(module);
}

}  // namespace reticle::bindings
