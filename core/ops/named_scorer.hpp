// Scorers by name, for selectors that leave the choice to the config.
#pragma once

#include <span>
#include <vector>

#include <reticle/core/base/context.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/pooled_keys.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle {

/// What a key's score is, for a query:
///   exact        scaling * q.k, attention's own
///   value_aware  exact + log |v|: the size of what the key would add (VATP, Guo et al. 2024)
///   page_bounds  the upper bound of exact over the key's page (Quest, Tang et al. 2024)
///   page_means   scaling * q . mean of the key's page; the last, incomplete page by its own keys
///   key_norm     -|k| to 2^-15 of it, whatever the query (Devoto et al. 2024)
/// All add the attention mask, and give -infinity to keys that it or causality forbids.
enum class ScorerName : std::uint8_t { exact, value_aware, page_bounds, page_means, key_norm };

/// What a named scorer keeps across decode steps; only new keys are read.
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
  /// Takes in the keys that `state` has not seen.
  NamedScorer(ScorerName name, Index page_size, const AttentionInputs& inputs, NamedScorerState& state);
  /// As Scorer.
  void operator()(std::span<const RowId> rows, float* scores) const;

 private:
  void score_row(RowId row, float* scores) const;

  ScorerName name_;
  Index page_size_;
  const AttentionInputs& inputs_;
  NamedScorerState& state_;
};

}  // namespace reticle
