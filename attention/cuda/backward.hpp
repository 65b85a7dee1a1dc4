// Gradients of attention over a mask on a GPU.
#pragma once

#include <memory>

#include <reticle/attention/executor.hpp>
#include <reticle/attention/pattern.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// A plan in device memory for the gradients of DevicePlan::run, by rows and by keys: blocks of keys for the tensor
/// cores, under the same conditions as in DevicePlan, otherwise lists of 8 bytes an entry (16 with p).
class RETICLE_API BackwardPlan {
 public:
  /// As DevicePlan's constructor. DeviceError for patterns for which serves() is false.
  BackwardPlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream,
               const AttentionOptions& options = {}, const Context& context = {});
  /// Whether there is a kernel for these tensors and this pattern: any Mask on the host, and other patterns where the
  /// tensor cores can be used, which needs every p to be 1.
  static bool serves(const AttentionInputs& inputs, const Pattern& pattern);
  /// Computes reticle::attention_backward, without the gradient with respect to sink logits. Inputs as for
  /// DevicePlan::run; output and d_output (b, hq, sq, d) of their dtype, with contiguous rows aligned to 16 bytes; lse
  /// and the gradients d_queries, d_keys and d_values contiguous F32. Launches two kernels without waiting. Sums have a
  /// fixed order, so the result is the same bit for bit every time.
  void run(const AttentionInputs& inputs, const TensorView& output, const float* lse, const TensorView& d_output,
           float* d_queries, float* d_keys, float* d_values, Stream stream) const;

  bool uses_tiles() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace reticle::cuda
