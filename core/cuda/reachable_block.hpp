// Marks the keys that some query of a KV head may attend to, as ReachableKeys does: a byte for each, computed anew for
// every call with an attention mask. Reads the mask at most once.
#pragma once

#include <cstdint>
#include <limits>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/row_block.hpp>

namespace reticle::cuda {

inline constexpr int kReachableThreads = 128;  // also the keys that a block marks

struct ReachableProblem {
  BiasView bias;
  int group = 1, kv_heads = 1, key_count = 0;
  int heads = 1, queries = 1;         // of a KV head, as far as the mask distinguishes them
  std::uint8_t* reachable = nullptr;  // (b * hkv, sk)

  static ReachableProblem of(const AttentionInputs& inputs, std::uint8_t* reachable) {
    const TensorView& mask = *inputs.attention_mask;
    return {BiasView::of(inputs.attention_mask),
            static_cast<int>(inputs.group()),
            static_cast<int>(inputs.kv_heads()),
            static_cast<int>(inputs.keys_length()),
            static_cast<int>(mask.size(1) == 1 ? 1 : inputs.group()),
            static_cast<int>(mask.size(2) == 1 ? 1 : inputs.queries_length()),
            reachable};
  }
};

/// Marks keys [part * kReachableThreads, ...) for (batch, KV head) number `matrix`.
template <class Block>
RETICLE_HD void mark_reachable(const Block& block, const ReachableProblem& problem, int matrix, int part) {
  block.each([&](int thread) {
    const int key = part * kReachableThreads + thread;
    if (key >= problem.key_count) return;
    const int batch = matrix / problem.kv_heads, first = matrix % problem.kv_heads * problem.group;
    bool reachable = false;
    for (int head = first; head < first + problem.heads && !reachable; ++head) {
      // Late queries see the most keys, so they are read first.
      for (int query = problem.queries - 1; query >= 0 && !reachable; --query)
        reachable =
            problem.bias.of(problem.bias.row(batch, head, query), key) != -std::numeric_limits<float>::infinity();
    }
    problem.reachable[static_cast<Index>(matrix) * problem.key_count + key] = reachable ? 1 : 0;
  });
}

}  // namespace reticle::cuda
