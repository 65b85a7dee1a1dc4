// Attention over a mask on a GPU, for tensors that are there.
#include <cmath>
#include <pybind11/stl.h>

#include <reticle/attention/cuda/attention.hpp>

#include "module.hpp"
#include "tensor.hpp"

namespace reticle::bindings {
namespace {

/// Tensors in device memory, and the inputs that view them.
struct DeviceCall {
  Borrowed queries, keys, values;
  AttentionInputs inputs;

  DeviceCall(const py::object& q, const py::object& k, const py::object& v, float scaling, bool causal)
      : queries(q, "queries", Device::Kind::cuda),
        keys(k, "keys", Device::Kind::cuda),
        values(v, "values", Device::Kind::cuda) {
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    inputs.scaling = scaling;
    inputs.causal = causal;
  }
};

cuda::Stream stream_from(std::uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

}  // namespace

void add_cuda(py::module_& module) {
  module.def("cuda_device_count", &cuda::device_count, "GPUs that there are; 0 in a build without CUDA.");
  module.def("why_cuda_is_unavailable", [] { return std::string(cuda::why_unavailable()); });
  py::class_<cuda::AttentionPlan>(module, "CudaAttentionPlan", "A mask in device memory, laid out for a kernel.")
      .def(py::init([](const py::object& queries, const py::object& keys, const py::object& values, const Mask& mask,
                       float scaling, bool causal, std::optional<float> soft_cap, const std::vector<float>& sink_logits,
                       std::uintptr_t stream) {
             if (cuda::device_count() == 0) throw DeviceError(std::string("CUDA: ") + cuda::why_unavailable());
             const DeviceCall call(queries, keys, values, scaling, causal);
             AttentionOptions options;
             options.soft_cap = soft_cap;
             options.sink_logits = sink_logits;
             const py::gil_scoped_release released;
             return cuda::AttentionPlan(call.inputs, mask, stream_from(stream), options);
           }),
           py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("mask"), py::kw_only(), py::arg("scaling"),
           py::arg("causal") = false, py::arg("soft_cap") = py::none(), py::arg("sink_logits") = std::vector<float>(),
           py::arg("stream") = 0)
      .def(
          "run",
          [](const cuda::AttentionPlan& plan, const py::object& queries, const py::object& keys,
             const py::object& values, const py::object& output, const py::object& lse, float scaling, bool causal,
             std::uintptr_t stream) {
            const DeviceCall call(queries, keys, values, scaling, causal);
            const Borrowed to(output, "output", Device::Kind::cuda), logs(lse, "lse", Device::Kind::cuda);
            const TensorView &out = to.view(), &log = logs.view();
            const Index elements = call.inputs.queries.elements();
            if (!out.contiguous() || !log.contiguous() || out.elements() != elements ||
                out.dtype != call.inputs.queries.dtype || log.dtype != DType::f32 ||
                log.elements() * call.inputs.head_dim() != elements)
              throw ShapeError("output " + out.describe() + " and lse " + log.describe() + " do not fit queries " +
                               call.inputs.queries.describe());
            const py::gil_scoped_release released;
            plan.run(call.inputs, const_cast<void*>(out.data), static_cast<float*>(const_cast<void*>(log.data)),
                     stream_from(stream));
          },
          py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("output"), py::arg("lse"), py::kw_only(),
          py::arg("scaling"), py::arg("causal") = false, py::arg("stream") = 0,
          "Fills output and lse, on the stream; waits for nothing.")
      .def_property_readonly("uses_tiles", &cuda::AttentionPlan::uses_tiles)
      .def_property_readonly("nbytes", &cuda::AttentionPlan::bytes);
}

}  // namespace reticle::bindings
