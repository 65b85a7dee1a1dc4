// The executor: decoding over 32k keys, sparse against our own dense in one run, by density and by how the kept keys
// lie, with the kept keys' and values' bytes as a share of read bandwidth (of one thread, times threads).
#include <random>

#include <benchmark/benchmark.h>

#include <reticle/attention/executor.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "limits.hpp"

namespace reticle {
namespace {

struct Decode {
  static constexpr Index kHeads = 32, kKvHeads = 8, kKeys = 32768, kHeadDim = 128;
  Tensor queries, keys, values;
  AttentionInputs inputs;

  explicit Decode(DType dtype) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto make = [&](Index heads, Index length) {
      Tensor tensor(DType::f32, {1, heads, length, kHeadDim});
      // Few distinct numbers suffice; drawing 32 million is what would take time.
      std::vector<float> numbers(4099);
      for (float& number : numbers) number = normal(random);
      std::size_t at = 0;
      for (float& value : tensor.span<float>()) value = numbers[at++ % numbers.size()];
      return Tensor::copy(tensor, dtype);
    };
    queries = make(kHeads, 1);
    keys = make(kKvHeads, kKeys);
    values = make(kKvHeads, kKeys);
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    inputs.scaling = 0.088f;
  }
};

Mask random_mask(const MaskShape& shape, double density, Index run, bool weighted) {
  std::mt19937 random(7);
  std::bernoulli_distribution keep(density);
  return Mask::from_selections(
      shape,
      [&](RowId, Selection& selection) {
        for (Index key = 0; key + run <= shape.keys; key += run) {
          if (!keep(random)) continue;
          for (Index i = 0; i < run; ++i) {
            selection.indices.push_back(static_cast<std::int32_t>(key + i));
            if (weighted) selection.p.push_back(0.5f);
          }
        }
      },
      Context(1));
}

/// range(0): per cent kept (100: the Full mask), range(1): keys per run.
void decode(benchmark::State& state, DType dtype, bool weighted) {
  const Decode problem(dtype);
  const MaskShape shape = problem.inputs.shape();
  const Mask mask = state.range(0) == 100
                        ? Mask::full(shape)
                        : random_mask(shape, static_cast<double>(state.range(0)) / 100, state.range(1), weighted);
  const Context context;
  for (auto _ : state) benchmark::DoNotOptimize(attention(problem.inputs, mask, {}, context));
  const double bytes = 2.0 * static_cast<double>(mask.nnz() * Decode::kHeadDim * size_of(dtype));
  state.counters["GB/s"] = benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of read bandwidth"] = benchmark::Counter(bytes / (bench::read_bandwidth() * context.pool->threads()),
                                                           benchmark::Counter::kIsIterationInvariantRate);
}
void cases(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({100, 1})->Args({10, 1})->Args({10, 16})->Args({2, 1})->Args({2, 16});
  benchmark->ArgNames({"percent", "run"})->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK_CAPTURE(decode, f32, DType::f32, false)->Apply(cases);
BENCHMARK_CAPTURE(decode, bf16, DType::bf16, false)->Apply(cases);
BENCHMARK_CAPTURE(decode, bf16_weighted, DType::bf16, true)
    ->Args({10, 1})
    ->ArgNames({"percent", "run"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace reticle
