// Scorers by name, for maskers whose config names the scorer.
#pragma once

#include <span>
#include <vector>

#include <reticle/core/base/context.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/pooled_keys.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle {

/// The score of a key k with value v for a query q:
///   exact        scaling * q.k, as attention computes it
///   value_aware  exact + log |v|: the size of what the key would add (VATP, Guo et al. 2024)
///   page_bounds  the upper bound of exact over the key's page (Quest, Tang et al. 2024)
///   page_means   scaling * q . mean of the key's page; keys of the last, incomplete page: exact
///   key_norm     -|k|, to a relative precision of 2^-15, for every query (Devoto et al. 2024)
/// All add the attention mask, and give -infinity to keys that it or causality forbids.
enum class ScorerName : std::uint8_t { exact, value_aware, page_bounds, page_means, key_norm };

/// The state of a named scorer across decode steps; only new keys are read.
struct NamedScorerState {
  SeenKeys seen;
  PageBounds bounds;
  PooledKeys means;
  std::vector<std::vector<float>> of_key;  // per (batch, KV head): log |v| or -|k| of every key

  void truncate(Index keys) {
    seen.truncate(keys);
    bounds.truncate(keys);
    means.truncate(keys);
  }
  void select(std::span<const Index> rows) {
    select_rows(of_key, rows, seen.batch());
    seen.select(rows);
    bounds.select(rows);
    means.select(rows);
  }
};

class RETICLE_API NamedScorer {
 public:
  /// Reads the keys that `state` has not seen.
  NamedScorer(ScorerName name, Index page_size, const AttentionInputs& inputs, NamedScorerState& state);
  /// See Scorer (scores.hpp).
  void operator()(std::span<const RowId> rows, float* scores) const;

 private:
  void score_row(RowId row, float* scores) const;

  ScorerName name_;
  Index page_size_;
  const AttentionInputs& inputs_;
  NamedScorerState& state_;
};

}  // namespace reticle
