#include "call.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <limits>
#include <span>
#include <stop_token>
#include <vector>

#include <reticle/core/cuda/tensor.hpp>

namespace reticle::bindings {
namespace {

// The signal handler touches only these. request_stop is async-signal-safe here: without stop callbacks it is a few
// lock-free atomic operations.
std::atomic<std::stop_source*> running{nullptr};
struct sigaction python_action;

void stop_and_forward(int signal) {
  if (std::stop_source* source = running.load(); source != nullptr) source->request_stop();
  python_action.sa_handler(signal);
}

/// True if the current SIGINT handler is a plain function, as Python's is, to which the signal can be forwarded.
bool can_be_forwarded_to(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

bool on_main_thread() {
  static const auto main =
      py::cast<unsigned long>(py::module_::import("threading").attr("main_thread")().attr("ident"));
  return PyThread_get_thread_ident() == main;
}

}  // namespace

Interruptible::Interruptible() {
  if (!on_main_thread()) return;
  if (const std::stop_source* outer = running.load(); outer != nullptr) {  // a masker in Python calls the library
    context_.stop = outer->get_token();
    return;
  }
  context_.stop = source_.get_token();
  if (sigaction(SIGINT, nullptr, &python_action) != 0 || !can_be_forwarded_to(python_action)) return;
  struct sigaction ours = {};
  ours.sa_handler = &stop_and_forward;
  ours.sa_flags = SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  running.store(&source_);
  installed_ = sigaction(SIGINT, &ours, nullptr) == 0;
  if (!installed_) running.store(nullptr);
}

Interruptible::~Interruptible() {
  if (!installed_) return;
  sigaction(SIGINT, &python_action, nullptr);
  running.store(nullptr);
}

namespace {

thread_local const Call* innermost = nullptr;

/// True if the memory of `inner` is within that of `outer`.
bool contains(const TensorView& outer, const TensorView& inner) {
  const auto extent = [](const TensorView& view) {
    const auto first = reinterpret_cast<std::uintptr_t>(view.data);
    std::pair<std::uintptr_t, std::uintptr_t> range{first, first};
    for (int dim = 0; dim < view.rank; ++dim) {
      if (view.size(dim) == 0) return std::pair{first, first};
      const Index reach = (view.size(dim) - 1) * view.stride(dim) * static_cast<Index>(size_of(view.dtype));
      (reach < 0 ? range.first : range.second) += static_cast<std::uintptr_t>(reach);
    }
    range.second += size_of(view.dtype);
    return range;
  };
  const auto [begin, end] = extent(inner);
  const auto [first, last] = extent(outer);
  return first <= begin && begin < end && end <= last;
}

/// Views keys or values of one sequence as those of every sequence in a batch of queries, as in torch.
void broadcast_over(const TensorView& queries, TensorView& tensor) {
  if (tensor.rank != 4 || queries.rank != 4 || tensor.size(0) != 1 || queries.size(0) == 1) return;
  tensor.shape[0] = queries.size(0);
  tensor.strides[0] = 0;
}

}  // namespace

Call::Call(const py::object& q, const py::object& k, const py::object& v, const py::object& attention_mask,
           std::optional<float> scaling, bool causal, const py::object& extras)
    : queries(q, "queries", Borrowed::device_of(q)),
      keys(k, "keys", queries.view().device.kind),
      values(v, "values", queries.view().device.kind),
      stream_(queries.stream()),
      outer_(innermost) {
  inputs.queries = queries.view();
  inputs.keys = keys.view();
  inputs.values = values.view();
  if (is_quantised(inputs.keys.dtype) || is_quantised(inputs.values.dtype)) take_recent(k, v);
  broadcast_over(inputs.queries, inputs.keys);
  broadcast_over(inputs.queries, inputs.values);
  if (inputs.recent_keys) broadcast_over(inputs.queries, *inputs.recent_keys);
  if (inputs.recent_values) broadcast_over(inputs.queries, *inputs.recent_values);
  if (!attention_mask.is_none()) take_attention_mask(attention_mask);
  if (inputs.queries.rank == 4 && inputs.queries.size(3) > 0)
    inputs.scaling = scaling.value_or(1 / std::sqrt(static_cast<float>(inputs.queries.size(3))));
  inputs.causal = causal;
  if (!extras.is_none()) {
    if (!py::isinstance<py::dict>(extras))
      throw py::type_error("extras: a " + std::string(py::str(py::type::of(extras).attr("__name__"))) +
                           "; expected a dict of names and tensors");
    for (const auto& [key, tensor] : py::reinterpret_borrow<py::dict>(extras)) {
      if (!py::isinstance<py::str>(key))
        throw py::type_error("extras: a key is " + std::string(py::repr(key)) + "; expected the name of a tensor");
      const auto name = key.cast<std::string>();
      named_.push_back({name, extras_.emplace_back(tensor, name, queries.view().device.kind).view()});
    }
    inputs.extras = named_;
  }
  innermost = this;
}

/// The newest keys and values as they were before they were quantised. What is not quantised has them itself.
void Call::take_recent(const py::object& k, const py::object& v) {
  const auto recent_of = [](const py::object& tensor, const TensorView& view) {
    return is_quantised(view.dtype) ? tensor.attr("recent").cast<py::object>() : py::none();
  };
  const py::object recent_k = recent_of(k, inputs.keys), recent_v = recent_of(v, inputs.values);
  if (!recent_k.is_none()) inputs.recent_keys = recent_keys_.emplace(recent_k, "keys.recent").view();
  if (!recent_v.is_none()) inputs.recent_values = recent_values_.emplace(recent_v, "values.recent").view();
  const auto last = [](const TensorView& all, const std::optional<TensorView>& other) {
    const Index count = all.rank == 4 && other->rank == 4 ? std::min(all.size(2), other->size(2)) : 0;
    return all.slice(2, all.size(2) - count, all.size(2));
  };
  if (inputs.recent_keys && !is_quantised(inputs.values.dtype))
    inputs.recent_values = last(inputs.values, inputs.recent_keys);
  if (inputs.recent_values && !is_quantised(inputs.keys.dtype))
    inputs.recent_keys = last(inputs.keys, inputs.recent_values);
}

Call::~Call() { innermost = outer_; }

Context Call::on_stream(const Context& context) const {
  Context stream_context = context;
  stream_context.stream = stream_;
  return stream_context;
}

/// The attention mask broadcasts as in numpy: missing dimensions come first. A boolean mask is true where a key may be
/// attended to, as in torch's scaled_dot_product_attention.
void Call::take_attention_mask(const py::object& given) {
  TensorView view = attention_mask_.emplace(given, "attention_mask", queries.view().device.kind).view();
  if (view.rank > 4)
    throw ShapeError("attention_mask: has " + std::to_string(view.rank) + " dimensions, " + view.describe() +
                     "; expected at most 4, broadcastable to (batch, heads, queries, keys)");
  const bool is_read = view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::bf16;
  const bool is_converted = view.dtype == DType::boolean || view.dtype == DType::f64;
  if (!is_read && !is_converted)
    throw ShapeError(
        "attention_mask: " + view.describe() +
        "; expected floats, which are added to the scores, or booleans, true where a key may be attended to");
  if (is_converted && on_gpu()) {
    bias_ = cuda::as_bias(view, stream_);
    view = bias_.view();
  } else if (is_converted) {
    bias_ = Tensor(DType::f32, std::vector<Index>(view.shape.begin(), view.shape.begin() + view.rank));
    const Tensor packed = Tensor::copy(view, view.dtype);
    const std::span<float> to = bias_.span<float>();
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (view.dtype == DType::f64) {
        to[i] = static_cast<float>(static_cast<const double*>(packed.view().data)[i]);
      } else {
        const bool attended = static_cast<const std::uint8_t*>(packed.view().data)[i] != 0;
        to[i] = attended ? 0.0f : -std::numeric_limits<float>::infinity();
      }
    }
    view = bias_.view();
  }
  TensorView whole = view;
  whole.rank = 4;
  for (int dim = 3; dim >= 0; --dim) {
    const int view_dim = dim - (4 - view.rank);
    whole.shape[static_cast<std::size_t>(dim)] = view_dim < 0 ? 1 : view.size(view_dim);
    whole.strides[static_cast<std::size_t>(dim)] = view_dim < 0 ? 0 : view.stride(view_dim);
  }
  inputs.attention_mask = whole;
}

py::object Call::owner_of(const TensorView& view) {
  for (const Call* call = innermost; call != nullptr; call = call->outer_) {
    for (const Borrowed* tensor : {&call->queries, &call->keys, &call->values}) {
      if (contains(tensor->view(), view)) return tensor->object();
    }
    if (call->attention_mask_ && contains(call->attention_mask_->view(), view)) return call->attention_mask_->object();
    for (const Borrowed& extra : call->extras_) {
      if (contains(extra.view(), view)) return extra.object();
    }
  }
  return py::none();
}

Result::Result(const Call& call)
    : given_{call.queries.empty_like(
                 {call.inputs.batch(), call.inputs.heads(), call.inputs.queries_length(), call.inputs.values.size(3)},
                 call.inputs.queries.dtype),
             call.queries.empty_like({call.inputs.batch(), call.inputs.heads(), call.inputs.queries_length()},
                                     DType::f32)},
      output_(given_[0], "output", Device::Kind::cuda),
      lse_(given_[1], "lse", Device::Kind::cuda) {}

}  // namespace reticle::bindings
