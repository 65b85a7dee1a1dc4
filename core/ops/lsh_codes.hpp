// Locality-sensitive hash codes of one layer's keys: sign bits of random projections, in several tables. MagicPIG (Chen
// et al. 2024).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/lsh.hpp>

namespace reticle {

/// Kept across decode steps, in which only new keys are hashed: a code per table and key, the mean key, and the largest
/// norm of each sequence.
class RETICLE_API LshCodes {
 public:
  /// Hashes the keys beyond those seen. Recorded projections, an extra "projection" of (d + lifted, L * K) or of (KV
  /// heads, d + lifted, L * K), F32, replace the recipe's; ShapeError when they do not fit.
  void update(const AttentionInputs& inputs, const LshRecipe& recipe, const Context& context);
  void truncate(Index keys);
  void select(std::span<const Index> rows);

  /// Selects the keys that collide with the row's query and that `previous` has not chosen; p is the probability of a
  /// collision.
  void sample(const AttentionInputs& inputs, const Mask& previous, RowId row, Selection& selection) const;

 private:
  /// The largest norms when `keys` keys had been seen; codes of keys hashed by then are based on them.
  struct Norms {
    Index keys;
    std::vector<float> largest;
    bool single;  // the last update brought one key
  };

  Index code_stride() const { return recipe_.tables * recipe_.code_bytes(); }
  void begin(const AttentionInputs& inputs);
  void set_means(const AttentionInputs& inputs);
  /// Writes the codes of up to kQueriesPerPass vectors (n, d + lifted), for which the projections are read once.
  void write_codes(Index kv_head, std::span<const float> vectors, std::uint8_t* codes) const;
  /// Calls use(position, key) with each centred key that has not been seen.
  template <class Use>
  void for_new_keys(const AttentionInputs& inputs, Index head, Use&& use) const;

  LshRecipe recipe_;
  std::vector<float> projections_;                // per KV head, or for all of them: (L * K, d + lifted)
  std::vector<std::vector<float>> means_;         // per (batch, KV head): (d)
  std::vector<std::vector<std::uint8_t>> codes_;  // per (batch, KV head): (keys, L, bytes per code)
  std::vector<float> largest_norm_;               // per batch
  Index head_dim_ = 0, kv_heads_ = 0;
  SeenKeys seen_;
  std::vector<Norms> history_;
  Index first_query_ = 0;  // position of the first call's first query; a sequence cut there or before starts anew
  Index resume_ = 0;       // keys left by truncate, which the next update hashes first, on their own
};

}  // namespace reticle
