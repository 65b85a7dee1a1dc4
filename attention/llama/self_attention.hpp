// Grouped-query attention with rotary embeddings, as a layer: projections, attention, projection.
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

/// Where one sequence's keys are, and how its next tokens choose among them.
struct AttendedSequence {
  KvCache* cache;
  int layer;
  Stage stage;
  SequenceState* state;  // used with a pipeline
};

/// What a forward pass leaves for the backward one.
struct SelfAttentionTape {
  Tensor x, queries, keys, values, mixed, output;  // (tokens, ...); queries and keys rotated
  std::vector<Index> cu_seqlens;
  std::vector<AttentionResult> attention;  // of each sequence
};

struct SelfAttentionGradients {
  Tensor x, q_proj, k_proj, v_proj, o_proj;
};

class RETICLE_API SelfAttention {
 public:
  /// ShapeError for weights that do not fit together. They must outlive it.
  SelfAttention(Index head_dim, const Rope& rope, const SelfAttentionWeights& weights);

  /// Whole sequences, packed: x (tokens, hidden_size) F32; every token attends to all of its sequence up to its own.
  /// The tape's `output` is the result.
  SelfAttentionTape forward(const TensorView& x, std::span<const Index> cu_seqlens, const Context& context = {}) const;
  /// For dy (tokens, hidden_size) F32.
  SelfAttentionGradients backward(const SelfAttentionTape& tape, const TensorView& dy,
                                  const Context& context = {}) const;
  /// The next tokens of sequences through their caches, which must have been extended by them; (tokens, hidden_size).
  /// `sparse`: what chooses the keys; null: all.
  Tensor extend(const TensorView& x, std::span<const Index> cu_seqlens, std::span<const AttendedSequence> sequences,
                const SparseAttention* sparse, const Context& context = {}) const;

 private:
  AttentionInputs inputs(const TensorView& queries, const TensorView& keys, const TensorView& values) const;

  Index head_dim_;
  Rope rope_;
  SelfAttentionWeights weights_;
};

}  // namespace reticle
