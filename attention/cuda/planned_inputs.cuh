// The inputs that a plan was made for, and checks that a call fits them. For .cu files.
#pragma once

#include <string>

#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {

/// Extents, dtype and causality of the inputs of a plan.
struct PlannedInputs {
  Index batch, heads, kv_heads, queries, keys, head_dim;
  DType dtype;
  bool causal, biased;  // biased: there is an attention mask

  /// Inputs may hold null pointers. DeviceError for head sizes without kernels.
  static PlannedInputs of(const AttentionInputs& inputs) {
    validate_on_current_gpu(inputs);
    const Index head_dim = inputs.head_dim();
    if ((head_dim != 64 && head_dim != 128 && head_dim != 256) || inputs.values.size(3) != head_dim)
      throw DeviceError("attention: head_dim is " + std::to_string(head_dim) + ", value_dim " +
                        std::to_string(inputs.values.size(3)) + "; on a GPU both are 64, 128 or 256, and equal");
    return {inputs.batch(),          inputs.heads(),       inputs.kv_heads(),
            inputs.queries_length(), inputs.keys_length(), head_dim,
            inputs.queries.dtype,    inputs.causal,        inputs.attention_mask.has_value()};
  }

  Index rows() const { return batch * heads * queries; }
  /// KV heads, whose query heads may share lists; with a bias every query head has its own lists.
  Index heads_with_lists() const { return biased ? heads : kv_heads; }

  /// ShapeError unless the inputs fit the plan; DeviceError where kernels cannot read them.
  void require(const AttentionInputs& inputs) const {
    validate_on_current_gpu(inputs);
    if (inputs.batch() != batch || inputs.heads() != heads || inputs.kv_heads() != kv_heads ||
        inputs.queries_length() != queries || inputs.keys_length() != keys || inputs.head_dim() != head_dim ||
        inputs.values.size(3) != head_dim || inputs.queries.dtype != dtype || inputs.causal != causal ||
        inputs.attention_mask.has_value() != biased)
      throw ShapeError("attention: queries " + inputs.queries.describe() + ", keys " + inputs.keys.describe() +
                       " and values " + inputs.values.describe() +
                       " are not those that the plan was made for, or there is an attention mask here or there only");
    require_readable(inputs);
  }

  /// DeviceError for options that are not supported on a GPU.
  static void require_options(const AttentionInputs& inputs, const AttentionOptions& options) {
    options.validate(inputs);
    if (options.weights) throw DeviceError("attention: weights are not supported on a GPU");
  }

  /// DeviceError for tensors that no kernel reads.
  static void require_readable(const AttentionInputs& inputs) {
    if (inputs.attention_mask && inputs.attention_mask->dtype != DType::f32)
      throw DeviceError("attention_mask: " + inputs.attention_mask->describe() + "; on a GPU it is F32");
    for (const auto& [view, name] : {std::pair<const TensorView*, const char*>{&inputs.queries, "queries"},
                                     {&inputs.keys, "keys"},
                                     {&inputs.values, "values"}}) {
      if (view->dtype != inputs.queries.dtype)
        throw DeviceError(std::string(name) + ": on a GPU all tensors have one dtype");
      require_aligned(*view, name);
    }
  }
};

}  // namespace reticle::cuda
