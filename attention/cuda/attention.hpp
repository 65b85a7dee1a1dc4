// Attention over a mask on a GPU: planned once, run as often as the mask serves.
#pragma once

#include <memory>
#include <span>

#include <reticle/attention/cuda/pattern.hpp>
#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/choose.hpp>

namespace reticle::cuda {

/// A mask, laid out in device memory for the kernel that suits it: blocks of keys for the tensor cores, where a tile
/// has enough rows, elements are of 16 bits, and rows have few p other than 1 (see plan_blocks; none, if the mask is on
/// the device); else lists of keys for rows that are split over blocks.
class RETICLE_API AttentionPlan {
 public:
  /// For tensors of the extents and dtype of `inputs`, which may hold null pointers. ShapeError when the mask does not
  /// fit; DeviceError for what has no kernel: head sizes other than 64, 128 and (in lists) 256, or other ones of
  /// values. Inputs that calls have an attention mask for have one here.
  AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream, const AttentionOptions& options = {},
                const Context& context = {});
  /// The same of a mask in device memory. The plan is made there, on the stream, and holds nothing of the mask; nothing
  /// waits. Lists have room for all keys that a query may see, 4 bytes each a row.
  AttentionPlan(const AttentionInputs& inputs, const DevicePattern& pattern, Stream stream,
                const AttentionOptions& options = {});
  /// Queries, keys and values are in device memory, their rows contiguous and aligned to 16 bytes; output (b, hq, sq,
  /// d), contiguous, of the queries' dtype, and lse (b, hq, sq) likewise. What it computes is reticle::attention's.
  /// Launches one kernel and waits for nothing, so it can be captured in a graph. ShapeError when the extents are not
  /// the plan's; DeviceError for an attention mask that is not F32.
  void run(const AttentionInputs& inputs, void* output, float* lse, Stream stream) const;

  bool uses_tiles() const;
  Index bytes() const;

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

  /// Tensors as for AttentionPlan::run. Entries beyond a list's count are not read; keys must lie within the keys. Sink
  /// logits are copied to the device, which waits, when they come for the first time. Copies share memory as well.
  /// ShapeError for more rows than it was made for.
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

  /// Tensors as for AttentionPlan::run, rules as for KeyChooser::choose. Copies share memory as well.
  void run(const AttentionInputs& inputs, std::span<const Rule> rules, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}, std::int32_t* counts = nullptr) const;
  /// As KeyChooser::reset.
  void reset() const { chooser_.reset(); }

 private:
  KeyChooser chooser_;
  KeyListAttention attention_;
};

}  // namespace reticle::cuda
