// The state of Native Sparse Attention for a sequence besides its keys and values: the compressed ones, which are
// computed as their windows fill.
#pragma once

#include <reticle/attention/layers/rope.hpp>
#include <reticle/attention/nsa/compress.hpp>

namespace reticle {

/// The cache of one layer. The window branch needs none: it reads the last keys of the KV cache.
class RETICLE_API NsaCache {
 public:
  NsaCache(const NsaConfig& config, Index kv_heads, Index head_dim);

  /// Appends the keys and values (n, kv_heads, head_dim) F32 of the sequence's next tokens, before rotation. Windows
  /// that they complete are compressed once, with `key_weights` and `value_weights`; compressed keys are rotated to
  /// their window's first position.
  void append(const TensorView& keys, const TensorView& values, const CompressionWeights& key_weights,
              const CompressionWeights& value_weights, const Rope& rope, const Context& context = {});

  Index compressed_length() const { return compressed_; }
  /// Tokens from the beginning of the next window on, which are kept until it is complete.
  Index pending_length() const { return static_cast<Index>(pending_keys_.size()) / token_; }
  /// Views (compressed tokens, kv_heads, head_dim) F32 of the cache's memory.
  TensorView compressed_keys() const { return view(keys_, compressed_); }
  TensorView compressed_values() const { return view(values_, compressed_); }
  Index bytes() const;
  void reset();

 private:
  TensorView view(const Array<float>& data, Index tokens) const {
    return {data.data(), DType::f32, {tokens, kv_heads_, token_ / kv_heads_}};
  }

  NsaConfig config_;
  Index kv_heads_, token_;  // elements per token
  Index compressed_ = 0;
  Array<float> keys_, values_, pending_keys_, pending_values_;
};

}  // namespace reticle
