// Native Sparse Attention (Yuan et al. 2025, arXiv 2502.11089), compatible with native-sparse-attention-triton: three
// attentions of the same queries, over compressed keys, over the blocks selected by them, and over a window, mixed by
// learned gates. Trainable end to end; the selection itself has no gradient.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/attention/kv_cache.hpp>
#include <reticle/attention/layers/weights.hpp>
#include <reticle/attention/nsa/cache.hpp>
#include <reticle/attention/nsa/compressed_attention.hpp>

namespace reticle {

struct NsaShape {
  NsaConfig config;
  Index hidden_size = 0, heads = 0, kv_heads = 0, head_dim = 0;
};

/// Parameters with the names of the reference's state dict. F32, F16 or BF16; no biases.
struct NsaWeights {
  TensorView proj_q;                                       // (heads * head_dim, hidden_size)
  TensorView proj_k, proj_v;                               // (kv_heads * head_dim, hidden_size)
  TensorView proj_o;                                       // (hidden_size, heads * head_dim)
  TensorView gate;                                         // (3 * heads, hidden_size); row h * 3 + branch
  TensorView intra_block_pe;                               // (kv_heads, kernel_size, head_dim), for keys only
  std::optional<TensorView> compress_key, compress_value;  // none for avgpool
};

/// Reads `prefix` + "proj_q.weight", "gate.0.weight", "compress_key", ...
RETICLE_API NsaWeights read_nsa_weights(WeightReader& reader, const std::string& prefix, const NsaShape& shape);

/// Results of the three attentions, (n, heads, head_dim) each, with what their gradients need.
struct NsaBranches {
  CompressedAttention compressed;
  Tensor selected, selected_lse;  // (n, heads, d), (heads, n)
  Tensor window, window_lse;
};

/// Computes the branches for queries from position `first_query` on, rotated (n, heads, d); keys, rotated, and values
/// of all tokens so far (1, kv_heads, length, d); compressed keys, rotated, and values (m, kv_heads, d).
RETICLE_API NsaBranches nsa_branches(const TensorView& queries, const TensorView& keys, const TensorView& values,
                                     const TensorView& compressed_keys, const TensorView& compressed_values,
                                     Index first_query, const NsaConfig& config, const Context& context = {});
/// Adds to `mixed` (n, heads, d) the branches, weighted by gates (n, heads, 3) in the order compressed, selected,
/// window.
RETICLE_API void mix_branches(const NsaBranches& branches, std::span<const float> gates, std::span<float> mixed);

/// The caches of one sequence's keys.
struct NsaSequence {
  KvCache* cache;
  int layer;
  NsaCache* compressed;
};

struct NsaCompression {
  CompressionWeights keys, values;
};

/// Appends the next tokens of one sequence to the caches, and attends. Takes the outputs of the projections: queries
/// (n, heads, d), keys and values (n, kv_heads, d) F32, not rotated, and gates (n, heads, 3). `cache` must have been
/// extended by the tokens. Returns (n, heads, d).
RETICLE_API Tensor nsa_extend(const TensorView& queries, const TensorView& keys, const TensorView& values,
                              std::span<const float> gates, const NsaSequence& sequence,
                              const NsaCompression& compression, const Rope& rope, const NsaConfig& config,
                              const Context& context = {});

/// Results of a forward pass that the backward pass needs.
struct NsaTape {
  Tensor x, queries, keys, values, raw_keys;  // (tokens, ...); queries and keys rotated, raw_keys not
  Tensor gates, mixed, output;                // (tokens, heads * 3), (tokens, heads * d), (tokens, hidden_size)
  Packed compressed_keys, compressed_values;  // keys rotated
  std::vector<Index> cu_seqlens;
  std::vector<NsaBranches> branches;  // for each sequence
};

struct NsaGradients {
  Tensor x;
  std::map<std::string, Tensor> weights;  // by parameter name
};

class RETICLE_API NativeSparseAttention {
 public:
  /// ShapeError and ConfigError for weights or extents that do not fit together. The weights must outlive the module.
  NativeSparseAttention(const NsaShape& shape, const Rope& rope, const NsaWeights& weights);
  NativeSparseAttention(NativeSparseAttention&&) = default;
  NativeSparseAttention& operator=(NativeSparseAttention&&) = default;

  const NsaShape& shape() const { return shape_; }

  /// Whole sequences, packed: x (tokens, hidden_size) F32. The tape's `output` is the result.
  NsaTape forward(const TensorView& x, std::span<const Index> cu_seqlens, const Context& context = {}) const;
  /// Gradients for dy (tokens, hidden_size) F32.
  NsaGradients backward(const NsaTape& tape, const TensorView& dy, const Context& context = {}) const;
  /// Appends the next tokens of sequences to their caches, which must have been extended by them; returns (tokens,
  /// hidden_size), the same rows as `forward` over all tokens.
  Tensor extend(const TensorView& x, std::span<const Index> cu_seqlens, std::span<const NsaSequence> sequences,
                const Context& context = {}) const;

 private:
  Tensor gates(const TensorView& x, const Context& context) const;
  NsaCompression compression() const;

  NsaShape shape_;
  Rope rope_;
  NsaWeights weights_;
  // The learned parameters of compression, as floats.
  Tensor compress_key_, compress_value_, position_embedding_;
};

}  // namespace reticle
