// Selection: the k highest of one row of scores, one thread, beside std::nth_element over the positions (portable and
// exact), with the scores' bytes as a share of read bandwidth.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <reticle/core/ops/select.hpp>

#include "limits.hpp"

namespace reticle {
namespace {

enum class Row : std::uint8_t { normal, equal, ascending, mostly_forbidden };

std::vector<float> scores_of(Row kind, Index n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> scores(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < scores.size(); ++i) {
    switch (kind) {
      case Row::normal:
        scores[i] = normal(random);
        break;
      case Row::equal:
        scores[i] = 1;
        break;
      case Row::ascending:
        scores[i] = static_cast<float>(i);
        break;
      case Row::mostly_forbidden:
        scores[i] = i < scores.size() / 4 ? normal(random) : -std::numeric_limits<float>::infinity();
        break;
    }
  }
  return scores;
}

void count_bytes(benchmark::State& state) {
  const double bytes = static_cast<double>(state.range(0)) * sizeof(float);
  state.counters["of read bandwidth"] =
      benchmark::Counter(bytes / bench::read_bandwidth(1), benchmark::Counter::kIsIterationInvariantRate);
}

void reticle_top_k(benchmark::State& state, Row kind) {
  const std::vector<float> scores = scores_of(kind, state.range(0));
  std::vector<std::int32_t> selected;
  for (auto _ : state) {
    selected.clear();
    top_k(scores, state.range(1), selected);
    benchmark::DoNotOptimize(selected.data());
  }
  count_bytes(state);
}

/// range(1): the share of the mass, in percent.
void reticle_top_p(benchmark::State& state, Row kind) {
  const std::vector<float> scores = scores_of(kind, state.range(0));
  std::vector<std::int32_t> selected;
  for (auto _ : state) {
    selected.clear();
    top_p(scores, static_cast<double>(state.range(1)) / 100, selected);
    benchmark::DoNotOptimize(selected.data());
  }
  count_bytes(state);
}

void nth_element(benchmark::State& state, Row kind) {
  const std::vector<float> scores = scores_of(kind, state.range(0));
  std::vector<std::int32_t> order(scores.size());
  for (auto _ : state) {
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + state.range(1), order.end(), [&](std::int32_t a, std::int32_t b) {
      return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
    });
    std::sort(order.begin(), order.begin() + state.range(1));
    benchmark::DoNotOptimize(order.data());
  }
  count_bytes(state);
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  for (const Index n : {4096, 32768, 131072, 1048576}) {
    for (const Index k : {256, 2048}) benchmark->Args({n, k});
  }
  benchmark->ArgNames({"n", "k"})->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(reticle_top_k, normal, Row::normal)->Apply(sizes);
BENCHMARK_CAPTURE(nth_element, normal, Row::normal)->Apply(sizes);
BENCHMARK_CAPTURE(reticle_top_k, equal, Row::equal)->Args({131072, 2048})->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(reticle_top_k, ascending, Row::ascending)->Args({131072, 2048})->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(reticle_top_k, mostly_forbidden, Row::mostly_forbidden)
    ->Args({131072, 2048})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(reticle_top_p, normal, Row::normal)
    ->ArgsProduct({{4096, 32768, 131072}, {90}})
    ->ArgNames({"n", "percent"})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace reticle
