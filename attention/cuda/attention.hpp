// Attention on a GPU: what reticle::attention does with tensors that lie there.
#pragma once

#include <memory>
#include <span>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/choose.hpp>

namespace reticle::cuda {

/// A mask, laid out in device memory for the kernel that suits it: blocks of keys for the tensor cores, where a tile
/// has enough rows, elements are of 16 bits, and rows have few p other than 1 (see plan_blocks; none, if the mask is on
/// the device); else lists of keys for rows that are split over blocks. One caller at a time.
class RETICLE_API DevicePlan {
 public:
  /// For tensors of the extents and dtype of `inputs`, which may hold null pointers. Of a Mask of the host the plan is
  /// made there; of other patterns on the GPU, queued on the stream, and nothing waits: lists have room for all keys
  /// that a query may see, 4 bytes each a row. ShapeError when the mask does not fit; DeviceError for what has no
  /// kernel: head sizes other than 64, 128 and (in lists) 256, or other ones of values. Inputs that calls have an
  /// attention mask for have one here.
  DevicePlan(const AttentionInputs& inputs, const Pattern& pattern, Stream stream, const Context& context = {});
  /// Queries, keys and values are in device memory, their rows contiguous and aligned to 16 bytes; output (b, hq, sq,
  /// d), contiguous, of the queries' dtype, and lse (b, hq, sq) likewise. What it computes is reticle::attention's.
  /// Launches one kernel and waits for nothing, so it can be captured in a graph; sink logits are copied to the device,
  /// which waits, when they come for the first time. ShapeError when the extents are not the plan's; DeviceError for an
  /// attention mask that is not F32, and for weights.
  void run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}) const;

  bool uses_tiles() const;
  Index bytes() const;
  /// Number of the GPU.
  int device() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Attention over lists of keys that something on the device has chosen. One launch and no waiting. Memory for states
/// of rows that are split over blocks, made once.
class RETICLE_API KeyListAttention {
 public:
  /// For up to `rows` = batch * heads * queries rows. ValueError when there are none.
  KeyListAttention(Index rows, Stream stream);

  /// Tensors as for DevicePlan::run, and its sink logits. Entries beyond a list's count are not read; keys must lie
  /// within the keys. Copies share memory as well. ShapeError for more rows than it was made for.
  void run(const AttentionInputs& inputs, const KeyLists& lists, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Decoding over keys that rules choose, all on the device. Three launches and no waiting. Memory: the chooser's.
class RETICLE_API SparseDecoder {
 public:
  /// As for KeyChooser.
  SparseDecoder(Index rows, Index most_keys, Stream stream);

  /// Tensors of any head size up to 256, rules as for KeyChooser::choose. The keys that it chose are there until the
  /// next run. Copies share memory as well.
  KeyLists run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse, Stream stream,
               const AttentionOptions& options = {}, std::int32_t* counts = nullptr) const;
  /// The choice alone.
  KeyLists choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream) const;
  /// As KeyChooser::reset.
  void reset() const { chooser_.reset(); }

 private:
  KeyChooser chooser_;
  KeyListAttention attention_;
};

/// reticle::attention of tensors on the current GPU, queued on context.stream, by a plan that is made for it or was
/// made before; into memory of the caller's, as DevicePlan::run has it, for tensors of any head size up to 256.
RETICLE_API void attend(const AttentionInputs& inputs, const Pattern& pattern, const AttentionOptions& options,
                        const Context& context, void* output, float* lse);
RETICLE_API void attend(const AttentionInputs& inputs, const DevicePlan& plan, const AttentionOptions& options,
                        const Context& context, void* output, float* lse);
/// A plan for such inputs, of any head size up to 256.
RETICLE_API DevicePlan plan_for(const AttentionInputs& inputs, const Pattern& pattern, const Context& context);

/// Where results of attention over such inputs go, on the GPU.
RETICLE_API AttentionResult empty_result(const AttentionInputs& inputs, Stream stream);

/// Where gradients go: contiguous F32 in device memory, of the extents of queries, keys and values.
struct GradientMemory {
  float *queries = nullptr, *keys = nullptr, *values = nullptr;
};
/// reticle::attention_backward of tensors on the current GPU, queued on context.stream. A Mask that lies there comes to
/// the host first where the tensor cores do not serve (F32, head_dim 256, few rows, p). DeviceError for gradients by
/// sink logits.
RETICLE_API void differentiate(const AttentionInputs& inputs, const Pattern& pattern, const TensorView& output,
                               const TensorView& lse, const TensorView& d_output, const GradientMemory& to,
                               const AttentionOptions& options, const Context& context);

}  // namespace reticle::cuda
