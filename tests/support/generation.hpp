// Maskers of the generation stage behind a dense prefill, which rules that compress a prompt observe.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle::testing {

/// `maskers` is the inside of a list: "{...}, {...}".
inline SparseAttention generating(const std::string& maskers) {
  return SparseAttention::from_json(R"({"prefill": {"maskers": []}, "generation": {"maskers": [)" + maskers +
                                    R"(]}, "causal": true})");
}

/// The mask of the queries from `prompt` on, `queries_per_call` of them in each call.
inline Mask generate(const SparseAttention& sparse, const AttentionInputs& inputs, Index prompt,
                     Index queries_per_call = 1) {
  SequenceState state;
  AttentionInputs prefill = inputs.rows(0, prompt);
  prefill.stage = Stage::prefill;
  EXPECT_EQ(sparse.mask(prefill, state), restrict_causal(Mask::full(prefill.shape()))) << "the prefill is dense";
  std::optional<Mask> all;
  for (Index from = prompt; from < inputs.queries_length(); from += queries_per_call) {
    const Index to = std::min(inputs.queries_length(), from + queries_per_call);
    AttentionInputs part = inputs.rows(from, to);
    part.stage = Stage::generation;
    const Mask mask = append_keys(sparse.mask(part, state), inputs.keys_length() - part.keys_length());
    all = all ? append_queries(*all, mask) : mask;
  }
  return *all;
}

/// The keys that the masker may still choose or read for queries from position `first` on, once it has seen the prompt
/// and the queries after it. A cache may evict the others.
inline Mask lasting(const SparseAttention& sparse, const AttentionInputs& inputs, Index prompt, Index first) {
  SequenceState state;
  sparse.mask(inputs.rows(0, prompt), state);
  if (prompt < inputs.queries_length()) {
    AttentionInputs rest = inputs.rows(prompt, inputs.queries_length());
    rest.stage = Stage::generation;
    sparse.mask(rest, state);
  }
  return sparse.lasting(inputs, first, state);
}

/// Whether the masker leaves keys for good, so that a cache may evict them.
inline bool leaves_keys_for_good(const std::string& maskers) {
  try {
    generating(maskers).require_forgetful();
    return true;
  } catch (const ValueError&) {
    return false;
  }
}

/// A KV head whose two query heads disagree, seven tokens: head 0 gives 0.6 of its attention to key 1, head 1 gives 0.6
/// to key 2, and both give 0.4 to key 3.
struct OpposedHeads {
  float more = std::log(6.0f), less = std::log(4.0f), none = -20;
  std::vector<float> queries{1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, /**/
                             0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1};
  std::vector<float> keys{none, none, more, none, none, more, less, less, none, none, none, none, none, none};
  AttentionInputs inputs;

  OpposedHeads() {
    inputs.queries = TensorView(queries.data(), DType::f32, {1, 2, 7, 2});
    inputs.keys = inputs.values = TensorView(keys.data(), DType::f32, {1, 1, 7, 2});
  }
  OpposedHeads(const OpposedHeads&) = delete;  // the inputs view the vectors
  OpposedHeads& operator=(const OpposedHeads&) = delete;
};

}  // namespace reticle::testing
