// Product-quantised keys of one layer: codebooks trained on a sequence's first keys, and a code for every key. PQCache
// (Zhang et al. 2024).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/ops/product_quantiser.hpp>

namespace reticle {

/// Kept across decode steps, in which only new keys are coded.
class RETICLE_API QuantisedKeys {
 public:
  /// Trains the codebooks at the first call, then codes the keys beyond those seen, except the first
  /// recipe.init_offset. Recorded extras "centroids" (b, hkv, parts, count, width) F32 and "codes" (b, keys, hkv,
  /// parts) I64 replace the trained ones; ShapeError when they do not fit.
  void update(const AttentionInputs& inputs, const PqRecipe& recipe, const Context& context);
  void truncate(Index keys);
  void select(std::span<const Index> rows);

  /// Whether no key has a code.
  bool empty() const { return coded_ == 0; }
  /// scores[k] = sum over parts of q_part . centroid(key_part) (+ attention mask); -infinity for keys without a code
  /// and those that causality or the mask forbids.
  void score(const AttentionInputs& inputs, RowId row, float* scores) const;

 private:
  std::vector<ProductQuantiser> books_;            // per (batch, KV head)
  std::vector<std::vector<std::uint16_t>> codes_;  // (keys beyond init_offset, parts)
  SeenKeys seen_;
  PqRecipe recipe_;
  Index coded_ = 0;        // keys with a code
  Index trained_ = 0;      // keys that the codebooks were trained on
  Index first_query_ = 0;  // position of the training call's first query; a sequence cut there or before starts anew
  Index train_on_ = 0;     // keys to train on again after truncate; 0: all there are
};

}  // namespace reticle
