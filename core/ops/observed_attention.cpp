#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/observed_attention.hpp>
#include <reticle/core/ops/order_key.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle {
namespace {

/// Pools over the values at most kernel / 2 away. Beyond the edges there are no values, but the mean divides by
/// `kernel` there too.
void pool(std::vector<float>& values, Index kernel, Pooling pooling) {
  const Index n = static_cast<Index>(values.size()), half = kernel / 2;
  const std::vector<float> from = values;
  for (Index i = 0; i < n; ++i) {
    double sum = 0;
    float largest = 0;
    for (Index j = std::max<Index>(0, i - half); j <= std::min(n - 1, i + half); ++j) {
      sum += static_cast<double>(from[static_cast<std::size_t>(j)]);
      largest = std::max(largest, from[static_cast<std::size_t>(j)]);
    }
    values[static_cast<std::size_t>(i)] =
        pooling == Pooling::avg ? static_cast<float>(sum / static_cast<double>(kernel)) : largest;
  }
}

}  // namespace

void softmax(std::span<float> scores) {
  std::uint32_t largest = 0;
  for (const float score : scores) largest = std::max(largest, order_key(score));
  const float max = largest == 0 ? 0 : score_of_key(largest);
  double sum = 0;
  for (float& score : scores) {
    const std::uint32_t key = order_key(score);
    score = key == 0 ? 0.0f : key == largest ? 1.0f : std::exp(score - max);
    sum += static_cast<double>(score);
  }
  if (sum == 0) return;
  const auto factor = static_cast<float>(1 / sum);
  for (float& score : scores) score *= factor;
}

void for_each_attention_row(const AttentionInputs& given, Index batch, Index head, Index first, Index end,
                            FunctionRef<void(Index, std::span<const float>)> row) {
  AttentionInputs inputs = given;
  inputs.causal = true;
  const ExactScorer scorer(inputs);
  const auto keys = static_cast<std::size_t>(inputs.keys_length());
  std::vector<float> scores(keys * kQueriesPerPass);
  for (Index query = first; query < end; query += kQueriesPerPass) {
    const Index rows = std::min<Index>(kQueriesPerPass, end - query);
    std::array<RowId, kQueriesPerPass> together;
    for (Index r = 0; r < rows; ++r) together[static_cast<std::size_t>(r)] = {batch, head, query + r};
    scorer({together.data(), static_cast<std::size_t>(rows)}, scores.data());
    for (Index r = 0; r < rows; ++r) {
      const std::span<float> row_scores(scores.data() + static_cast<std::size_t>(r) * keys, keys);
      softmax(row_scores.first(static_cast<std::size_t>(inputs.visible_keys(query + r))));
      std::fill(row_scores.begin() + inputs.visible_keys(query + r), row_scores.end(), 0.0f);
      row(query + r, row_scores);
    }
  }
}

void attend_to(const AttentionInputs& inputs, RowId row, std::span<const std::int32_t> keys,
               std::vector<float>& probabilities) {
  std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
  load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, inputs.scaling, query);
  probabilities.resize(keys.size());
  const Index kv_head = inputs.kv_head(row.head);
  std::vector<std::int32_t> rows(keys.size());
  KeyRows(inputs, row.batch, kv_head).find(keys, rows.data());
  dot_gather(query.data(), 1, head_matrix(inputs.keys, row.batch, kv_head), rows.data(),
             static_cast<Index>(keys.size()), probabilities.data(), 0);
  if (inputs.attention_mask) {
    const AttentionMaskRow bias(*inputs.attention_mask, row);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const float added = bias(keys[i]);  // a forbidden key gets -infinity even if its score is NaN
      probabilities[i] = added == -std::numeric_limits<float>::infinity() ? added : probabilities[i] + added;
    }
  }
  softmax(probabilities);
}

std::vector<float> importance_of_keys(const AttentionInputs& inputs, Index batch, Index head, Index heads,
                                      const Importance& rule) {
  const Index keys = inputs.keys_length(), queries = inputs.queries_length();
  const Index window = std::min(rule.window, queries);
  std::vector<double> total(static_cast<std::size_t>(keys), 0);
  for (Index h = head; h < head + heads; ++h) {
    for_each_attention_row(
        inputs, batch, h, queries - window, queries, [&](Index, std::span<const float> probabilities) {
          for (std::size_t key = 0; key < total.size(); ++key) {
            const auto p = static_cast<double>(probabilities[key]);
            total[key] = rule.reduce == Importance::Reduce::sum ? total[key] + p : std::max(total[key], p);
          }
        });
  }
  std::vector<float> importance(total.begin(), total.end());
  if (!rule.pool_window) importance.resize(static_cast<std::size_t>(std::max<Index>(0, keys - window)));
  pool(importance, rule.kernel_size, rule.pooling);
  importance.resize(static_cast<std::size_t>(keys), 0.0f);
  return importance;
}

}  // namespace reticle
