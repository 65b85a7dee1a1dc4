// Scorers, and the loop that turns a scorer and a selector into a mask.
#pragma once

#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {

/// Scores every key for at most kQueriesPerPass rows of one KV head, neighbouring queries of a head or, where each has
/// one query, neighbouring heads: scores[r * keys_length + k]. -infinity for keys that causality or the attention mask
/// forbids. Called from many threads.
using Scorer = FunctionRef<void(std::span<const RowId> rows, float* scores)>;

/// scaling * q . k + attention_mask: what attention itself computes. The "oracle" of every approximation.
class RETICLE_API ExactScorer {
 public:
  explicit ExactScorer(const AttentionInputs& inputs) : inputs_(inputs) {}
  void operator()(std::span<const RowId> rows, float* scores) const;

 private:
  const AttentionInputs& inputs_;
};

/// The mask of the keys that `choose` selects, row by row, from the row's scores. The score matrix is never stored: the
/// workspace is kQueriesPerPass rows of scores per thread.
RETICLE_API Mask select_scored(const AttentionInputs& inputs, Scorer scorer,
                               FunctionRef<void(RowId row, std::span<float> scores, Selection& selection)> choose,
                               const Context& context);

/// The same, except that keys which `previous` has chosen have score -infinity.
RETICLE_API Mask select_by_score(const AttentionInputs& inputs, const Mask& previous, Scorer scorer,
                                 FunctionRef<void(std::span<const float> scores, Selection& selection)> choose,
                                 const Context& context);

}  // namespace reticle
