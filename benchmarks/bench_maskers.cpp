// Maskers: peak memory of a prefill of 32k queries, time of a decode step's mask over 32k keys, and the error rate of
// adaptive_sampling on the bundled tensors.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <sys/resource.h>
#include <vector>

#include <benchmark/benchmark.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/tensor/safetensors.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {
namespace {

/// Standard normal tensors of one layer with few distinct numbers, because drawing millions would take long.
struct Problem {
  Tensor queries, keys, values;
  AttentionInputs inputs;

  Problem(Index heads, Index kv_heads, Index queries_length, Index keys_length, Index d, DType dtype) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(65537);
    for (float& number : numbers) number = normal(random);
    std::size_t at = 0;
    const auto make = [&](Index h, Index length) {
      Tensor tensor(DType::f32, {1, h, length, d});
      for (float& value : tensor.span<float>()) value = numbers[at++ % numbers.size()];
      return Tensor::copy(tensor, dtype);
    };
    queries = make(heads, queries_length);
    keys = make(kv_heads, keys_length);
    values = make(kv_heads, keys_length);
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    inputs.scaling = 1 / std::sqrt(static_cast<float>(d));
  }
};

SparseAttention pipeline(const std::string& maskers) {
  return SparseAttention::from_json("{\"maskers\": [" + maskers + "], \"causal\": true}");
}

/// Reports the mask's size and the growth of the process's peak memory.
void prefill_memory(benchmark::State& state, const char* masker) {
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_maxrss) * 1024;
  };
  const Problem problem(1, 1, 32768, 32768, 64, DType::bf16);
  const SparseAttention sparse = pipeline(std::string(R"({"type": "sink"}, {"type": "local"}, )") + masker);
  const double before = peak();
  Mask mask;
  for (auto _ : state) {
    SequenceState sequence;
    mask = sparse.mask(problem.inputs, sequence);
  }
  state.counters["mask MB"] = static_cast<double>(mask.bytes()) / 1e6;
  state.counters["peak MB"] = (peak() - before) / 1e6;
  state.counters["density"] = mask.density();
}
// First, because later benchmarks raise the peak memory of the process; in ascending order of their memory.
BENCHMARK_CAPTURE(prefill_memory, block_sparse, R"({"type": "block_sparse", "top_chunks": 16})")
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(prefill_memory, vertical_slash,
                  R"({"type": "vertical_slash", "vertical_size": 0.01, "slash_size": 0.01})")
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(prefill_memory, oracle_top_k, R"({"type": "oracle_top_k", "heavy_size": 0.02})")
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// One decode step over 32k keys, 32 query heads on 8 KV heads of 128, after the masker read the prefix.
void decode_step(benchmark::State& state, const char* masker) {
  static const Problem problem(32, 8, 1, 32768, 128, DType::bf16);
  const SparseAttention sparse = pipeline(std::string(R"({"type": "sink"}, {"type": "local"}, )") + masker);
  AttentionInputs inputs = problem.inputs;
  inputs.stage = Stage::generation;
  SequenceState sequence;
  Mask mask = sparse.mask(inputs, sequence);  // builds the state that is kept across steps
  for (auto _ : state) mask = sparse.mask(inputs, sequence);
  state.counters["density"] = mask.density();
}
BENCHMARK_CAPTURE(decode_step, oracle_top_k, R"({"type": "oracle_top_k"})")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(decode_step, oracle_top_p, R"({"type": "oracle_top_p"})")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(decode_step, quest_top_k, R"({"type": "quest_top_k"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, nsa_top_k, R"({"type": "nsa_top_k"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, moba, R"({"type": "moba"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, pq_cache, R"({"type": "pq_cache"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, socket, R"({"type": "socket"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, magic_pig, R"({"type": "magic_pig"})")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode_step, adaptive_sampling, R"({"type": "adaptive_sampling", "base_rate_sampling": 0.02})")
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// range(0): epsilon, range(1): delta, in percent. The share of rows whose softmax denominator is off by more than
/// epsilon, over all layers and heads of the bundled tensors and several seeds; the bound promises at most delta.
/// The maskers of `before` keep keys first, because the bound assumes a normal estimate, and a base sample misses
/// heavy keys.
void promise(benchmark::State& state, const std::string& before) {
  const char* folder = std::getenv("RETICLE_DATA");
  const SafeTensors file(std::filesystem::path(folder != nullptr ? folder : RETICLE_SOURCE_DATA) /
                         "attention_4096.safetensors");
  const double epsilon = static_cast<double>(state.range(0)) / 100;
  const SparseAttention sparse = pipeline(
      before + R"({"type": "adaptive_sampling", "base_rate_sampling": 0.05, "epsilon": )" + std::to_string(epsilon) +
      R"(, "delta": )" + std::to_string(static_cast<double>(state.range(1)) / 100) + "}");
  double beyond = 0, rows = 0, density = 0;
  for (auto _ : state) {
    beyond = rows = density = 0;
    for (int layer = 0; layer < 4; ++layer) {
      const std::string prefix = "layers." + std::to_string(layer) + ".";
      AttentionInputs inputs;
      inputs.queries = file.at(prefix + "queries").slice(2, 448, 512);
      inputs.keys = file.at(prefix + "keys");
      inputs.values = file.at(prefix + "values");
      inputs.scaling = 0.125f;
      inputs.layer = layer;
      inputs.causal = true;
      const AttentionResult dense = attention(inputs, Mask::full(inputs.shape()));
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        Context context;
        context.seed = seed;
        SequenceState sequence;
        const Mask mask = sparse.mask(inputs, sequence, context);
        const AttentionResult sampled = attention(inputs, mask);
        density += mask.density() / 16;
        for (std::size_t row = 0; row < static_cast<std::size_t>(inputs.shape().rows()); ++row, ++rows) {
          const double ratio = std::exp(static_cast<double>(sampled.lse.span<float>()[row]) -
                                        static_cast<double>(dense.lse.span<float>()[row]));
          beyond += std::abs(ratio - 1) > epsilon ? 1 : 0;
        }
      }
    }
  }
  state.counters["rows"] = rows;
  state.counters["density"] = density;
  state.counters["beyond epsilon"] = beyond / rows;
  state.counters["promised"] = static_cast<double>(state.range(1)) / 100;
}
void promises(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({5, 5})->Args({5, 10})->Args({5, 20})->Args({10, 10})->Args({20, 10});
  benchmark->ArgNames({"epsilon%", "delta%"})->Iterations(1)->Unit(benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(promise, after_heavy_keys,
                  R"({"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 64},
                     {"type": "oracle_top_k", "heavy_size": 0.02}, )")
    ->Apply(promises);
BENCHMARK_CAPTURE(promise, alone, "")->Apply(promises);

}  // namespace
}  // namespace reticle
