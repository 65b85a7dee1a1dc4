// A call from Python into the library: its tensors, and its interruption by SIGINT.
#pragma once

#include <optional>
#include <pybind11/pybind11.h>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/error.hpp>

#include "tensor.hpp"

namespace reticle::bindings {

/// While an instance lives on Python's main thread, SIGINT also stops the calls that run with its context. On other
/// threads it does nothing: Python raises KeyboardInterrupt on the main thread only.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  const Context& context() const { return context_; }

 private:
  Context context_;
  std::stop_source source_;
  bool installed_ = false;
};

/// Calls body(context) without the GIL. Raises KeyboardInterrupt when SIGINT stopped it.
template <class Body>
auto run_released(Body&& body) {
  const Interruptible call;
  try {
    const py::gil_scoped_release released;
    return std::forward<Body>(body)(call.context());
  } catch (const Cancelled&) {
    if (PyErr_CheckSignals() == 0) PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
}

/// A call's borrowed tensors, and the inputs that view them.
class Call {
 public:
  Call(const py::object& queries, const py::object& keys, const py::object& values, const py::object& attention_mask,
       std::optional<float> scaling, bool causal, const py::object& extras = py::none());
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool on_gpu() const { return inputs.queries.device.kind == Device::Kind::cuda; }
  /// The context with the stream of the caller's tensors.
  Context on_stream(const Context& context) const;

  /// The Python object that owns the memory of a view in this thread's innermost call; None if there is no such object,
  /// as for tensors that the library allocated.
  static py::object owner_of(const TensorView& view);

  Borrowed queries, keys, values;
  AttentionInputs inputs;

 private:
  void take_attention_mask(const py::object& given);
  void take_recent(const py::object& k, const py::object& v);

  std::optional<Borrowed> attention_mask_, recent_keys_, recent_values_;
  Tensor bias_;  // the attention mask converted to float, if it was boolean or float64
  void* stream_ = nullptr;
  std::vector<Borrowed> extras_;
  std::vector<NamedTensor> named_;
  const Call* outer_;
};

/// Torch tensors for a result on a GPU, on the device of the queries.
class Result {
 public:
  /// The call's inputs must be valid.
  explicit Result(const Call& call);
  void* output() const { return const_cast<void*>(output_.view().data); }
  float* lse() const { return static_cast<float*>(const_cast<void*>(lse_.view().data)); }
  /// Returns (output, lse).
  py::tuple take() const { return py::make_tuple(given_[0], given_[1]); }
  const py::object& output_object() const { return given_[0]; }
  const py::object& lse_object() const { return given_[1]; }

 private:
  py::object given_[2];
  Borrowed output_, lse_;
};

}  // namespace reticle::bindings
