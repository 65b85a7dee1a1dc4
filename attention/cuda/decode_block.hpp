// Decoding on a GPU: attention of single rows over lists of keys, split over blocks and merged in the same launch.
//
// One block takes one part of a list, for one row or for the rows of up to four heads of a KV head that share the list.
// A group of lanes holds a key in 16-byte pieces. It loads four keys at a time, so that their loads are in flight
// together, and keeps the rows' states (maximum, sum, weighted values) in registers. The states of the groups are
// merged in shared memory, those of the blocks in a workspace by the block of the list that arrives last. Cost: the
// bytes of the selected keys and values, once for all heads that share a list, and 4 (8 with p) per entry. Arithmetic
// is float32, in powers of two.
#pragma once

#include <cmath>
#include <limits>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/row_block.hpp>
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#endif

namespace reticle::cuda {

inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeInFlight = 4;  // keys that a group of lanes loads before it uses the first

struct DecodeProblem {
  const void *queries = nullptr, *keys = nullptr, *values = nullptr;  // (b, hq, sq, d), (b, hkv, sk, d) twice
  Strides query_strides, key_strides, value_strides;
  int batch = 1, heads = 1, kv_heads = 1, rows = 1;  // rows: queries of a head
  // Lists of keys, indexed by (batch, head / sharing, query). With row_ptr, list i is
  // indices[row_ptr[i], row_ptr[i + 1]). Without row_ptr it has counts[i] entries of `indices` from i * list_size on,
  // as top_k writes them; without indices, it is the interval of counts[i] keys from begins[i] on.
  int sharing = 1;  // neighbouring heads, of one KV head, that share a list
  const Index* row_ptr = nullptr;
  const std::int32_t *counts = nullptr, *begins = nullptr;
  Index list_size = 0;
  const std::int32_t* indices = nullptr;
  const float* p = nullptr;            // for each entry; null: 1
  BiasView bias;                       // only for lists that no heads share
  const float* sink_logits = nullptr;  // by head; null: none
  float scaling = 1, soft_cap = 0;     // no soft cap: 0
  int parts = 1;                       // blocks per list
  void* output = nullptr;              // (b, hq, sq, d), of the queries' dtype, contiguous
  float* lse = nullptr;                // (b, hq, sq)
  float* workspace = nullptr;          // (b * hq * sq, parts, d + 2); needed when parts > 1
  int* arrived = nullptr;              // (b * hq * sq) arrival counters, 0 before and after; needed when parts > 1

  RETICLE_HD int lists() const { return batch * (heads / sharing) * rows; }
};

/// A problem with the fields that DecodeProblem and TileProblem have in common.
template <class Problem>
Problem problem_of(const AttentionInputs& inputs, void* output, float* lse, float soft_cap, const float* sink_logits) {
  Problem problem;
  problem.queries = inputs.queries.data;
  problem.keys = inputs.keys.data;
  problem.values = inputs.values.data;
  problem.query_strides = strides_of(inputs.queries);
  problem.key_strides = strides_of(inputs.keys);
  problem.value_strides = strides_of(inputs.values);
  problem.heads = static_cast<int>(inputs.heads());
  problem.kv_heads = static_cast<int>(inputs.kv_heads());
  problem.rows = static_cast<int>(inputs.queries_length());
  problem.sink_logits = sink_logits;
  problem.scaling = inputs.scaling;
  problem.soft_cap = soft_cap;
  problem.output = output;
  problem.lse = lse;
  return problem;
}

/// Shared memory of a block: the states of its groups of lanes.
template <int head_dim>
struct DecodeShared {
  static constexpr int kMaxGroups = kDecodeThreads / 8;  // a key takes at least eight lanes
  float max[kMaxGroups], sum[kMaxGroups];
  float values[extent<kMaxGroups * head_dim>];
  int last;
};

inline constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

/// 2^x; results below 2^-126 may be flushed to 0.
RETICLE_HD inline float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}

/// The score in powers of two, from the product of query and key.
RETICLE_HD inline float scaled(float product, float scaling, float soft_cap) {
  float score = product * scaling;
  if (soft_cap > 0) score = soft_cap * std::tanh(score * (1 / soft_cap));
  return score * kLog2E;
}

/// Adds a key with value 0 and score `logit` to a state; the caller multiplies the state's values by `factor`.
RETICLE_HD inline void add_sink(float logit, float& max, float& sum, float& factor) {
  const float sink = logit * kLog2E, top = sink > max ? sink : max;
  factor = max == kNone ? 0 : power_of_2(max - top);
  sum = sum * factor + power_of_2(sink - top);
  max = top;
}

RETICLE_HD inline float natural_log_of_sum(float max, float sum) {
  return sum > 0 ? (max + std::log2(sum)) * kLn2 : kNone;
}

/// Packs two numbers, the first in the lower half.
template <class T>
RETICLE_HD std::uint32_t pack_pair(float first, float second) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
#else
  return from_float<T>(first).bits | static_cast<std::uint32_t>(from_float<T>(second).bits) << 16;
#endif
}

/// Computes part `part` of list number `list`, for the rows of the `sharing` heads that have this list; the block that
/// finishes the list's last part also merges all parts. `biased`: whether problem.bias is added.
template <class T, int head_dim, int sharing, bool biased, class Block>
RETICLE_HD void decode_part(const Block& block, DecodeShared<head_dim>& shared, const DecodeProblem& problem, int list,
                            int part) {
  using Lanes = RowLanes<T, head_dim>;
  constexpr int kLanes = Lanes::kCount, kGroups = kDecodeThreads / kLanes;
  static_assert(kGroups <= DecodeShared<head_dim>::kMaxGroups);
  static_assert(!biased || sharing == 1, "heads that share a list have a bias each");

  const int lists = problem.heads / sharing, query = list % problem.rows;
  const int head = list / problem.rows % lists * sharing, batch = list / problem.rows / lists;
  const int kv_head = head * problem.kv_heads / problem.heads;
  const auto row_of = [&](int h) { return (batch * problem.heads + head + h) * problem.rows + query; };
  const Strides &q = problem.query_strides, &k = problem.key_strides, &v = problem.value_strides;
  const T* const queries = static_cast<const T*>(problem.queries) + batch * q.batch + head * q.head + query * q.row;
  const T* const keys = static_cast<const T*>(problem.keys) + batch * k.batch + kv_head * k.head;
  const T* const values = static_cast<const T*>(problem.values) + batch * v.batch + kv_head * v.head;
  const bool padded = problem.row_ptr == nullptr, listed = problem.indices != nullptr;
  const Index first = !padded ? problem.row_ptr[list] : listed ? list * problem.list_size : problem.begins[list];
  const auto key_of = [&](Index entry) -> Index { return listed ? problem.indices[entry] : entry; };
  const Index entries = padded ? problem.counts[list] : problem.row_ptr[list + 1] - first;
  const Index begin = first + entries * part / problem.parts, end = first + entries * (part + 1) / problem.parts;

  struct State {
    FloatShare<T, head_dim> query, total;
    float max = kNone, sum = 0;
  };
  struct States {
    State of[extent<sharing>];
  };
  PerThread<Block, States> states(block);
  block.each([&](int thread) {
    unrolled<sharing>([&](int h) { states[thread].of[h].query.load(queries + h * q.head, thread % kLanes); });
  });

  struct Loaded {
    RowShare<T, head_dim> key, value;
  };
  struct Scores {
    float of[extent<sharing>][kDecodeInFlight];
  };
  PerThread<Block, Loaded> loaded[kDecodeInFlight] = {PerThread<Block, Loaded>(block), PerThread<Block, Loaded>(block),
                                                      PerThread<Block, Loaded>(block), PerThread<Block, Loaded>(block)};
  PerThread<Block, Scores> scores(block);
  for (Index at = begin; at < end; at += kGroups * kDecodeInFlight) {
    unrolled<kDecodeInFlight>([&](int i) {
      block.each([&](int thread) {
        const Index entry = at + i * kGroups + thread / kLanes;
        // After the end, the last key is loaded again with weight 0.
        const Index key = key_of(entry < end ? entry : end - 1);
        loaded[i][thread].key.load(keys + key * k.row, thread % kLanes);
        loaded[i][thread].value.load(values + key * v.row, thread % kLanes);
      });
    });
    unrolled<kDecodeInFlight>([&](int i) {
      unrolled<sharing>([&](int h) {
        block.each(
            [&](int thread) { scores[thread].of[h][i] = states[thread].of[h].query.product(loaded[i][thread].key); });
        block.template sum_over<kLanes>(scores,
                                        [&](Scores& thread_scores) -> float& { return thread_scores.of[h][i]; });
      });
    });
    block.each([&](int thread) {
      float minus_log_p[kDecodeInFlight];
      float bias[kDecodeInFlight] = {};
      unrolled<kDecodeInFlight>([&](int i) {
        const Index entry = at + i * kGroups + thread / kLanes;
        const float p = entry < end && problem.p != nullptr ? problem.p[entry] : 1;
        if constexpr (biased) {
          const auto key = static_cast<int>(key_of(entry < end ? entry : end - 1));
          bias[i] = kLog2E * problem.bias.of(problem.bias.row(batch, head, query), key);
        }
        minus_log_p[i] = entry >= end ? kNone : p == 1 ? 0 : -std::log2(p);
      });
      unrolled<sharing>([&](int h) {
        State& state = states[thread].of[h];
        float(&head_scores)[kDecodeInFlight] = scores[thread].of[h];
        float highest = state.max;
        unrolled<kDecodeInFlight>([&](int i) {
          head_scores[i] = minus_log_p[i] == kNone
                               ? kNone
                               : scaled(head_scores[i], problem.scaling, problem.soft_cap) + minus_log_p[i];
          if constexpr (biased) head_scores[i] += bias[i];
          highest = head_scores[i] > highest ? head_scores[i] : highest;
        });
        if (highest == kNone) return;  // this group has no keys yet
        const float before = power_of_2(state.max - highest);
        state.max = highest;
        state.sum *= before;
        state.total.scale(before);
        unrolled<kDecodeInFlight>([&](int i) {
          const float weight = power_of_2(head_scores[i] - highest);
          state.sum += weight;
          state.total.add(weight, loaded[i][thread].value);
        });
      });
    });
  }

  // Merges n states for one element of the values: state i has its maximum and sum at i * step, its value at i *
  // stride.
  const auto merged = [](const float* maxes, const float* sums, int step, const float* element, int stride, int n,
                         float& highest, float& weight) {
    highest = kNone;
    for (int i = 0; i < n; ++i) highest = maxes[i * step] > highest ? maxes[i * step] : highest;
    weight = 0;
    float value = 0;
    for (int i = 0; i < n && highest != kNone; ++i) {
      const float factor = power_of_2(maxes[i * step] - highest);
      weight += factor * sums[i * step];
      value += factor * element[i * stride];
    }
    return value;
  };
  const auto finish = [&](int h, int d, float value, float highest, float weight) {
    float factor = 1;
    if (problem.sink_logits != nullptr) add_sink(problem.sink_logits[head + h], highest, weight, factor);
    static_cast<T*>(problem.output)[static_cast<Index>(row_of(h)) * head_dim + d] =
        from_float<T>(weight > 0 ? value * factor / weight : 0);
    if (d == 0) problem.lse[row_of(h)] = natural_log_of_sum(highest, weight);
  };
  const auto parts_of = [&](int h) {
    return problem.workspace + static_cast<Index>(row_of(h)) * problem.parts * (head_dim + 2);
  };
  unrolled<sharing>([&](int h) {
    block.each([&](int thread) {
      const int lane = thread % kLanes, group = thread / kLanes;
      State& state = states[thread].of[h];
      if (lane == 0) {
        shared.max[group] = state.max;
        shared.sum[group] = state.sum;
      }
      state.total.each([&](int o, int e, float x) {
        shared.values[group * head_dim + (o * kLanes + lane) * Piece<T>::kElements + e] = x;
      });
    });
    block.sync();
    block.each([&](int thread) {
      for (int d = thread; d < head_dim; d += block.threads()) {
        float highest, weight;
        const float value = merged(shared.max, shared.sum, 1, shared.values + d, head_dim, kGroups, highest, weight);
        if (problem.parts == 1) {
          finish(h, d, value, highest, weight);
        } else {
          float* const state = parts_of(h) + part * (head_dim + 2);
          state[d] = value;
          if (d == 0) {
            state[head_dim] = highest;
            state[head_dim + 1] = weight;
          }
        }
      }
    });
    block.sync();
  });
  if (problem.parts == 1 || !block.last_to_arrive(problem.arrived + list, problem.parts, &shared.last)) return;
  block.each([&](int thread) {
    for (int i = thread; i < sharing * head_dim; i += block.threads()) {
      const int h = i / head_dim, d = i % head_dim;
      const float* const part_states = parts_of(h);
      float highest, weight;
      const float value = merged(part_states + head_dim, part_states + head_dim + 1, head_dim + 2, part_states + d,
                                 head_dim + 2, problem.parts, highest, weight);
      finish(h, d, value, highest, weight);
    }
  });
}

}  // namespace reticle::cuda
