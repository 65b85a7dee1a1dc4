// Tensors in device memory: allocation, copies, and the layout that kernels read.
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

/// A packed copy of a tensor of at most 4 dimensions in a device's memory, queued on context.stream; copies to the host
/// wait for the stream. DeviceError where there is no such device.
RETICLE_API Tensor copy_to(const TensorView& tensor, Device device, const Context& context = {});

}  // namespace reticle

namespace reticle::cuda {

/// Calls inputs.validate_on for a GPU, and throws DeviceError unless it is the current one, where kernels are launched
/// and memory is allocated.
inline void validate_on_current_gpu(const AttentionInputs& inputs) {
  inputs.validate_on(Device::Kind::cuda);
  const int current = current_device();
  if (inputs.queries.device.index != current)
    throw DeviceError("queries: on " + inputs.queries.device.describe() + ", and the current device is GPU " +
                      std::to_string(current) + "; make theirs current (cudaSetDevice, torch.cuda.device)");
}

/// An uninitialised tensor in the current GPU's memory.
RETICLE_API Tensor empty_tensor(DType dtype, std::span<const Index> shape, Stream stream);
/// Copies the first `width` elements of each row of a tensor (b, h, n, d) on the GPU, contiguously, padded with zeros
/// if rows are shorter. One launch.
RETICLE_API void pack_rows(const TensorView& tensor, Index width, void* to, Stream stream);
RETICLE_API Tensor packed_rows(const TensorView& tensor, Index width, Stream stream);

/// Head sizes that kernels are compiled for.
inline constexpr Index kHeadDims[] = {64, 128, 256};

/// Inputs on the GPU in the layout that kernels read. Tensors of another head size, or whose rows cannot be read 16
/// bytes at a time, are copied and padded with zeros; an attention mask that is not F32 is copied, too. One launch for
/// each copy.
class RETICLE_API FittedInputs {
 public:
  FittedInputs(const AttentionInputs& inputs, Stream stream);
  /// The extents and dtypes after fitting, from which a plan can be made, without copying tensors.
  static AttentionInputs extents(const AttentionInputs& inputs);
  const AttentionInputs& inputs() const { return inputs_; }
  /// Fits a further tensor with the rows of queries or values; `copy` keeps its memory.
  TensorView fit(const TensorView& tensor, Tensor& copy) const;

 private:
  [[maybe_unused]] Index width_ = 0;  // unused in builds without CUDA
  [[maybe_unused]] Stream stream_;
  Tensor queries_, keys_, values_, attention_mask_;
  AttentionInputs inputs_;
};

/// Memory where kernels write rows: `to`, the caller's memory, if the rows of `rows` have `width` elements; otherwise
/// temporary memory for the longer rows, which finish() copies to `to`.
class RETICLE_API FittedResult {
 public:
  FittedResult(DType dtype, const TensorView& rows, Index width, void* to, Stream stream);
  void* data() { return beside_ ? beside_->data() : to_; }
  /// Call after the kernel: copies temporary rows to the caller's memory.
  void finish() const;

 private:
  [[maybe_unused]] Index width_;  // unused in builds without CUDA
  void* to_;
  [[maybe_unused]] Stream stream_;
  std::optional<Tensor> beside_;
};

/// The FittedResult for attention's output: kernels write rows for `fitted`, the caller gets rows for `given`.
RETICLE_API FittedResult output_of(const AttentionInputs& given, const FittedInputs& fitted, void* output,
                                   Stream stream);

/// Converts an attention mask on the GPU (F32, F16, BF16, F64, or BOOL, true where a key may be attended to) to F32 of
/// the same extents, -infinity where it forbids. One launch.
RETICLE_API Tensor as_bias(const TensorView& mask, Stream stream);

}  // namespace reticle::cuda
