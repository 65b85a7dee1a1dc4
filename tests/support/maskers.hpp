// Maskers from JSON, on inputs small enough to compute by hand.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/attention.hpp"

namespace reticle::testing {

/// One head of head_dim 1, scaling 1: query i is queries[i], and key j scores queries[i] * keys[j].
struct Scored {
  Tensor queries, keys;
  AttentionInputs inputs;

  Scored(const std::vector<float>& query_values, const std::vector<float>& key_values)
      : queries(DType::f32, {1, 1, static_cast<Index>(query_values.size()), 1}),
        keys(DType::f32, {1, 1, static_cast<Index>(key_values.size()), 1}) {
    std::copy(query_values.begin(), query_values.end(), queries.span<float>().begin());
    std::copy(key_values.begin(), key_values.end(), keys.span<float>().begin());
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
  }
  /// `count` queries with value 1.
  Scored(Index count, const std::vector<float>& key_values)
      : Scored(std::vector<float>(static_cast<std::size_t>(count), 1.0f), key_values) {}
};

/// A masker's JSON; `parameters` is what follows its type: R"("window_size": 3, "dilation": 2)".
inline std::string masker(const std::string& type, const std::string& parameters) {
  return R"({"type": ")" + type + R"(", )" + parameters + "}";
}

/// A pipeline of `maskers`, the comma-separated elements of a JSON list: "{...}, {...}".
inline SparseAttention pipeline_of(const std::string& maskers, bool causal = false) {
  return SparseAttention::from_json("{\"maskers\": [" + maskers + "], \"causal\": " + (causal ? "true" : "false") +
                                    "}");
}

inline Mask mask_of(const std::string& maskers, const AttentionInputs& inputs, bool causal = false,
                    const std::optional<Mask>& previous = std::nullopt) {
  SequenceState state;
  return pipeline_of(maskers, causal).mask(inputs, state, {}, previous);
}

inline std::string row_text(const Mask& mask, Index query, Index head = 0) {
  std::string text;
  for (Index key = 0; key < mask.shape().keys; ++key) text += mask.at(0, head, query, key) > 0 ? '1' : '.';
  return text;
}

/// The message of the ConfigError that `maskers` raise; empty if they are accepted.
inline std::string refusal(const std::string& maskers) {
  try {
    pipeline_of(maskers);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

/// The message of the ErrorType that these inputs must be refused with; empty when they were accepted.
template <class ErrorType>
std::string refusal(const std::string& maskers, const AttentionInputs& inputs) {
  try {
    mask_of(maskers, inputs);
    return "";
  } catch (const ErrorType& error) {
    return error.what();
  }
}

/// The inputs with their first `count` keys and values.
inline AttentionInputs first_keys(const AttentionInputs& inputs, Index count) {
  AttentionInputs first = inputs;
  first.keys = inputs.keys.slice(2, 0, count);
  first.values = inputs.values.slice(2, 0, count);
  return first;
}

/// Decodes the queries one by one: what the masker keeps of earlier steps must change nothing.
inline void expect_steps_equal_fresh_starts(const std::string& maskers, const AttentionInputs& inputs) {
  const SparseAttention sparse = pipeline_of(maskers);
  SequenceState kept;
  for (Index query = 0; query < inputs.queries_length(); ++query) {
    const AttentionInputs step = inputs.rows(query, query + 1);
    SequenceState fresh;
    EXPECT_EQ(sparse.mask(step, kept), sparse.mask(step, fresh)) << "step " << query;
  }
}

}  // namespace reticle::testing
