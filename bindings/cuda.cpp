// Attention over a mask on a GPU, for tensors that are there.
#include <cmath>
#include <memory>
#include <optional>
#include <pybind11/stl.h>
#include <string>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/cuda/backward.hpp>
#include <reticle/attention/nsa/cuda/block_scores.hpp>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/top_k.hpp>

#include "module.hpp"
#include "tensor.hpp"

namespace reticle::bindings {
namespace {

/// Tensors in device memory, and the inputs that view them.
struct DeviceCall {
  Borrowed queries, keys, values;
  std::optional<Borrowed> attention_mask;
  AttentionInputs inputs;

  DeviceCall(const py::object& q, const py::object& k, const py::object& v, float scaling, bool causal,
             const py::object& bias = py::none())
      : queries(q, "queries", Device::Kind::cuda),
        keys(k, "keys", Device::Kind::cuda),
        values(v, "values", Device::Kind::cuda) {
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    if (!bias.is_none())
      inputs.attention_mask = attention_mask.emplace(bias, "attention_mask", Device::Kind::cuda).view();
    inputs.scaling = scaling;
    inputs.causal = causal;
  }
};

/// Where results go, of the extents that the inputs say.
struct DeviceResult {
  Borrowed output, lse;

  DeviceResult(const py::object& out, const py::object& log, const AttentionInputs& inputs)
      : output(out, "output", Device::Kind::cuda), lse(log, "lse", Device::Kind::cuda) {
    const Index elements = inputs.queries.elements();
    if (!output.view().contiguous() || !lse.view().contiguous() || output.view().elements() != elements ||
        output.view().dtype != inputs.queries.dtype || lse.view().dtype != DType::f32 ||
        lse.view().elements() * inputs.head_dim() != elements)
      throw ShapeError("output " + output.view().describe() + " and lse " + lse.view().describe() +
                       " do not fit queries " + inputs.queries.describe());
  }
  void* output_data() const { return const_cast<void*>(output.view().data); }
  float* lse_data() const { return static_cast<float*>(const_cast<void*>(lse.view().data)); }
};

cuda::Stream stream_from(std::uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

/// A mask in device memory, and the tensor that it lies in.
struct Pattern {
  std::shared_ptr<const Borrowed> tensor;
  cuda::DevicePattern pattern;

  static Pattern of_bytes(const py::object& attended, std::pair<Index, Index> block_size) {
    auto tensor = std::make_shared<const Borrowed>(attended, "mask", Device::Kind::cuda);
    return {tensor, cuda::AttendedBytes{tensor->view(), block_size.first, block_size.second}};
  }
  static Pattern of_numbers(const py::object& numbers, Index block_size) {
    auto tensor = std::make_shared<const Borrowed>(numbers, "numbers", Device::Kind::cuda);
    return {tensor, cuda::NumberedKeyBlocks{tensor->view(), block_size}};
  }
};

/// A plan for attention over a Mask or a pattern, or for its gradients.
template <class Plan, class GivenMask>
Plan planned(const py::object& queries, const py::object& keys, const py::object& values, const GivenMask& mask,
             float scaling, bool causal, const py::object& attention_mask, std::optional<float> soft_cap,
             const std::vector<float>& sink_logits, std::uintptr_t stream) {
  const DeviceCall call(queries, keys, values, scaling, causal, attention_mask);
  AttentionOptions options;
  options.soft_cap = soft_cap;
  options.sink_logits = sink_logits;
  const py::gil_scoped_release released;
  if constexpr (std::is_same_v<GivenMask, Pattern>) {
    return Plan(call.inputs, mask.pattern, stream_from(stream), options);
  } else {
    return Plan(call.inputs, mask, stream_from(stream), options);
  }
}
template <class Plan, class GivenMask>
void add_planned(py::class_<Plan>& of) {
  of.def(py::init(&planned<Plan, GivenMask>), py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("mask"),
         py::kw_only(), py::arg("scaling"), py::arg("causal") = false, py::arg("attention_mask") = py::none(),
         py::arg("soft_cap") = py::none(), py::arg("sink_logits") = std::vector<float>(), py::arg("stream") = 0);
}

/// Device memory for `elements` floats.
float* floats_of(const Borrowed& tensor, Index elements, const char* name) {
  const TensorView& view = tensor.view();
  if (!view.contiguous() || view.dtype != DType::f32 || view.elements() != elements)
    throw ShapeError(std::string(name) + ": " + view.describe() + "; expected " + std::to_string(elements) +
                     " contiguous F32 elements");
  return static_cast<float*>(const_cast<void*>(view.data));
}

}  // namespace

void add_cuda(py::module_& module) {
  module.def("cuda_device_count", &cuda::device_count, "GPUs that there are; 0 in a build without CUDA.");
  module.def("why_cuda_is_unavailable", [] { return std::string(cuda::why_unavailable()); });
  using cuda::DeviceMask;
  py::class_<DeviceMask>(module, "CudaMask", "A mask in device memory.")
      .def(py::init([](const Mask& mask, std::uintptr_t stream) {
             const py::gil_scoped_release released;
             return DeviceMask(mask, stream_from(stream));
           }),
           py::arg("mask"), py::kw_only(), py::arg("stream") = 0)
      .def_property_readonly("shape", [](const DeviceMask& mask) { return extents_of(mask.shape()); })
      .def_property_readonly("kind", [](const DeviceMask& mask) { return mask.is_bits() ? "bits" : "lists"; })
      .def_property_readonly("weighted", &DeviceMask::weighted)
      .def_property_readonly("nbytes", &DeviceMask::bytes)
      .def(
          "nnz", [](const DeviceMask& mask, std::uintptr_t stream) { return mask.nnz(stream_from(stream)); },
          py::kw_only(), py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>())
      .def(
          "merge",
          [](const DeviceMask& a, const DeviceMask& b, const std::string& rule, std::uintptr_t stream) {
            return merge(a, b, rule_from(rule), stream_from(stream));
          },
          py::arg("other"), py::arg("rule") = "add", py::kw_only(), py::arg("stream") = 0)
      .def(
          "intersect",
          [](const DeviceMask& a, const DeviceMask& b, std::uintptr_t stream) {
            return intersect(a, b, stream_from(stream));
          },
          py::arg("other"), py::kw_only(), py::arg("stream") = 0)
      .def(
          "subtract",
          [](const DeviceMask& a, const DeviceMask& b, std::uintptr_t stream) {
            return subtract(a, b, stream_from(stream));
          },
          py::arg("other"), py::kw_only(), py::arg("stream") = 0)
      .def(
          "to_host", [](const DeviceMask& mask, std::uintptr_t stream) { return mask.to_host(stream_from(stream)); },
          py::kw_only(), py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>(), "Waits for the stream.");
  py::class_<Pattern>(module, "CudaPattern", "A mask in device memory, as a plan is made of it there.")
      .def_static("of_bytes", &Pattern::of_bytes, py::arg("attended"),
                  py::arg("block_size") = std::pair<Index, Index>(1, 1))
      .def_static("of_numbers", &Pattern::of_numbers, py::arg("numbers"), py::arg("block_size"))
      .def_static(
          "of_band",
          [](Index first_query, Index kernel, Index stride, Index width) {
            return Pattern{nullptr, cuda::Band{first_query, kernel, stride, width}};
          },
          py::arg("first_query"), py::arg("kernel"), py::arg("stride"), py::arg("width"))
      .def_static(
          "of_mask",
          [](const DeviceMask& mask) {
            return Pattern{nullptr, mask};
          },
          py::arg("mask"));
  py::class_<cuda::AttentionPlan> plan(module, "CudaAttentionPlan", "A mask in device memory, laid out for a kernel.");
  add_planned<cuda::AttentionPlan, Mask>(plan);
  add_planned<cuda::AttentionPlan, Pattern>(plan);
  plan.def(
          "run",
          [](const cuda::AttentionPlan& plan, const py::object& queries, const py::object& keys,
             const py::object& values, const py::object& output, const py::object& lse, float scaling, bool causal,
             const py::object& attention_mask, std::uintptr_t stream) {
            const DeviceCall call(queries, keys, values, scaling, causal, attention_mask);
            const DeviceResult result(output, lse, call.inputs);
            const py::gil_scoped_release released;
            plan.run(call.inputs, result.output_data(), result.lse_data(), stream_from(stream));
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("output"), py::arg("lse"), py::kw_only(),
          py::arg("scaling"), py::arg("causal") = false, py::arg("attention_mask") = py::none(), py::arg("stream") = 0,
          "Fills output and lse, on the stream; waits for nothing.")
      .def_property_readonly("uses_tiles", &cuda::AttentionPlan::uses_tiles)
      .def_property_readonly("nbytes", &cuda::AttentionPlan::bytes);
  py::class_<cuda::BackwardPlan> backward(module, "CudaBackwardPlan", "A mask in device memory, for gradients.");
  add_planned<cuda::BackwardPlan, Mask>(backward);
  add_planned<cuda::BackwardPlan, Pattern>(backward);
  backward
      .def_static(
          "serves_patterns",
          [](const py::object& queries, const py::object& keys, const py::object& values) {
            return cuda::BackwardPlan::serves_patterns(DeviceCall(queries, keys, values, 1, false).inputs);
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"))
      .def_property_readonly("uses_tiles", &cuda::BackwardPlan::uses_tiles)
      .def(
          "run",
          [](const cuda::BackwardPlan& plan, const py::object& queries, const py::object& keys,
             const py::object& values, const py::object& output, const py::object& lse, const py::object& d_output,
             const py::object& d_queries, const py::object& d_keys, const py::object& d_values, float scaling,
             bool causal, const py::object& attention_mask, std::uintptr_t stream) {
            constexpr auto kCuda = Device::Kind::cuda;
            const DeviceCall call(queries, keys, values, scaling, causal, attention_mask);
            const Borrowed result(output, "output", kCuda), logs(lse, "lse", kCuda),
                upstream(d_output, "d_output", kCuda), of_queries(d_queries, "d_queries", kCuda),
                of_keys(d_keys, "d_keys", kCuda), of_values(d_values, "d_values", kCuda);
            const Index rows = call.inputs.batch() * call.inputs.heads() * call.inputs.queries_length();
            const float* const lse_data = floats_of(logs, rows, "lse");
            float* const query_data = floats_of(of_queries, call.inputs.queries.elements(), "d_queries");
            float* const key_data = floats_of(of_keys, call.inputs.keys.elements(), "d_keys");
            float* const value_data = floats_of(of_values, call.inputs.values.elements(), "d_values");
            const py::gil_scoped_release released;
            plan.run(call.inputs, result.view(), lse_data, upstream.view(), query_data, key_data, value_data,
                     stream_from(stream));
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("output"), py::arg("lse"),
          py::arg("d_output"), py::arg("d_queries"), py::arg("d_keys"), py::arg("d_values"), py::kw_only(),
          py::arg("scaling"), py::arg("causal") = false, py::arg("attention_mask") = py::none(), py::arg("stream") = 0,
          "Fills the gradients, float32, on the stream; waits for nothing.");
  py::class_<cuda::KeyListAttention>(module, "CudaKeyListAttention", "Attention over lists of keys on the device.")
      .def(
          py::init([](Index rows, std::uintptr_t stream) { return cuda::KeyListAttention(rows, stream_from(stream)); }),
          py::arg("rows"), py::kw_only(), py::arg("stream") = 0)
      .def(
          "run",
          [](const cuda::KeyListAttention& attention, const py::object& queries, const py::object& keys,
             const py::object& values, const py::object& indices, const py::object& counts, const py::object& p,
             const py::object& output, const py::object& lse, float scaling, std::optional<float> soft_cap,
             std::uintptr_t stream) {
            constexpr auto kCuda = Device::Kind::cuda;
            const DeviceCall call(queries, keys, values, scaling, /*causal=*/false);
            const DeviceResult result(output, lse, call.inputs);
            const Borrowed chosen(indices, "indices", kCuda), found(counts, "counts", kCuda);
            const TensorView& lists = chosen.view();
            const Index rows = call.inputs.batch() * call.inputs.heads() * call.inputs.queries_length();
            const auto holds = [](const TensorView& view, DType dtype, Index elements) {
              return view.contiguous() && view.dtype == dtype && view.elements() == elements;
            };
            if (lists.rank != 4 || !holds(lists, DType::i32, rows * lists.size(3)) ||
                !holds(found.view(), DType::i32, rows))
              throw ShapeError("indices " + lists.describe() + " and counts " + found.view().describe() +
                               " do not fit queries " + call.inputs.queries.describe() +
                               "; expected contiguous I32 (b, hq, sq, n) and (b, hq, sq)");
            cuda::KeyLists of_rows{static_cast<const std::int32_t*>(lists.data),
                                   static_cast<const std::int32_t*>(found.view().data), nullptr, lists.size(3)};
            std::optional<Borrowed> weights;
            if (!p.is_none()) of_rows.p = floats_of(weights.emplace(p, "p", kCuda), lists.elements(), "p");
            AttentionOptions options;
            options.soft_cap = soft_cap;
            const py::gil_scoped_release released;
            attention.run(call.inputs, of_rows, result.output_data(), result.lse_data(), stream_from(stream), options);
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("indices"), py::arg("counts"), py::arg("p"),
          py::arg("output"), py::arg("lse"), py::kw_only(), py::arg("scaling"), py::arg("soft_cap") = py::none(),
          py::arg("stream") = 0, "Fills output and lse, on the stream; waits for nothing.");
  py::class_<cuda::SparseDecoder>(module, "CudaSparseDecoder", "Decoding over keys that rules choose on the device.")
      .def(py::init([](Index rows, Index most_keys, std::uintptr_t stream) {
             return cuda::SparseDecoder(rows, most_keys, stream_from(stream));
           }),
           py::arg("rows"), py::arg("most_keys"), py::kw_only(), py::arg("stream") = 0)
      .def(
          "run",
          [](const cuda::SparseDecoder& decoder, const py::object& queries, const py::object& keys,
             const py::object& values, const py::object& output, const py::object& lse, const std::vector<Rule>& rules,
             const py::object& counts, float scaling, std::optional<float> soft_cap, const py::object& attention_mask,
             const std::vector<float>& sink_logits, int layer, std::uintptr_t stream) {
            DeviceCall call(queries, keys, values, scaling, /*causal=*/true, attention_mask);
            call.inputs.layer = layer;
            const DeviceResult result(output, lse, call.inputs);
            std::optional<Borrowed> wanted;
            std::int32_t* of_rows = nullptr;
            if (!counts.is_none()) {
              const TensorView& view = wanted.emplace(counts, "counts", Device::Kind::cuda).view();
              if (!view.contiguous() || view.dtype != DType::i32 ||
                  view.elements() != call.inputs.batch() * call.inputs.heads() * call.inputs.queries_length())
                throw ShapeError("counts: " + view.describe() + "; expected contiguous I32 (b, hq, sq)");
              of_rows = static_cast<std::int32_t*>(const_cast<void*>(view.data));
            }
            AttentionOptions options;
            options.soft_cap = soft_cap;
            options.sink_logits = sink_logits;
            const py::gil_scoped_release released;
            decoder.run(call.inputs, rules, result.output_data(), result.lse_data(), stream_from(stream), options,
                        of_rows);
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("output"), py::arg("lse"), py::kw_only(),
          py::arg("rules"), py::arg("counts") = py::none(), py::arg("scaling"), py::arg("soft_cap") = py::none(),
          py::arg("attention_mask") = py::none(), py::arg("sink_logits") = std::vector<float>(), py::arg("layer") = 0,
          py::arg("stream") = 0, "Fills output and lse, on the stream; waits for nothing.")
      .def("reset", &cuda::SparseDecoder::reset, "Forgets what is kept of the sequence.");
  module.def(
      "cuda_block_scores_serve",
      [](const py::object& queries, const py::object& keys, const NsaConfig& config) {
        return cuda::block_scores_serve(DeviceCall(queries, keys, keys, 1, false).inputs, config);
      },
      py::arg("queries"), py::arg("compressed_keys"), py::arg("config"));
  module.def(
      "cuda_block_scores",
      [](const py::object& queries, const py::object& keys, const py::object& lse, const py::object& scores,
         Index first_query, float scaling, const NsaConfig& config, std::uintptr_t stream) {
        constexpr auto kCuda = Device::Kind::cuda;
        const DeviceCall call(queries, keys, keys, scaling, /*causal=*/false);
        const Borrowed logs(lse, "lse", kCuda), to(scores, "scores", kCuda);
        const Index of_head = call.inputs.batch() * call.inputs.queries_length(),
                    blocks = to.view().rank == 4 ? to.view().size(3) : 0;
        const float* const lse_data = floats_of(logs, of_head * call.inputs.heads(), "lse");
        float* const score_data = floats_of(to, of_head * call.inputs.kv_heads() * blocks, "scores");
        const py::gil_scoped_release released;
        cuda::block_scores(call.inputs, first_query, config, lse_data, blocks, score_data, stream_from(stream));
      },
      py::arg("queries"), py::arg("compressed_keys"), py::arg("lse"), py::arg("scores"), py::kw_only(),
      py::arg("first_query"), py::arg("scaling"), py::arg("config"), py::arg("stream") = 0,
      "Fills scores (b, hkv, sq, blocks), on the stream; waits for nothing.");
  module.def(
      "cuda_top_k",
      [](const py::object& scores, Index k, const py::object& indices, const py::object& counts,
         std::uintptr_t stream) {
        const Borrowed from(scores, "scores", Device::Kind::cuda), to(indices, "indices", Device::Kind::cuda),
            found(counts, "counts", Device::Kind::cuda);
        const TensorView& view = from.view();
        const bool fits = view.rank == 2 && view.dtype == DType::f32 && view.contiguous() && to.view().contiguous() &&
                          to.view().dtype == DType::i32 && to.view().elements() == view.size(0) * k &&
                          found.view().contiguous() && found.view().dtype == DType::i32 &&
                          found.view().elements() == view.size(0);
        if (!fits)
          throw ShapeError("scores " + view.describe() + ", indices " + to.view().describe() + ", counts " +
                           found.view().describe() + "; expected F32 (rows, n), I32 (rows, k) and I32 (rows)");
        cuda::top_k(static_cast<const float*>(view.data), view.size(0), view.size(1), k,
                    static_cast<std::int32_t*>(const_cast<void*>(to.view().data)),
                    static_cast<std::int32_t*>(const_cast<void*>(found.view().data)), stream_from(stream));
      },
      py::arg("scores"), py::arg("k"), py::arg("indices"), py::arg("counts"), py::kw_only(), py::arg("stream") = 0,
      "Fills indices (rows, k), ascending in each row, and how many there are.");
}

}  // namespace reticle::bindings
