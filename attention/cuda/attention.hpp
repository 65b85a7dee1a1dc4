// Attention over a mask on a GPU: planned once, run as often as the mask serves.
#pragma once

#include <reticle/attention/executor.hpp>
#include <reticle/core/cuda/scores.hpp>

namespace reticle::cuda {

/// A mask, laid out in device memory for the kernel that suits it: blocks of keys for the tensor cores, where a tile
/// has enough rows, elements are of 16 bits, and no entry has a p; else lists of keys for rows that are split over
/// blocks.
class RETICLE_API AttentionPlan {
 public:
  /// For tensors of the extents and dtype of `inputs`, which may hold null pointers. ShapeError when the mask does not
  /// fit; DeviceError for what has no kernel: head sizes other than 64, 128 and (in lists) 256, or other ones of
  /// values.
  AttentionPlan(const AttentionInputs& inputs, const Mask& mask, Stream stream, const AttentionOptions& options = {},
                const Context& context = {});
  AttentionPlan(AttentionPlan&&) noexcept = default;
  AttentionPlan& operator=(AttentionPlan&&) noexcept = default;

  /// Queries, keys and values are in device memory, their rows contiguous and aligned to 16 bytes; output (b, hq, sq,
  /// d), contiguous, of the queries' dtype, and lse (b, hq, sq) likewise. What it computes is reticle::attention's.
  /// Launches one kernel and waits for nothing, so it can be captured in a graph. One run of a plan at a time.
  /// ShapeError when the extents are not the plan's; DeviceError for an attention mask, which is not built.
  void run(const AttentionInputs& inputs, void* output, float* lse, Stream stream) const;

  bool uses_tiles() const { return tiles_ > 0; }
  Index bytes() const;

 private:
  Index batch_, heads_, kv_heads_, queries_, keys_, head_dim_;
  DType dtype_;
  bool causal_;
  float soft_cap_;
  Buffer sink_logits_;
  // Lists.
  int parts_ = 1;
  Buffer row_ptr_, indices_, p_, workspace_, arrived_;
  // Tiles.
  int tiles_ = 0;
  Buffer tile_list_, blocks_, bits_;
};

/// Decoding over sinks, a window and the best of the other keys, all on the device: the maskers sink, local and
/// oracle_top_k, and attention over what they choose. Three launches and no waiting. Memory: 4 bytes per key and head.
class RETICLE_API TopKAttention {
 public:
  /// For up to `most_keys` keys of `rows` = batch * heads rows. ValueError for sizes that are negative or choose
  /// nothing.
  TopKAttention(Index rows, Index most_keys, const KeptKeys& kept, Index heavy, Stream stream);

  /// One query per head; tensors as for AttentionPlan::run. One run at a time. ShapeError for more than one query per
  /// head, or more rows or keys than it was made for.
  void run(const AttentionInputs& inputs, void* output, float* lse, Stream stream,
           const AttentionOptions& options = {}) const;

 private:
  Index rows_, most_keys_, heavy_;
  KeptKeys kept_;
  int multiprocessors_;
  Buffer scores_, indices_, counts_, workspace_, arrived_;
};

}  // namespace reticle::cuda
