// GPU functions without a counterpart on the CPU: kernels over torch's CUDA tensors.
#include <cmath>
#include <optional>
#include <pybind11/stl.h>
#include <string>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/attention/nsa/cuda/block_scores.hpp>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/cuda/top_k.hpp>

#include "call.hpp"
#include "module.hpp"

namespace reticle::bindings {
namespace {

constexpr auto kCuda = Device::Kind::cuda;

/// The tensor's device memory; ShapeError unless it is contiguous, with this number of elements of T.
template <class T>
T* memory_of(const Borrowed& tensor, Index elements, const char* name) {
  const TensorView& view = tensor.view();
  if (!view.contiguous() || view.dtype != dtype_of<T> || view.elements() != elements)
    throw ShapeError(std::string(name) + ": " + view.describe() + "; expected " + std::to_string(elements) +
                     " contiguous " + std::string(name_of(dtype_of<T>)) + " elements");
  return static_cast<T*>(const_cast<void*>(view.data));
}

py::tuple attend_lists(const cuda::KeyListAttention& attention, const py::object& queries, const py::object& keys,
                       const py::object& values, const py::object& indices, const py::object& counts,
                       const py::object& p, std::optional<float> scaling, std::optional<float> soft_cap) {
  const Call call(queries, keys, values, py::none(), scaling, /*causal=*/false);
  const AttentionInputs& inputs = call.inputs;
  inputs.validate_on(kCuda);
  const Borrowed chosen(indices, "indices", kCuda), found(counts, "counts", kCuda);
  const Index rows = inputs.batch() * inputs.heads() * inputs.queries_length(),
              width = chosen.view().rank == 4 ? chosen.view().size(3) : 0;
  cuda::KeyLists lists{memory_of<std::int32_t>(chosen, rows * width, "indices"),
                       memory_of<std::int32_t>(found, rows, "counts"), nullptr, width};
  std::optional<Borrowed> weights;
  if (!p.is_none()) lists.p = memory_of<float>(weights.emplace(p, "p", kCuda), rows * width, "p");
  AttentionOptions options;
  options.soft_cap = soft_cap;
  Result result(call);
  run_released([&](const Context& context) {
    const Context stream_context = call.on_stream(context);
    const cuda::FittedInputs fitted(inputs, stream_context.stream);
    cuda::FittedResult output = cuda::output_of(inputs, fitted, result.output(), stream_context.stream);
    attention.run(fitted.inputs(), lists, output.data(), result.lse(), stream_context.stream, options);
    output.finish();
    return 0;
  });
  return result.take();
}

}  // namespace

void add_cuda(py::module_& module) {
  module.def("cuda_device_count", &cuda::device_count, "GPUs that there are; 0 in a build without CUDA.");
  module.def(
      "why_cuda_is_unavailable", [] { return std::string(cuda::why_unavailable()); },
      "Why there is no GPU to compute on; empty where there is one.");
  py::class_<cuda::KeyListAttention>(module, "KeyListAttention", "Attention over lists of keys on a GPU.")
      .def(py::init([](Index rows) { return cuda::KeyListAttention(rows, current_stream()); }), py::arg("rows"))
      .def("attend", &attend_lists, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("indices"),
           py::arg("counts"), py::arg("p") = py::none(), py::kw_only(), py::arg("scaling") = py::none(),
           py::arg("soft_cap") = py::none(), "(output, lse), queued on torch's stream.");
  module.def(
      "cuda_block_scores_serve",
      [](const py::object& queries, const py::object& keys, const NsaConfig& config) {
        return cuda::block_scores_serve(Call(queries, keys, keys, py::none(), 1.0f, false).inputs, config);
      },
      py::arg("queries"), py::arg("compressed_keys"), py::arg("config"),
      "Whether cuda_block_scores supports these tensors and this config.");
  module.def(
      "cuda_block_scores",
      [](const py::object& queries, const py::object& keys, const py::object& lse, const py::object& scores,
         Index first_query, float scaling, const NsaConfig& config) {
        const Call call(queries, keys, keys, py::none(), scaling, /*causal=*/false);
        const Borrowed logs(lse, "lse", kCuda), to(scores, "scores", kCuda);
        const Index rows_per_head = call.inputs.batch() * call.inputs.queries_length(),
                    blocks = to.view().rank == 4 ? to.view().size(3) : 0;
        const float* const lse_data = memory_of<float>(logs, rows_per_head * call.inputs.heads(), "lse");
        float* const score_data = memory_of<float>(to, rows_per_head * call.inputs.kv_heads() * blocks, "scores");
        run_released([&](const Context& context) {
          cuda::block_scores(call.inputs, first_query, config, lse_data, blocks, score_data,
                             call.on_stream(context).stream);
          return 0;
        });
      },
      py::arg("queries"), py::arg("compressed_keys"), py::arg("lse"), py::arg("scores"), py::kw_only(),
      py::arg("first_query"), py::arg("scaling"), py::arg("config"),
      "Fills scores (b, hkv, sq, blocks), on torch's stream; waits for nothing.");
  module.def(
      "cuda_top_k",
      [](const py::object& scores, Index k, const py::object& indices, const py::object& counts) {
        const Borrowed from(scores, "scores", kCuda), to(indices, "indices", kCuda), found(counts, "counts", kCuda);
        const TensorView& view = from.view();
        if (view.rank != 2 || view.dtype != DType::f32 || !view.contiguous())
          throw ShapeError("scores: " + view.describe() + "; expected contiguous F32 (rows, n)");
        cuda::top_k(static_cast<const float*>(view.data), view.size(0), view.size(1), k,
                    memory_of<std::int32_t>(to, view.size(0) * k, "indices"),
                    memory_of<std::int32_t>(found, view.size(0), "counts"), from.stream());
      },
      py::arg("scores"), py::arg("k"), py::arg("indices"), py::arg("counts"),
      "Fills indices (rows, k), ascending in each row, and how many there are.");
}

}  // namespace reticle::bindings
