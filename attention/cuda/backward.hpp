// Gradients of attention over a mask on a GPU.
#pragma once

#include <memory>

#include <reticle/attention/cuda/pattern.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// A mask in device memory, laid out by rows and by keys, for gradients of AttentionPlan::run: blocks of keys for the
/// tensor cores, where AttentionPlan has them, else lists, of 8 bytes an entry (16 with p).
class RETICLE_API BackwardPlan {
 public:
  /// As AttentionPlan's constructor.
  BackwardPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream, const AttentionOptions& options = {},
               const Context& context = {});
  /// Whether a plan can be made of a mask in device memory for such tensors: those that tiles serve.
  static bool serves_patterns(const AttentionInputs& inputs);
  /// The same of such a mask; the plan is made there, and nothing waits. DeviceError where none can be, or where the
  /// mask has p.
  BackwardPlan(const AttentionInputs& inputs, const DevicePattern& pattern, Stream stream,
               const AttentionOptions& options = {});
  /// What reticle::attention_backward computes, but for the sink logits' gradient. Inputs as of AttentionPlan::run;
  /// output and d_output (b, hq, sq, d), of their dtype, rows contiguous and aligned to 16 bytes; lse, and the
  /// gradients d_queries, d_keys and d_values, contiguous F32. Launches two kernels and waits for nothing. Sums have
  /// one order: the same bits every time.
  void run(const AttentionInputs& inputs, const TensorView& output, const float* lse, const TensorView& d_output,
           float* d_queries, float* d_keys, float* d_values, Stream stream) const;

  bool uses_tiles() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace reticle::cuda
