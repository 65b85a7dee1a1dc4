// The executor. Decoding over 32k keys: sparse against Reticle's dense attention in one run, by density and by layout
// of the kept keys, with the bytes of distinct keys and values as a share of read bandwidth. Prefill: dense, causal and
// block-sparse, with the flops as a share of register-only multiply-adds. And the premise of the cost model in
// attention/plan.cpp: the cost of a key in a tile of 64 rows against that of a gathered key.
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <reticle/attention/executor.hpp>
#include <reticle/core/tensor/tensor.hpp>

#include "limits.hpp"

namespace reticle {
namespace {

struct Problem {
  Tensor queries, keys, values;
  AttentionInputs inputs;

  Problem(DType dtype, Index heads, Index kv_heads, Index queries_length, Index keys_length, Index head_dim) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto make = [&](Index tensor_heads, Index length) {
      Tensor tensor(DType::f32, {1, tensor_heads, length, head_dim});
      // A few distinct numbers suffice; drawing 32 million of them would take longer than the benchmark.
      std::vector<float> numbers(4099);
      for (float& number : numbers) number = normal(random);
      std::size_t at = 0;
      for (float& value : tensor.span<float>()) value = numbers[at++ % numbers.size()];
      return Tensor::copy(tensor, dtype);
    };
    queries = make(heads, queries_length);
    keys = make(kv_heads, keys_length);
    values = make(kv_heads, keys_length);
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

/// Number of distinct keys that the heads of each KV head attend to, summed over KV heads: the keys read from memory.
Index keys_read(const AttentionInputs& inputs, const Mask& mask) {
  Index count = 0;
  for (Index kv_head = 0; kv_head < inputs.kv_heads(); ++kv_head) {
    std::vector<Run> all;
    for (Index head = kv_head * inputs.group(); head < (kv_head + 1) * inputs.group(); ++head) {
      std::vector<Run> runs, both;
      mask.row({0, head, 0}, runs);
      combine_rows<row_op::Max>(all, runs, [&](Run run) { both.push_back(run); });
      all.swap(both);
    }
    for (const Run& run : all) count += run.end - run.begin;
  }
  return count;
}

/// range(0): percent of keys kept (100: the Full mask), range(1): keys per run.
void decode(benchmark::State& state, DType dtype, bool weighted) {
  const Problem problem(dtype, 32, 8, 1, 32768, 128);
  const MaskShape shape = problem.inputs.shape();
  const Mask mask = state.range(0) == 100
                        ? Mask::full(shape)
                        : random_mask(shape, static_cast<double>(state.range(0)) / 100, state.range(1), weighted);
  const Context context;
  for (auto _ : state) benchmark::DoNotOptimize(attention(problem.inputs, mask, {}, context));
  const double bytes =
      2.0 * static_cast<double>(keys_read(problem.inputs, mask) * problem.inputs.head_dim() * size_of(dtype));
  state.counters["GB/s"] = benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of read bandwidth"] = benchmark::Counter(bytes / bench::read_bandwidth(context.pool->threads()),
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

/// Reports flops of the mask's entries per second, also as a share of the threads' peak.
void report_flops(benchmark::State& state, const Problem& problem, const Mask& mask, const Context& context) {
  const double flops = 4.0 * static_cast<double>(mask.nnz() * problem.inputs.head_dim());
  using benchmark::Counter;
  state.counters["Gflop/s"] = Counter(flops / 1e9, Counter::kIsIterationInvariantRate);
  state.counters["of peak"] =
      Counter(flops / (bench::multiply_add_peak() * context.pool->threads()), Counter::kIsIterationInvariantRate);
}

/// range(0): length, range(1): head size.
void prefill_full(benchmark::State& state, DType dtype, bool causal) {
  const Problem problem(dtype, 8, 2, state.range(0), state.range(0), state.range(1));
  const Mask full = Mask::full(problem.inputs.shape());
  const Mask mask = causal ? Mask::intervals(problem.inputs.shape().one_head(),
                                             [](RowId row) {
                                               return Interval{0, static_cast<std::int32_t>(row.query + 1)};
                                             })
                           : full;
  AttentionInputs inputs = problem.inputs;
  inputs.causal = causal;
  const Context context;
  for (auto _ : state) benchmark::DoNotOptimize(attention(inputs, full, {}, context));
  report_flops(state, problem, mask, context);
}
void lengths(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgsProduct({{1024, 4096}, {64, 128}})->ArgNames({"length", "d"});
  benchmark->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK_CAPTURE(prefill_full, f32, DType::f32, false)->Apply(lengths);
BENCHMARK_CAPTURE(prefill_full, f32_causal, DType::f32, true)->Apply(lengths);
BENCHMARK_CAPTURE(prefill_full, bf16, DType::bf16, false)->Apply(lengths);

/// Blocks of 64 x 64, each kept with a probability, per head. range(0): percent kept, range(1): length.
void prefill_blocks(benchmark::State& state) {
  const Index length = state.range(1);
  const Problem problem(DType::f32, 8, 2, length, length, 128);
  std::mt19937 random(3);
  std::bernoulli_distribution keep(static_cast<double>(state.range(0)) / 100);
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(8 * length / 64 * length / 64));
  for (std::uint8_t& block : kept) block = keep(random) ? 1 : 0;
  const Mask mask = Mask::from_runs(problem.inputs.shape(), [&](RowId row, FunctionRef<void(Run)> emit) {
    const Index blocks = length / 64;
    for (Index b = 0; b < blocks; ++b) {
      if (kept[static_cast<std::size_t>((row.head * blocks + row.query / 64) * blocks + b)] != 0)
        emit(Run{static_cast<std::int32_t>(64 * b), static_cast<std::int32_t>(64 * b + 64), 1.0f});
    }
  });
  const Context context;
  for (auto _ : state) benchmark::DoNotOptimize(attention(problem.inputs, mask, {}, context));
  report_flops(state, problem, mask, context);
}
BENCHMARK(prefill_blocks)
    ->ArgsProduct({{50, 25, 10}, {8192}})
    ->ArgNames({"percent", "length"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// Random tokens in every row. range(0): percent kept.
void prefill_tokens(benchmark::State& state) {
  const Problem problem(DType::f32, 4, 1, 1024, 4096, 128);
  const Mask mask = random_mask(problem.inputs.shape(), static_cast<double>(state.range(0)) / 100, 1, false);
  const Context context;
  for (auto _ : state) benchmark::DoNotOptimize(attention(problem.inputs, mask, {}, context));
  report_flops(state, problem, mask, context);
}
BENCHMARK(prefill_tokens)
    ->Arg(2)
    ->Arg(6)
    ->Arg(10)
    ->Arg(12)
    ->Arg(15)
    ->Arg(20)
    ->Arg(50)
    ->Arg(100)
    ->ArgName("percent")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// range(0): number of rows that attend to all of 4096 keys in cache: 1 is a gather, 64 a tile. range(1): head size.
void key(benchmark::State& state, DType dtype) {
  const Problem problem(dtype, 1, 1, state.range(0), 4096, state.range(1));
  const Mask mask = Mask::full(problem.inputs.shape());
  const Context context(1);
  for (auto _ : state) benchmark::DoNotOptimize(attention(problem.inputs, mask, {}, context));
  state.counters["per key"] =
      benchmark::Counter(4096, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK_CAPTURE(key, f32, DType::f32)
    ->ArgsProduct({{1, 2, 4, 8, 16, 32, 64}, {64, 128}})
    ->ArgNames({"rows", "d"})
    ->UseRealTime();
BENCHMARK_CAPTURE(key, bf16, DType::bf16)
    ->ArgsProduct({{1, 2, 4, 8, 16, 32, 64}, {64, 128}})
    ->ArgNames({"rows", "d"})
    ->UseRealTime();

/// The cost of planning alone, to compare with the attention that it prepares. range(0): percent of random tokens kept,
/// range(1): queries.
void plan_alone(benchmark::State& state) {
  const Problem problem(DType::f32, 32, 8, state.range(1), 32768, 128);
  const Mask mask = random_mask(problem.inputs.shape(), static_cast<double>(state.range(0)) / 100, 1, false);
  const Context context;
  for (auto _ : state) {
    const Tiling tiling(problem.inputs, mask);
    context.for_each_chunk(tiling.count(), 1, [&](Index, Index begin, Index) {
      TilePlanner planner(problem.inputs, mask);
      benchmark::DoNotOptimize(planner.plan(tiling.rows(begin)));
    });
  }
}
BENCHMARK(plan_alone)
    ->ArgsProduct({{2, 10, 50}, {1, 64}})
    ->ArgNames({"percent", "queries"})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace reticle
