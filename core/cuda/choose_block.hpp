// A chain of rules on a GPU: one block takes one row through all rules, and writes the list of keys, with p, that
// attention reads. Between rules the mask is stored as p of every key, which is all that the algebra needs: a rule adds
// to what earlier rules chose. Cost: the row's scores and p, 8 bytes per key, read a few times from the second-level
// cache.
#pragma once

#include <limits>

#include <reticle/core/cuda/adaptive_block.hpp>
#include <reticle/core/cuda/row_block.hpp>
#include <reticle/core/cuda/top_p_block.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

inline constexpr int kMaxRules = 8;

struct ChooseProblem {
  float* scores = nullptr;       // (b * hq * sq, sk), -infinity where forbidden; null if no rule needs scores
  float* page_scores = nullptr;  // (b * hq * sq, page_count), likewise, for the one rule that keeps pages
  int page_count = 0;
  float* code_scores = nullptr;  // (b * hq * sq, sk), for the one rule that uses codes; p if it is `colliding`
  int heads = 1, rows = 1, key_count = 0;
  bool causal = false;
  BiasView bias;  // added to the scores here
  int layer = 0;
  Rule rules[kMaxRules];
  int rule_count = 0;
  // Per row, with space for all keys: the chosen keys, ascending; list_p is null where every p is 1.
  float* p = nullptr;
  std::int32_t *indices = nullptr, *counts = nullptr;
  float* list_p = nullptr;
  std::int32_t* scratch = nullptr;  // for rules that sample; may be the memory of list_p, which is written afterwards
};

union ChooseShared {
  TopPShared top;
  AdaptiveShared adaptive;
};

namespace choose_detail {

/// Applies a rule of kind `sample`.
template <class Block>
RETICLE_HD void sample_uniformly(const Block& block, SampleShared& shared, double rate, Index count,
                                 const Philox& random, std::int32_t* draws, std::int32_t* first, float* p) {
  const auto is_candidate = [p](Index key) { return p[key] == 0; };
  const std::int32_t n = count_candidates(block, shared, is_candidate, count);
  if (n == 0) return;
  const auto wanted = static_cast<std::int32_t>(sample_size(rate, n));
  const auto share = static_cast<float>(static_cast<double>(wanted) / static_cast<double>(n));
  sample_row(block, shared, is_candidate, count, n, wanted, random, 0, draws, first,
             [&](int, Index key) { p[key] = share; });
}

/// Lists the keys whose p is greater than 0, with their p, ascending; returns their number.
template <class Block>
RETICLE_HD int list_chosen(const Block& block, int* scan, const float* p, Index count, std::int32_t* indices,
                           float* list_p) {
  PerThread<Block, int> places(block);
  int listed = 0;
  const Index step = static_cast<Index>(block.threads()) * kTopKPerThread;
  for (Index begin = 0; begin < count; begin += step) {
    const auto each_of = [&](int thread, auto&& body) {
      for (int e = 0; e < kTopKPerThread; ++e) {
        const Index i = begin + static_cast<Index>(thread) * kTopKPerThread + e;
        if (i < count && p[i] > 0) body(i);
      }
    };
    block.each([&](int thread) {
      int sum = 0;
      each_of(thread, [&](Index) { ++sum; });
      places[thread] = sum;
    });
    const int here = block.exclusive_scan(places, scan);
    block.each([&](int thread) {
      int at = listed + places[thread];
      each_of(thread, [&](Index i) {
        indices[at] = static_cast<std::int32_t>(i);
        if (list_p != nullptr) list_p[at] = p[i];
        ++at;
      });
    });
    listed += here;
  }
  return listed;
}

/// Marks keys that the row's bias forbids with p = -1, so that no rule chooses them, and adds the bias to the scores.
template <class Block>
RETICLE_HD void apply_bias(const Block& block, const ChooseProblem& problem, const float* bias, int row, int visible,
                           float* p) {
  const Index first = static_cast<Index>(row) * problem.key_count;
  bool codes = false;  // codes give scores; those of `colliding` are probabilities and stay unchanged
  int page_size = 0;
  for (int i = 0; i < problem.rule_count; ++i) {
    codes |= problem.rules[i].codes() && problem.rules[i].kind != Rule::Kind::colliding;
    if (problem.rules[i].kind == Rule::Kind::pages) page_size = static_cast<int>(problem.rules[i].page_size);
  }
  block.each([&](int thread) {
    for (int key = thread; key < visible; key += block.threads()) {
      const float added = problem.bias.of(bias, key);
      if (added == -std::numeric_limits<float>::infinity()) p[key] = -1;
      if (problem.scores != nullptr) problem.scores[first + key] += added;
      if (codes && problem.code_scores != nullptr) problem.code_scores[first + key] += added;
    }
  });
  block.sync();
  if (page_size == 0) return;
  float* const page_scores = problem.page_scores + static_cast<Index>(row) * problem.page_count;
  block.each([&](int thread) {
    for (int page = thread; page < problem.page_count; page += block.threads()) {
      bool allowed = false;
      for (int key = page * page_size; key < (page + 1) * page_size && key < visible; ++key) allowed |= p[key] == 0;
      if (!allowed) page_scores[page] = -std::numeric_limits<float>::infinity();
    }
  });
  block.sync();
}

}  // namespace choose_detail

/// Takes row number `row` of (batch, head, query) through the rules.
template <class Block>
RETICLE_HD void choose_row(const Block& block, ChooseShared& shared, const ChooseProblem& problem, int row) {
  const int keys = problem.key_count, query = row % problem.rows, head = row / problem.rows % problem.heads,
            batch = row / problem.rows / problem.heads;
  const int end = keys - problem.rows + query + 1;  // one past the row's own position
  const int visible = !problem.causal ? keys : end < 0 ? 0 : end;
  const Index first = static_cast<Index>(row) * keys;
  float* const p = problem.p + first;
  std::int32_t* const indices = problem.indices + first;
  const auto keep = [&](int count, auto&& key_of) {
    block.each([&](int thread) {
      for (int i = thread; i < count; i += block.threads()) {
        const Index key = key_of(i);
        if (key >= 0 && key < visible) p[key] = 1;
      }
    });
  };
  block.each([&](int thread) {
    for (int key = thread; key < keys; key += block.threads()) p[key] = 0;
  });
  if (problem.bias.data != nullptr) {
    block.sync();
    choose_detail::apply_bias(block, problem, problem.bias.row(batch, head, query), row, visible, p);
  }
  for (int i = 0; i < problem.rule_count; ++i) {
    const Rule& rule = problem.rules[i];
    const auto count = static_cast<int>(rule.count < keys ? rule.count : keys);
    const float* const all_scores = rule.codes() ? problem.code_scores : problem.scores;
    const float* const scores = all_scores == nullptr ? nullptr : all_scores + first;
    block.sync();
    if (rule.kind == Rule::Kind::sinks) {
      keep(count, [](Index nth) { return nth; });
    } else if (rule.kind == Rule::Kind::window) {
      keep(count, [&](Index nth) { return end - 1 - nth * rule.dilation; });
    } else if (rule.kind == Rule::Kind::colliding) {
      if (scores == nullptr) continue;  // no scores were computed
      block.each([&](int thread) {
        for (int key = thread; key < visible; key += block.threads()) {
          if (p[key] == 0) p[key] = scores[key];
        }
      });
    } else if (rule.kind == Rule::Kind::sample || rule.kind == Rule::Kind::adaptive) {
      const Philox random(rule.seed, static_cast<std::uint32_t>(problem.layer), static_cast<std::uint32_t>(batch),
                          static_cast<std::uint32_t>(head), static_cast<std::uint32_t>(query));
      std::int32_t* const scratch = problem.scratch + first;
      if (rule.kind == Rule::Kind::adaptive) {
        if (scores == nullptr) continue;  // no scores were computed
        sample_adaptively(block, shared.adaptive, rule, scores, keys, visible, random, indices, scratch, p);
      } else {
        choose_detail::sample_uniformly(block, shared.adaptive.sample, rule.share, visible, random, indices, scratch,
                                        p);
      }
    } else if (rule.kind == Rule::Kind::pages) {
      const auto page_size = static_cast<int>(rule.page_size);
      const float* const page_scores = problem.page_scores + static_cast<Index>(row) * problem.page_count;
      const auto key_of_page = [&](Index page) {
        return page * page_size < visible ? order_key(page_scores[page]) : 0u;
      };
      const int chosen = top_k_row(block, shared.top.selection, key_of_page, problem.page_count, count, indices);
      block.sync();
      block.each([&](int thread) {
        for (int at = thread; at < chosen * page_size; at += block.threads()) {
          const int key = indices[at / page_size] * page_size + at % page_size;
          if (key < visible && p[key] >= 0) p[key] = 1;
        }
      });
    } else {
      if (scores == nullptr) continue;
      const auto key_of = [p, scores](Index key) { return p[key] > 0 ? 0u : order_key(scores[key]); };
      const int chosen = rule.kind == Rule::Kind::top_p
                             ? top_p_row(block, shared.top, key_of, keys, rule.share, indices)
                         : count > 0 ? top_k_row(block, shared.top.selection, key_of, keys, count, indices)
                                     : 0;
      block.sync();
      block.each([&](int thread) {
        for (int at = thread; at < chosen; at += block.threads()) p[indices[at]] = 1;
      });
    }
  }
  block.sync();
  const int listed = choose_detail::list_chosen(block, shared.top.selection.scan, p, visible, indices,
                                                problem.list_p == nullptr ? nullptr : problem.list_p + first);
  block.each([&](int thread) {
    if (thread == 0) problem.counts[row] = listed;
  });
}

}  // namespace reticle::cuda
