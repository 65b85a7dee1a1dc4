// Attention on a GPU: the implementation of reticle::attention for tensors in device memory.
#pragma once

#include <memory>
#include <span>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/choose.hpp>

namespace reticle::cuda {

/// A plan in device memory, in the form that suits the inputs. Blocks of keys for the tensor cores, if tiles have
/// enough rows, elements have 16 bits, and rows have few p other than 1 (see plan_blocks; for a mask on the device,
/// none); otherwise lists of keys, each split over several blocks of threads. Not thread-safe: one caller at a time.
class RETICLE_API DevicePlan {
 public:
  /// Plans for tensors with the extents and dtype of `inputs`, whose pointers may be null. A Mask on the host is
  /// planned there; other patterns are planned on the GPU, queued on the stream without waiting: each list has space
  /// for all keys that a query may see, 4 bytes each. If the calls will have an attention mask, `inputs` must have one.
  /// ShapeError when the mask does not fit; DeviceError where there is no kernel: for head sizes other than 64, 128 and
  /// (with lists) 256, and for values of another head size.
  DevicePlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream, const Context& context = {});
  /// Computes reticle::attention. Queries, keys and values are in device memory, with contiguous rows aligned to 16
  /// bytes; output (b, hq, sq, d) is contiguous, of the queries' dtype, and lse is (b, hq, sq) F32. Launches one kernel
  /// without waiting, so the call can be captured in a graph; only the first use of a set of sink logits copies them to
  /// the device and waits. ShapeError when the extents are not the plan's; DeviceError for an attention mask that is
  /// not F32, and for weights.
  void run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}) const;

  bool uses_tiles() const;
  Index bytes() const;
  /// The number of the GPU.
  int device() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Attention over lists of keys that were chosen on the device. One launch, no waiting. Holds the memory for the states
/// of rows that are split over blocks, allocated once.
class RETICLE_API KeyListAttention {
 public:
  /// For up to `rows` = batch * heads * queries rows. ValueError when there are none.
  KeyListAttention(Index rows, Stream stream);

  /// Tensors and sink logits as for DevicePlan::run. Entries after a list's count are not read; the others must be less
  /// than the number of keys. Copies share the memory. ShapeError for more rows than the constructor was given.
  void run(const AttentionInputs& inputs, const KeyLists& lists, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Decoding over keys that rules choose, all on the device. Three launches, no waiting. Memory: that of the KeyChooser.
class RETICLE_API SparseDecoder {
 public:
  /// As for KeyChooser.
  SparseDecoder(Index rows, Index most_keys, Stream stream);

  /// Tensors of any head size up to 256, rules as for KeyChooser::choose. The lists returned are valid until the next
  /// run. Copies share the memory.
  KeyLists run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse, Stream stream,
               const AttentionOptions& options = {}, std::int32_t* counts = nullptr) const;
  /// Only chooses the keys, without attention.
  KeyLists choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream) const;
  /// As KeyChooser::reset.
  void reset() const { chooser_.reset(); }

 private:
  KeyChooser chooser_;
  KeyListAttention attention_;
};

/// reticle::attention for tensors on the current GPU, queued on context.stream, with a plan made for this call or made
/// before. Writes into the caller's memory, laid out as for DevicePlan::run, for tensors of any head size up to 256.
RETICLE_API void attend(const AttentionInputs& inputs, const Pattern& pattern, const AttentionOptions& options,
                        const Context& context, void* output, float* lse);
RETICLE_API void attend(const AttentionInputs& inputs, const DevicePlan& plan, const AttentionOptions& options,
                        const Context& context, void* output, float* lse);
/// Makes a plan for such inputs, of any head size up to 256.
RETICLE_API DevicePlan plan_for(const AttentionInputs& inputs, const Pattern& pattern, const Context& context);

/// Allocates the results of attention over such inputs on the GPU.
RETICLE_API AttentionResult empty_result(const AttentionInputs& inputs, Stream stream);

/// Device memory for gradients: contiguous F32 of the extents of queries, keys and values.
struct GradientMemory {
  float *queries = nullptr, *keys = nullptr, *values = nullptr;
};
/// reticle::attention_backward for tensors on the current GPU, queued on context.stream. A Mask on the GPU is copied to
/// the host first where the tensor cores cannot be used (F32, head_dim 256, few rows, p). DeviceError for gradients
/// with respect to sink logits.
RETICLE_API void differentiate(const AttentionInputs& inputs, const Pattern& pattern, const TensorView& output,
                               const TensorView& lse, const TensorView& d_output, const GradientMemory& to,
                               const AttentionOptions& options, const Context& context);

}  // namespace reticle::cuda
