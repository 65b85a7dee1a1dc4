// Tensors in device memory: made, copied, and laid out as kernels read them.
#pragma once

#include <optional>
#include <span>
#include <string>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/error.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// A packed copy of a tensor of at most 4 dimensions in a device's memory, queued on context.stream; to the host it
/// waits for it. DeviceError where there is no such device.
RETICLE_API Tensor copy_to(const TensorView& tensor, Device device, const Context& context = {});

}  // namespace reticle

namespace reticle::cuda {

/// inputs.validate_on a GPU, and DeviceError unless it is the current one: kernels are launched and memory is allocated
/// there.
inline void validate_on_current_gpu(const AttentionInputs& inputs) {
  inputs.validate_on(Device::Kind::cuda);
  const int current = current_device();
  if (inputs.queries.device.index != current)
    throw DeviceError("queries: on " + inputs.queries.device.describe() + ", and the current device is GPU " +
                      std::to_string(current) + "; make theirs current (cudaSetDevice, torch.cuda.device)");
}

/// Uninitialised, in the current GPU's memory.
RETICLE_API Tensor empty_tensor(DType dtype, std::span<const Index> shape, Stream stream);
/// The first `width` elements of each row of a tensor (b, h, n, d) on the GPU, one row after another, with zeros where
/// they are fewer. One launch.
RETICLE_API void pack_rows(const TensorView& tensor, Index width, void* to, Stream stream);
RETICLE_API Tensor packed_rows(const TensorView& tensor, Index width, Stream stream);

/// Head sizes that there are kernels for: 64, 128 and 256.
inline constexpr Index kHeadDims[] = {64, 128, 256};

/// Inputs on the GPU as kernels read them. Tensors whose head size is another, or whose rows cannot be read 16 bytes at
/// a time, are copied, with zeros behind; so is an attention mask that is not F32. One launch for each that is.
class RETICLE_API FittedInputs {
 public:
  FittedInputs(const AttentionInputs& inputs, Stream stream);
  /// Their extents and dtypes alone: what a plan is made from. Where the tensors lie is not said.
  static AttentionInputs extents(const AttentionInputs& inputs);
  const AttentionInputs& inputs() const { return inputs_; }
  /// A further tensor of the queries' or values' rows, laid out likewise; `copy` keeps its memory.
  TensorView fit(const TensorView& tensor, Tensor& copy) const;

 private:
  [[maybe_unused]] Index width_ = 0;  // in builds without CUDA
  [[maybe_unused]] Stream stream_;
  Tensor queries_, keys_, values_, attention_mask_;
  AttentionInputs inputs_;
};

/// Where kernels write rows of `width` elements, as many as of `rows`: the caller's memory `to`, or, where kernels
/// write rows of that tensor's longer ones, memory beside it.
class RETICLE_API FittedResult {
 public:
  FittedResult(DType dtype, const TensorView& rows, Index width, void* to, Stream stream);
  void* data() { return beside_ ? beside_->data() : to_; }
  /// After the kernel: the rows go where they belong.
  void finish() const;

 private:
  [[maybe_unused]] Index width_;  // in builds without CUDA
  void* to_;
  [[maybe_unused]] Stream stream_;
  std::optional<Tensor> beside_;
};

/// Of attention: rows of `given`'s queries and values, where kernels have `fitted`'s.
RETICLE_API FittedResult output_of(const AttentionInputs& given, const FittedInputs& fitted, void* output,
                                   Stream stream);

/// An attention mask on the GPU (F32, F16, BF16, F64, or BOOL, true where a key may be attended to) as F32, -infinity
/// where it forbids, of the same extents. One launch.
RETICLE_API Tensor as_bias(const TensorView& mask, Stream stream);

}  // namespace reticle::cuda
