// Learned hashing: one MLP per head turns queries and keys into codes of sign bits; the more bits a key's code shares
// with the query's, the higher its score. HashAttention (Desai et al. 2024).
#pragma once

#include <cmath>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>

namespace reticle {

enum class HashActivation : std::uint8_t { relu, silu, gelu, tanh };
RETICLE_HD inline float hash_activation(HashActivation activation, float x) {
  switch (activation) {
    case HashActivation::relu:
      return x > 0 ? x : 0.0f;
    case HashActivation::silu:
      return x / (1 + std::exp(-x));
    case HashActivation::gelu:
      return 0.5f * x * (1 + std::erf(x / std::numbers::sqrt2_v<float>));
    case HashActivation::tanh:
      return std::tanh(x);
  }
  return x;
}

/// The MLPs of one layer for queries or for keys: per query head a stack of linear maps with an activation between
/// them; the signs of the outputs are the code.
class RETICLE_API HashMlp {
 public:
  using Lookup = FunctionRef<std::optional<TensorView>(const std::string& name)>;

  HashMlp() = default;
  /// From "<prefix>_matrix.<i>" (hq, in, out) and "<prefix>_bias.<i>" (hq, out), F32, i = 0, 1, ... ShapeError when
  /// they do not fit together, or to `heads` and `head_dim`.
  HashMlp(Lookup lookup, const std::string& prefix, HashActivation activation, Index heads, Index head_dim);

  Index layers() const { return static_cast<Index>(linear_.size()); }
  Index bits() const { return linear_.empty() ? 0 : linear_.back().out; }
  /// Width between the linear maps; 0 if there is only one.
  Index hidden() const { return linear_.size() < 2 ? 0 : linear_.front().out; }
  /// A linear map per query head.
  struct Linear {
    Index in = 0, out = 0;
    std::vector<float> weights, bias;  // (hq, out, in), (hq, out)
  };
  std::span<const Linear> linear() const { return linear_; }
  HashActivation activation() const { return activation_; }
  Index heads() const {
    return linear_.empty() ? 0 : static_cast<Index>(linear_.front().bias.size()) / linear_.front().out;
  }
  Index head_dim() const { return linear_.empty() ? 0 : linear_.front().in; }
  /// Bit b of the words is set where output b is positive.
  void code(Index head, std::span<const float> vector, std::span<std::uint64_t> words) const;

 private:
  HashActivation activation_ = HashActivation::relu;
  std::vector<Linear> linear_;
};

/// The MLPs of one layer for queries and keys.
struct LearnedHash {
  HashMlp query, key;
};

/// The codes of all keys of one layer, per query head; kept across decode steps, in which only new keys are hashed.
class RETICLE_API HashCodes {
 public:
  bool empty() const { return query_.bits() == 0; }
  /// ShapeError unless both sides have the same number of bits.
  void set_weights(HashMlp query, HashMlp key);
  const HashMlp& query_mlp() const { return query_; }
  /// Hashes the keys beyond those seen. ShapeError when there are fewer, or other extents changed.
  void update(const AttentionInputs& inputs, const Context& context);
  void truncate(Index keys) { seen_.truncate(keys); }
  void select(std::span<const Index> rows) {
    select_rows(codes_, rows, seen_.batch());
    seen_.select(rows);
  }
  /// scores[k] = equal bits - different bits (+ attention mask), -infinity for keys that causality or the mask forbids.
  void score(const AttentionInputs& inputs, RowId row, float* scores) const;
  Index keys_hashed() const { return keys_hashed_; }

 private:
  Index words() const { return (query_.bits() + 63) / 64; }

  HashMlp query_, key_;
  std::vector<std::vector<std::uint64_t>> codes_;  // per (batch, query head): (keys, words)
  SeenKeys seen_;
  Index keys_hashed_ = 0;
};

}  // namespace reticle
