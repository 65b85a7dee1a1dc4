// Grouped-query attention with rotary embeddings, as a layer: input projections, attention, output projection.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/kv_cache.hpp>
#include <reticle/attention/layers/rope.hpp>
#include <reticle/attention/sparse_attention.hpp>

namespace reticle {

/// F32, F16 or BF16; no biases.
struct SelfAttentionWeights {
  TensorView q_proj;          // (heads * head_dim, hidden_size)
  TensorView k_proj, v_proj;  // (kv_heads * head_dim, hidden_size)
  TensorView o_proj;          // (hidden_size, heads * head_dim)
};

/// The cache and layer with one sequence's keys, and how its next tokens choose among them.
struct AttendedSequence {
  KvCache* cache;
  int layer;
  Stage stage;
  SequenceState* state;  // only used with a pipeline
};

/// Results of a forward pass that the backward pass needs.
struct SelfAttentionTape {
  Tensor x, queries, keys, values, mixed, output;  // (tokens, ...); queries and keys rotated
  std::vector<Index> cu_seqlens;
  std::vector<AttentionResult> attention;  // for each sequence
};

struct SelfAttentionGradients {
  Tensor x, q_proj, k_proj, v_proj, o_proj;
};

class RETICLE_API SelfAttention {
 public:
  /// ShapeError for weights that do not fit together. The weights must outlive the layer.
  SelfAttention(Index head_dim, const Rope& rope, const SelfAttentionWeights& weights);

  /// Whole sequences, packed: x (tokens, hidden_size) F32; every token attends to its sequence up to its own position.
  /// The tape's `output` is the result.
  SelfAttentionTape forward(const TensorView& x, std::span<const Index> cu_seqlens, const Context& context = {}) const;
  /// Gradients for dy (tokens, hidden_size) F32.
  SelfAttentionGradients backward(const SelfAttentionTape& tape, const TensorView& dy,
                                  const Context& context = {}) const;
  /// Appends the next tokens of sequences to their caches, which must have been extended by them, and attends; returns
  /// (tokens, hidden_size). `sparse` chooses the keys; null: all keys.
  Tensor extend(const TensorView& x, std::span<const Index> cu_seqlens, std::span<const AttendedSequence> sequences,
                const SparseAttention* sparse, const Context& context = {}) const;

 private:
  AttentionInputs inputs(const TensorView& queries, const TensorView& keys, const TensorView& values) const;

  Index head_dim_;
  Rope rope_;
  SelfAttentionWeights weights_;
};

}  // namespace reticle
