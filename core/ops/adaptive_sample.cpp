#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/ops/adaptive_sample.hpp>
#include <reticle/core/ops/candidates.hpp>
#include <reticle/core/ops/order_key.hpp>
#include <reticle/core/ops/select.hpp>
#include <reticle/core/ops/statistics.hpp>

namespace reticle {

RowWeights::RowWeights(std::span<const float> row_scores, const Mask& previous, RowId row) : scores(row_scores) {
  if (const std::uint32_t largest = order_key(highest(scores)); largest != 0)
    scale.emplace(largest, static_cast<Index>(scores.size()));
  previous.row(row, chosen);
  if (!scale) return;
  // Most keys were chosen for certain (p = 1); their weights are computed in vectors.
  struct Scratch {
    std::vector<float> certain;
    std::vector<std::uint64_t> certain_masses;
  };
  static thread_local constinit ThreadScratch<Scratch> scratch;
  auto& [certain, certain_masses] = scratch.get();
  certain.clear();
  for (const Run& run : chosen) {
    const auto run_scores =
        scores.subspan(static_cast<std::size_t>(run.begin), static_cast<std::size_t>(run.end - run.begin));
    if (run.p == 1) {
      certain.insert(certain.end(), run_scores.begin(), run_scores.end());
    } else {
      for (Index key = run.begin; key < run.end; ++key) chosen_sum += of(key) / static_cast<double>(run.p);
    }
  }
  certain_masses.resize(certain.size());
  masses(*scale, certain, certain_masses.data());
  chosen_sum += scale->as_number(std::accumulate(certain_masses.begin(), certain_masses.end(), std::uint64_t{0}));
}

double RowWeights::of(Index key) const {
  const std::uint32_t order = order_key(scores[static_cast<std::size_t>(key)]);
  return scale && order != 0 ? scale->weight(order) : 0;
}

std::pair<double, double> RowWeights::moments(std::span<const std::int32_t> keys) const {
  std::vector<double> key_weights;
  key_weights.reserve(keys.size());
  double sum = 0, squares = 0;
  for (const std::int32_t key : keys) sum += key_weights.emplace_back(of(key));
  const double mean = sum / static_cast<double>(keys.size());
  for (const double weight : key_weights) squares += (weight - mean) * (weight - mean);
  return {mean, keys.size() < 2 ? 0 : std::sqrt(squares / static_cast<double>(keys.size() - 1))};
}

Index base_sample_size(const Size& base, Index n) { return std::max<Index>(2, base.resolve(n)); }

void adaptive_sample(const Rule& rule, const AttentionInputs& inputs, const RowWeights& weights, RowId row,
                     Philox& random, Selection& selection) {
  const Gaps candidates = candidates_of(inputs, row, weights.chosen, rule.first, rule.last);
  const Index n = candidates.size();
  if (n == 0) return;
  const Index base_size = base_sample_size(rule.base, n);
  std::vector<std::int32_t> base;
  sample_without_replacement(n, base_size, random, base);
  candidates.to_positions(base);
  const auto [mean, deviation] = weights.moments(base);
  const Index needed = adaptive_budget(n, mean, deviation, weights.chosen_sum, rule.epsilon, rule.quantile);
  const Index budget = std::min(n, std::max(base_size, needed));
  sample_without_replacement(n, budget, random, selection.indices);
  candidates.to_positions(selection.indices);
  selection.p.assign(selection.indices.size(),
                     static_cast<float>(static_cast<double>(budget) / static_cast<double>(n)));
}

}  // namespace reticle
