// The algebra: union of two masks of 1024 x 32768, by representation and density, one thread, with the bytes read and
// written as a share of copy bandwidth; and the mask of a million queries and keys.
#include <random>
#include <string>
#include <sys/resource.h>

#include <benchmark/benchmark.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "limits.hpp"

namespace reticle {
namespace {

Mask random_mask(double density, bool weighted, std::uint32_t seed) {
  const MaskShape shape{1, 1, 1024, 32768};
  std::mt19937 random(seed);
  std::geometric_distribution<std::int32_t> gap(density);
  return Mask::from_selections(
      shape,
      [&](RowId, Selection& selection) {
        for (std::int32_t key = gap(random); key < shape.keys; key += 1 + gap(random)) {
          selection.indices.push_back(key);
          if (weighted) selection.p.push_back(static_cast<float>(1 + random() % 64) / 64);
        }
      },
      Context(1));
}

/// Sink 128 + window 1024, causal, over 2^20 x 2^20: time, bytes of the mask, and growth of the process's peak memory.
void million(benchmark::State& state) {
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) * 1024;
  };
  const Index n = 1 << 20;
  const MaskShape shape{1, 32, n, n};
  const double before = peak();
  Mask mask;
  for (auto _ : state) {
    mask = Mask();
    mask = merge(Mask::intervals(shape.one_row(),
                                 [](RowId) {
                                   return Interval{0, 128};
                                 }),
                 Mask::intervals(shape.one_head(), [](RowId row) {
                   const auto end = static_cast<std::int32_t>(row.query + 1);
                   return Interval{end - 1024, end};
                 }));
    mask = restrict_causal(mask);
    benchmark::DoNotOptimize(mask);
  }
  state.counters["mask MB"] = static_cast<double>(mask.bytes()) / 1e6;
  state.counters["peak MB"] = (peak() - before) / 1e6;
}
// First, because later benchmarks raise the peak memory of the process.
BENCHMARK(million)->Unit(benchmark::kMillisecond)->Iterations(1);

/// range(0): density in tenths of a percent.
void union_of(benchmark::State& state, bool weighted, MaskKind kind) {
  const Context one(1);
  const double density = static_cast<double>(state.range(0)) / 1000;
  const Mask a = convert(random_mask(density, weighted, 1), kind), b = convert(random_mask(density, weighted, 2), kind);
  Mask result;
  for (auto _ : state) {
    result = merge(a, b, MergeRule::add, one);
    benchmark::DoNotOptimize(result);
  }
  const double moved = static_cast<double>(a.bytes() + b.bytes() + result.bytes());
  state.counters["GB/s"] = benchmark::Counter(moved / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of copy bandwidth"] =
      benchmark::Counter(moved / bench::copy_bandwidth(), benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel("result is " + std::string(name_of(result.kind())));
}
BENCHMARK_CAPTURE(union_of, csr, false, MaskKind::csr)
    ->Arg(1)
    ->Arg(10)
    ->Arg(100)
    ->Arg(300)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(union_of, csr_weighted, true, MaskKind::csr)
    ->Arg(1)
    ->Arg(10)
    ->Arg(100)
    ->Arg(300)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(union_of, bits, false, MaskKind::bits)->Arg(100)->Arg(300)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace reticle
