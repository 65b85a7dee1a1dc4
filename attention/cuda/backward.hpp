// Gradients of attention over a mask on a GPU.
#pragma once

#include <memory>

#include <reticle/attention/executor.hpp>
#include <reticle/attention/pattern.hpp>
#include <reticle/core/cuda/runtime.hpp>

namespace reticle::cuda {

/// A mask in device memory, laid out by rows and by keys, for gradients of DevicePlan::run: blocks of keys for the
/// tensor cores, where DevicePlan has them, else lists, of 8 bytes an entry (16 with p).
class RETICLE_API BackwardPlan {
 public:
  /// As DevicePlan's constructor. Of patterns other than a Mask of the host it can be made where serves() says so;
  /// DeviceError elsewhere.
  BackwardPlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream,
               const AttentionOptions& options = {}, const Context& context = {});
  /// Whether a plan for such tensors can be made of this pattern: where tiles serve, which have no p, or of a Mask of
  /// the host.
  static bool serves(const AttentionInputs& inputs, const Pattern& pattern);
  /// What reticle::attention_backward computes, but for the sink logits' gradient. Inputs as of DevicePlan::run;
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
