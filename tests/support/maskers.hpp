// Maskers from JSON, on inputs small enough to compute by hand.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

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

}  // namespace reticle::testing
