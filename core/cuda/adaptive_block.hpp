// Adaptive sampling of a row on a GPU: draws the same keys as maskers/sampling/adaptive_sampling.cpp, from the same
// stream. Weights are computed only for the keys chosen already and for the sampled keys.
#pragma once

#include <cmath>

#include <reticle/core/cuda/sample_block.hpp>
#include <reticle/core/ops/softmax_mass.hpp>
#include <reticle/core/ops/statistics.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

struct AdaptiveShared {
  SampleShared sample;
  double scan[kWarp + 1];
  std::uint32_t largest;
};

/// Adds p to the keys i < count that a rule of kind `adaptive` draws; keys with p[i] > 0 were chosen before.
template <class Block>
RETICLE_HD void sample_adaptively(const Block& block, AdaptiveShared& shared, const Rule& rule, const float* scores,
                                  Index keys, Index count, const Philox& random, std::int32_t* draws,
                                  std::int32_t* first, float* p) {
  block.each([&](int thread) {
    if (thread == 0) shared.largest = 0;
  });
  block.sync();
  block.each([&](int thread) {
    std::uint32_t largest = 0;
    for (Index i = thread; i < count; i += block.threads()) {
      const std::uint32_t key = order_key(scores[i]);
      largest = key > largest ? key : largest;
    }
    block.keep_max(&shared.largest, largest);
  });
  block.sync();
  const std::uint32_t largest = shared.largest;
  const MassScale scale(largest == 0 ? 1 : largest, keys);
  const auto weight = [&](Index i) {
    const std::uint32_t key = order_key(scores[i]);
    return key == 0 ? 0.0 : scale.weight(key);
  };
  PerThread<Block, double> sums(block), squares(block);
  block.each([&](int thread) {
    double sum = 0;
    for (Index i = thread; i < count; i += block.threads()) {
      if (p[i] > 0) sum += weight(i) / static_cast<double>(p[i]);
    }
    sums[thread] = sum;
  });
  const double chosen = block.exclusive_scan(sums, shared.scan);
  const auto is_candidate = [&](Index i) { return i >= rule.first && i < rule.last && p[i] == 0; };
  const std::int32_t n = count_candidates(block, shared.sample, is_candidate, count);
  if (n == 0) return;
  const Index given = rule.base.resolve(n) < 2 ? 2 : rule.base.resolve(n);
  const auto base = static_cast<std::int32_t>(given < n ? given : n);
  block.each([&](int thread) { sums[thread] = squares[thread] = 0; });
  const std::uint32_t number =
      sample_row(block, shared.sample, is_candidate, count, n, base, random, 0, draws, first, [&](int thread, Index i) {
        sums[thread] += weight(i);
        squares[thread] += weight(i) * weight(i);
      });
  const double sum = block.exclusive_scan(sums, shared.scan), square = block.exclusive_scan(squares, shared.scan);
  const auto drawn = static_cast<double>(base);
  const double mean = sum / drawn, spread = square - sum * mean;
  const double deviation = base < 2 || !(spread > 0) ? 0 : std::sqrt(spread / (drawn - 1));
  const Index needed = adaptive_budget(n, mean, deviation, chosen, rule.epsilon, rule.quantile);
  const Index budget = needed < base ? base : needed < n ? needed : n;
  const auto share = static_cast<float>(static_cast<double>(budget) / static_cast<double>(n));
  sample_row(block, shared.sample, is_candidate, count, n, static_cast<std::int32_t>(budget), random, number, draws,
             first, [&](int, Index i) { p[i] = share; });
}

}  // namespace reticle::cuda
