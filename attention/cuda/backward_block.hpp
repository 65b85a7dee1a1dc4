// Gradients of attention over lists on a GPU, without atomics: two walks over the entries, so that sums have one order.
//
// The walk by rows computes, for each row, dQ = scaling * sum of dS K over its keys; the walk by keys computes, for
// each key, dK = scaling * sum of dS Q and dV = sum of W dO over the rows that attend to it, in every head that shares
// it. In both walks a block holds one pair of vectors, (Q, dO) or (K, V), and loads the other pair, (K, V) or (Q, dO),
// for each entry: the product of the first vectors of the pairs is the score, that of the second is dW. Recomputed are
// W = exp(S - LSE) / p and dS = W (dW - delta), with delta = dO . O (Dao et al. 2022). Cost: the bytes of all loaded
// vectors, in both walks, and 4 (8 with p) per entry and walk. Arithmetic is float32.
#pragma once

#include <cmath>
#include <limits>

#include <reticle/attention/cuda/decode_block.hpp>

namespace reticle::cuda {

inline constexpr int kBackwardThreads = 128;
inline constexpr int kBackwardInFlight = 2;

/// Lists in the layout of DecodeProblem: item i walks over entries [ptr[i], ptr[i + 1]).
struct WalkLists {
  const Index* ptr = nullptr;
  const std::int32_t* indices = nullptr;
  const float* p = nullptr;  // for each entry; null: 1
};

/// Inputs and outputs of the gradient kernels.
struct BackwardInputs {
  const void *queries = nullptr, *keys = nullptr, *values = nullptr;  // (b, hq, sq, d), (b, hkv, sk, d) twice
  const void *output = nullptr, *d_output = nullptr;                  // (b, hq, sq, d)
  Strides query_strides, key_strides, value_strides, output_strides, d_output_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 1;  // rows: queries of a head
  BiasView bias;
  float scaling = 1, soft_cap = 0;  // no soft cap: 0
  const float* lse = nullptr;       // (b, hq, sq)
  float* delta = nullptr;           // (b, hq, sq); written by the walk by rows, read by the walk by keys
  float *d_queries = nullptr, *d_keys = nullptr, *d_values = nullptr;  // contiguous
};
inline BackwardInputs backward_inputs(const AttentionInputs& inputs, const TensorView& output,
                                      const TensorView& d_output) {
  BackwardInputs to;
  to.queries = inputs.queries.data;
  to.keys = inputs.keys.data;
  to.values = inputs.values.data;
  to.output = output.data;
  to.d_output = d_output.data;
  to.query_strides = strides_of(inputs.queries);
  to.key_strides = strides_of(inputs.keys);
  to.value_strides = strides_of(inputs.values);
  to.output_strides = strides_of(output);
  to.d_output_strides = strides_of(d_output);
  to.heads = static_cast<int>(inputs.heads());
  to.kv_heads = static_cast<int>(inputs.kv_heads());
  to.rows = static_cast<int>(inputs.queries_length());
  to.key_count = static_cast<int>(inputs.keys_length());
  to.bias = BiasView::of(inputs.attention_mask);
  to.scaling = inputs.scaling;
  return to;
}

struct BackwardProblem : BackwardInputs {
  WalkLists by_row;  // (batch, head, query): keys
  WalkLists by_key;  // (batch, head, key): queries
};

/// Shared memory of a block: the sums of each group of lanes.
template <int head_dim>
struct BackwardShared {
  static constexpr int kMaxGroups = kBackwardThreads / 8;  // a vector takes at least eight lanes
  float sums[2][extent<kMaxGroups * head_dim>];
};

/// A row's log-sum-exp in powers of two; infinity where the row attends to nothing, so that all weights are 0.
RETICLE_HD inline float log_sum_of(float lse) {
  return lse == kNone ? std::numeric_limits<float>::infinity() : lse * kLog2E;
}

/// The weight of an entry, and the gradient with respect to its product of query and key, without the scaling. `added`
/// is added to the score: the bias and -log2(p).
struct EntryGradient {
  float weight = 0, d_product = 0;
};
RETICLE_HD inline EntryGradient entry_gradient(float product, float d_weight, float added, float log_sum, float delta,
                                               float scaling, float soft_cap) {
  const float weight = power_of_2(scaled(product, scaling, soft_cap) - log_sum + added);
  float gradient = weight * (d_weight - delta);
  if (soft_cap > 0) {
    const float share = std::tanh(product * scaling * (1 / soft_cap));
    gradient *= 1 - share * share;
  }
  return {weight, gradient};
}

/// `item` is a row (batch, head, query) in the walk by rows, a key (batch, KV head, key) in the walk by keys.
template <class T, int head_dim, bool by_key, class Block>
RETICLE_HD void differentiate(const Block& block, BackwardShared<head_dim>& shared, const BackwardProblem& problem,
                              int item) {
  using Lanes = RowLanes<T, head_dim>;
  constexpr int kLanes = Lanes::kCount, kGroups = kBackwardThreads / kLanes;
  static_assert(kGroups <= BackwardShared<head_dim>::kMaxGroups);

  const auto matrix = [](const void* data, const Strides& strides, int batch, int head) {
    return static_cast<const T*>(data) + batch * strides.batch + head * strides.head;
  };
  const int items = by_key ? problem.key_count : problem.rows, per_batch = by_key ? problem.kv_heads : problem.heads;
  const int own_head = item / items % per_batch, batch = item / items / per_batch, number = item % items;
  const int group = problem.heads / problem.kv_heads, kv_head = by_key ? own_head : own_head / group;
  const T* const keys = matrix(problem.keys, problem.key_strides, batch, kv_head);
  const T* const values = matrix(problem.values, problem.value_strides, batch, kv_head);

  PerThread<Block, FloatShare<T, head_dim>> own_first(block), own_second(block), first_sum(block), second_sum(block);
  PerThread<Block, float> own_delta(block);
  block.each([&](int thread) {
    const int lane = thread % kLanes;
    if constexpr (by_key) {
      own_first[thread].load(keys + number * problem.key_strides.row, lane);
      own_second[thread].load(values + number * problem.value_strides.row, lane);
    } else {
      RowShare<T, head_dim> output;
      output.load(matrix(problem.output, problem.output_strides, batch, own_head) + number * problem.output_strides.row,
                  lane);
      own_first[thread].load(
          matrix(problem.queries, problem.query_strides, batch, own_head) + number * problem.query_strides.row, lane);
      own_second[thread].load(
          matrix(problem.d_output, problem.d_output_strides, batch, own_head) + number * problem.d_output_strides.row,
          lane);
      own_delta[thread] = own_second[thread].product(output);
    }
  });
  if constexpr (!by_key) {
    block.template sum_over<kLanes>(own_delta);
    block.each([&](int thread) {
      if (thread == 0) problem.delta[item] = own_delta[thread];
    });
  }

  struct Met {
    RowShare<T, head_dim> first, second;
  };
  PerThread<Block, Met> met[kBackwardInFlight] = {PerThread<Block, Met>(block), PerThread<Block, Met>(block)};
  PerThread<Block, float> products[kBackwardInFlight] = {PerThread<Block, float>(block),
                                                         PerThread<Block, float>(block)};
  PerThread<Block, float> d_weights[kBackwardInFlight] = {PerThread<Block, float>(block),
                                                          PerThread<Block, float>(block)};
  const WalkLists& lists = by_key ? problem.by_key : problem.by_row;
  const int first_head = by_key ? kv_head * group : own_head, heads = by_key ? group : 1;
  for (int head = first_head; head < first_head + heads; ++head) {
    const Index list = (static_cast<Index>(batch) * problem.heads + head) * items + number;
    const Index rows_of_head = (static_cast<Index>(batch) * problem.heads + head) * problem.rows;
    const T* const met_first = by_key ? matrix(problem.queries, problem.query_strides, batch, head) : keys;
    const T* const met_second = by_key ? matrix(problem.d_output, problem.d_output_strides, batch, head) : values;
    const Index first_stride = by_key ? problem.query_strides.row : problem.key_strides.row;
    const Index second_stride = by_key ? problem.d_output_strides.row : problem.value_strides.row;
    const Index end = lists.ptr[list + 1];
    for (Index at = lists.ptr[list]; at < end; at += kGroups * kBackwardInFlight) {
      unrolled<kBackwardInFlight>([&](int i) {
        block.each([&](int thread) {
          const Index entry = at + i * kGroups + thread / kLanes;
          // After the end, the last vector is loaded again with weight 0.
          const Index other = lists.indices[entry < end ? entry : end - 1];
          met[i][thread].first.load(met_first + other * first_stride, thread % kLanes);
          met[i][thread].second.load(met_second + other * second_stride, thread % kLanes);
        });
      });
      unrolled<kBackwardInFlight>([&](int i) {
        block.each([&](int thread) {
          products[i][thread] = own_first[thread].product(met[i][thread].first);
          d_weights[i][thread] = own_second[thread].product(met[i][thread].second);
        });
        block.template sum_over<kLanes>(products[i]);
        block.template sum_over<kLanes>(d_weights[i]);
        block.each([&](int thread) {
          const Index entry = at + i * kGroups + thread / kLanes;
          if (entry >= end) return;
          const int other = lists.indices[entry], query = by_key ? other : number, key = by_key ? number : other;
          const Index row = rows_of_head + query;
          const float minus_log_p = lists.p == nullptr ? 0 : -std::log2(lists.p[entry]);
          const float bias =
              problem.bias.data == nullptr ? 0 : kLog2E * problem.bias.of(problem.bias.row(batch, head, query), key);
          const EntryGradient gradient = entry_gradient(
              products[i][thread], d_weights[i][thread], minus_log_p + bias, log_sum_of(problem.lse[row]),
              by_key ? problem.delta[row] : own_delta[thread], problem.scaling, problem.soft_cap);
          first_sum[thread].add(gradient.d_product, met[i][thread].first);
          if constexpr (by_key) second_sum[thread].add(gradient.weight, met[i][thread].second);
        });
      });
    }
  }

  block.each([&](int thread) {
    const int lane = thread % kLanes, at = thread / kLanes * head_dim;
    const auto place = [&](int o, int e) { return at + (o * kLanes + lane) * Piece<T>::kElements + e; };
    first_sum[thread].each([&](int o, int e, float x) { shared.sums[0][place(o, e)] = x; });
    if constexpr (by_key) second_sum[thread].each([&](int o, int e, float x) { shared.sums[1][place(o, e)] = x; });
  });
  block.sync();
  block.each([&](int thread) {
    const auto total = [&](const float* sums, int d) {
      float sum = 0;
      for (int i = 0; i < kGroups; ++i) sum += sums[i * head_dim + d];
      return sum;
    };
    for (int d = thread; d < head_dim; d += block.threads()) {
      const Index to = static_cast<Index>(item) * head_dim + d;
      (by_key ? problem.d_keys : problem.d_queries)[to] = total(shared.sums[0], d) * problem.scaling;
      if constexpr (by_key) problem.d_values[to] = total(shared.sums[1], d);
    }
  });
}

}  // namespace reticle::cuda
