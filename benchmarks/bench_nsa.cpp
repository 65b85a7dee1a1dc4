// Native Sparse Attention against Reticle's dense attention in one run: forward, backward, and a decode step. Each row
// is one pass of both; the counters are the speed-up, each branch's share of the time, and the number of keys that a
// query meets, which bounds the speed-up. Queries and keys drift along the sequence, as those of text do, or (drift 0)
// are independent: then neighbouring queries select different blocks, the worst case.
#include <chrono>
#include <cmath>
#include <random>
#include <span>

#include <benchmark/benchmark.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

namespace reticle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr Index kHeads = 16;

struct Problem {
  Tensor queries, keys, values;  // (tokens, heads, d)
  Packed compressed_keys, compressed_values;
  NsaConfig config;  // kernel 32, stride 16, block 64, 16 blocks, window 512
  float scaling;

  Problem(Index queries_length, Index length, Index head_dim, Index kv_heads, bool drift)
      : scaling(1 / std::sqrt(static_cast<float>(head_dim))) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto make = [&](Index tokens, Index heads) {
      Tensor tensor(DType::f32, {tokens, heads, head_dim});
      std::span<float> values_of = tensor.span<float>();
      for (float& value : values_of) value = normal(random);
      for (auto i = static_cast<std::size_t>(heads * head_dim); drift && i < values_of.size(); ++i)
        values_of[i] = 0.95f * values_of[i - static_cast<std::size_t>(heads * head_dim)] + 0.3f * values_of[i];
      return tensor;
    };
    queries = make(queries_length, kHeads);
    keys = make(length, kv_heads);
    values = make(length, kv_heads);
    config.compress_type = Compression::avgpool;
    const Index cu_seqlens[] = {0, length};
    compressed_keys = compress(keys, cu_seqlens, {}, config);
    compressed_values = compress(values, cu_seqlens, {}, config);
  }

  Index first_query() const { return keys.view().size(0) - queries.view().size(0); }
  AttentionInputs inputs() const {
    AttentionInputs inputs{heads_first(queries), heads_first(keys), heads_first(values)};
    inputs.scaling = scaling;
    inputs.causal = true;
    return inputs;
  }
  /// The inputs of one KV head and its query heads.
  AttentionInputs inputs(Index kv_head) const {
    AttentionInputs all = inputs();
    const Index group = kHeads / all.keys.size(1);
    all.queries = all.queries.slice(1, kv_head * group, (kv_head + 1) * group);
    all.keys = all.keys.slice(1, kv_head, kv_head + 1);
    all.values = all.values.slice(1, kv_head, kv_head + 1);
    return all;
  }
  AttentionInputs compressed_inputs() const {
    AttentionInputs inputs{heads_first(queries), heads_first(compressed_keys.data),
                           heads_first(compressed_values.data)};
    inputs.scaling = scaling;
    return inputs;
  }
};

class Watch {
 public:
  double lap() {
    const Clock::time_point now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  Clock::time_point last_ = Clock::now();
};

struct Times {
  double compress = 0, compressed = 0, selected = 0, window = 0, dense = 0;
  double together = 0;  // of the branches, if they were also timed as one call
  double branches() const { return compress + compressed + selected + window; }
  double nsa() const { return together > 0 ? together : branches(); }
};

void report(benchmark::State& state, const Times& times) {
  state.counters["vs_dense"] = times.dense / times.nsa();
  state.counters["dense_s"] = times.dense / static_cast<double>(state.iterations());
  state.counters["compress"] = times.compress / times.branches();
  state.counters["compressed"] = times.compressed / times.branches();
  state.counters["selected"] = times.selected / times.branches();
  state.counters["window"] = times.window / times.branches();
}

/// tokens, head_dim, KV heads, drift
void nsa_forward(benchmark::State& state) {
  const Index length = state.range(0), kv_heads = state.range(2);
  const Problem problem(length, length, state.range(1), kv_heads, state.range(3) != 0);
  Times times;
  for (auto _ : state) {
    Watch watch;
    const Index cu_seqlens[] = {0, length};
    benchmark::DoNotOptimize(compress(problem.keys, cu_seqlens, {}, problem.config));
    benchmark::DoNotOptimize(compress(problem.values, cu_seqlens, {}, problem.config));
    times.compress += watch.lap();
    const CompressedAttention compressed =
        compressed_attention(problem.queries, problem.compressed_keys.data, problem.compressed_values.data, 0,
                             problem.scaling, problem.config);
    times.compressed += watch.lap();
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head)
      benchmark::DoNotOptimize(attention(
          problem.inputs(kv_head),
          selected_mask(compressed.blocks, kv_head, kHeads / kv_heads, length, 0, problem.config.block_size)));
    times.selected += watch.lap();
    benchmark::DoNotOptimize(
        attention(problem.inputs(), window_mask(kHeads, length, length, 0, problem.config.window_size)));
    times.window += watch.lap();
    benchmark::DoNotOptimize(attention(problem.inputs(), Mask::full(problem.inputs().shape())));
    times.dense += watch.lap();
  }
  report(state, times);
}
BENCHMARK(nsa_forward)
    ->Args({16384, 128, 1, 1})
    ->Args({32768, 128, 1, 1})
    ->Args({32768, 128, 1, 0})
    ->Args({16384, 64, 2, 1})
    ->Args({32768, 64, 2, 1})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

void nsa_backward(benchmark::State& state) {
  const Index length = state.range(0), kv_heads = state.range(2), group = kHeads / kv_heads;
  const Problem problem(length, length, state.range(1), kv_heads, state.range(3) != 0);
  const CompressedAttention compressed =
      compressed_attention(problem.queries, problem.compressed_keys.data, problem.compressed_values.data, 0,
                           problem.scaling, problem.config);
  const auto forward_and = [](const AttentionInputs& inputs, const Mask& mask) {
    const AttentionResult result = attention(inputs, mask);
    Watch watch;
    benchmark::DoNotOptimize(attention_backward(inputs, mask, result.output, result.lse, result.output));
    return watch.lap();
  };
  Times times;
  for (auto _ : state) {
    times.compressed +=
        forward_and(problem.compressed_inputs(),
                    compressed_mask(kHeads, length, problem.compressed_keys.data.view().size(0), 0, problem.config));
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head)
      times.selected += forward_and(problem.inputs(kv_head), selected_mask(compressed.blocks, kv_head, group, length, 0,
                                                                           problem.config.block_size));
    times.window += forward_and(problem.inputs(), window_mask(kHeads, length, length, 0, problem.config.window_size));
    times.dense += forward_and(problem.inputs(), Mask::full(problem.inputs().shape()));
  }
  report(state, times);
}
BENCHMARK(nsa_backward)
    ->Args({16384, 128, 1, 1})
    ->Args({16384, 64, 2, 1})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

/// One query after the given number of tokens.
void nsa_decode(benchmark::State& state) {
  const Index length = state.range(0), kv_heads = state.range(2);
  const Problem problem(1, length, state.range(1), kv_heads, state.range(3) != 0);
  Times times;
  for (auto _ : state) {
    Watch watch;
    benchmark::DoNotOptimize(nsa_branches(problem.queries, heads_first(problem.keys), heads_first(problem.values),
                                          problem.compressed_keys.data, problem.compressed_values.data, length - 1,
                                          problem.config));
    times.together += watch.lap();
    const CompressedAttention compressed =
        compressed_attention(problem.queries, problem.compressed_keys.data, problem.compressed_values.data, length - 1,
                             problem.scaling, problem.config);
    times.compressed += watch.lap();
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head)
      benchmark::DoNotOptimize(attention(
          problem.inputs(kv_head),
          selected_mask(compressed.blocks, kv_head, kHeads / kv_heads, length, length - 1, problem.config.block_size)));
    times.selected += watch.lap();
    benchmark::DoNotOptimize(
        attention(problem.inputs(), window_mask(kHeads, 1, length, length - 1, problem.config.window_size)));
    times.window += watch.lap();
    benchmark::DoNotOptimize(attention(problem.inputs(), Mask::full(problem.inputs().shape())));
    times.dense += watch.lap();
  }
  report(state, times);
}
BENCHMARK(nsa_decode)
    ->Args({32768, 128, 1, 1})
    ->Args({32768, 128, 2, 1})
    ->Args({32768, 64, 2, 1})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace reticle
