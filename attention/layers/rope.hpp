// Rotary position embeddings (Su et al. 2021) in the half-split layout of Llama: pairs are (x[i], x[i + d/2]).
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// How frequencies are scaled for contexts longer than those of a model's training.
struct RopeScaling {
  enum class Type : std::uint8_t { linear, llama3 };
  Type type = Type::llama3;
  double factor = 8, low_freq_factor = 1, high_freq_factor = 4;  // the last two only in llama3
  Index original_max_position_embeddings = 8192;                 // only in llama3
};

/// Cosines and sines for some positions, which can be applied to any number of tensors.
class RETICLE_API RopeTable {
 public:
  RopeTable(std::span<const float> inverse_frequencies, std::span<const Index> positions);
  Index rows() const { return rows_; }
  Index half() const { return half_; }
  /// (rows, head_dim / 2)
  std::span<const float> cosines() const { return cosines_; }
  std::span<const float> sines() const { return sines_; }
  /// Rotates x (rows, heads, head_dim) in place, row i by position i. ValueError when the size does not fit.
  void rotate(std::span<float> x) const { apply(x, 1); }
  /// The gradient of rotate: the inverse rotation.
  void rotate_back(std::span<float> x) const { apply(x, -1); }

 private:
  void apply(std::span<float> x, float direction) const;
  Index rows_, half_;
  std::vector<float> cosines_, sines_;
};

class RETICLE_API Rope {
 public:
  /// ValueError unless head_dim is even and positive, and theta and the scaling are positive and finite.
  Rope(Index head_dim, double theta, const std::optional<RopeScaling>& scaling);
  /// From the frequencies of another Rope.
  explicit Rope(std::vector<float> inverse_frequencies) : inverse_frequencies_(std::move(inverse_frequencies)) {}
  /// (head_dim / 2), as float: angles are products of floats, as in the models' training code.
  std::span<const float> inverse_frequencies() const { return inverse_frequencies_; }
  RopeTable at(std::span<const Index> positions) const { return {inverse_frequencies_, positions}; }

 private:
  std::vector<float> inverse_frequencies_;
};

/// ShapeError unless `cu_seqlens`, where packed sequences begin and the last one ends, ascends from 0 to `tokens`.
RETICLE_API void require_offsets(std::span<const Index> cu_seqlens, Index tokens, std::string_view name);
/// 0, stride, 2 * stride, ... for each packed sequence.
RETICLE_API std::vector<Index> packed_positions(std::span<const Index> cu_seqlens, Index stride = 1);

}  // namespace reticle
