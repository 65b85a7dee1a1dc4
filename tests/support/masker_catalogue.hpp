// Every masker with parameters that leave something to choose, one line each, and what it promises beyond the contract
// of all of them.
#pragma once

#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/tensor/safetensors.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {

enum Promise : unsigned {
  kNone = 0,
  /// A row of a causal prefill is what the decode step of that query selects.
  kDecodeIsPrefill = 1,
  /// A decode step reads no key that an earlier call has seen.
  kReadsNewKeysOnly = 2,
};

struct Entry {
  const char* masker;
  unsigned promises;
};

inline const std::string kData = std::string(RETICLE_SOURCE_DIR) + "/examples/data/";

// clang-format off
inline const Entry kCatalogue[] = {
    {R"({"type": "sink", "sink_size": 3})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "local", "window_size": 9, "dilation": 2})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "causal"})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "a_shape", "n_init": 3, "n_local": 9})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "tri_shape", "n_init": 3, "n_local": 9, "n_last": 5})", kReadsNewKeysOnly},
    {R"({"type": "strided", "stride": 8})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "big_bird", "block_size": 8, "random_blocks": 1, "global_blocks": 1})",
     kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "document", "lengths": [20, 30]})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "oracle_top_k", "heavy_size": 9})", kDecodeIsPrefill},
    {R"({"type": "oracle_top_p", "top_p": 0.5})", kDecodeIsPrefill},
    {R"({"type": "top_k", "heavy_size": 9, "scorer": "value_aware"})", kDecodeIsPrefill},
    {R"({"type": "top_k", "heavy_size": 9, "scorer": "key_norm"})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "top_k", "heavy_size": 9, "scorer": "page_bounds", "page_size": 4})", kReadsNewKeysOnly},
    {R"({"type": "top_p", "top_p": 0.5, "scorer": "page_means", "page_size": 4})", kNone},
    {R"({"type": "quest_top_k", "heavy_size": 12, "page_size": 4})", kReadsNewKeysOnly},
    {R"({"type": "pq_cache", "heavy_size": 9, "pq_group_factor": 8, "pq_bits": 3, "init_offset": 4})",
     kReadsNewKeysOnly},
    {R"({"type": "socket", "heavy_size": 9})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "hash_attention_top_k", "heavy_size": 9, "hat_mlp_layers": 1,
         "hat_weight_file": "DATA/random_hash_weights.safetensors"})",
     kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "double_sparsity_top_k", "heavy_size": 9, "group_factor": 8,
         "sorted_channel_file": "DATA/double_sparsity_channels.json"})",
     kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "loki_top_k", "heavy_size": 9, "pca_file": "DATA/loki_pca.safetensors"})",
     kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "nsa_top_k", "kernel_size": 8, "kernel_stride": 4, "block_size": 8, "top_k": 4})", kDecodeIsPrefill},
    {R"({"type": "moba", "block_size": 8, "top_k": 3})", kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "inf_llm", "block_size": 4, "n_init": 3, "n_local": 12, "top_k": 2, "exc_block_size": 1})",
     kDecodeIsPrefill},
    {R"({"type": "dsa_top_k", "top_k": 9})", kNone},
    {R"({"type": "random_sampling", "sampling_rate": 0.2})", kReadsNewKeysOnly},
    {R"({"type": "adaptive_sampling", "base_rate_sampling": 0.1, "epsilon": 0.5, "delta": 0.3})", kNone},
    {R"({"type": "magic_pig", "lsh_l": 6, "lsh_k": 3})", kNone},
    {R"({"type": "vertical_slash", "vertical_size": 6, "slash_size": 6, "approximation_window": 4,
         "attention_sinks": 1, "window_size": 2})",
     kNone},
    {R"({"type": "adaptive_vertical_slash", "alpha": 0.1, "min_budget": 3, "attention_sinks": 1, "window_size": 2})",
     kNone},
    {R"({"type": "block_sparse", "chunk_size": 8, "top_chunks": 3})", kNone},
    {R"({"type": "flex_prefill", "block_size": 8, "gamma": 0.3})", kNone},
    {R"({"type": "x_attention", "block_size": 8, "stride": 4, "threshold": 0.3})", kNone},
};
/// They choose while they generate after a prefill, and are else tested in files of their own.
inline const Entry kEvictions[] = {
    {R"({"type": "snap_kv", "token_capacity": 20, "approximation_window": 4, "kernel_size": 3})", kNone},
    {R"({"type": "ada_snap_kv", "token_capacity": 20, "approximation_window": 4, "kernel_size": 3,
         "local_window": 4})", kNone},
    {R"({"type": "pyramid_kv", "num_layers": 2, "token_capacity": 20, "approximation_window": 4,
         "kernel_size": 3})", kNone},
    {R"({"type": "h2o", "heavy_size": 6, "recent_size": 6})", kNone},
    {R"({"type": "tova", "token_capacity": 12})", kNone},
};
// clang-format on

inline std::string with_data(std::string masker) {
  if (const std::size_t at = masker.find("DATA/"); at != std::string::npos) masker.replace(at, 5, kData);
  return masker;
}

class Catalogue : public ::testing::TestWithParam<Entry> {
 protected:
  static constexpr Index kLength = 64;
  Catalogue() {
    std::mt19937 random(7);
    for (Tensor* tensor : {&indexer_queries, &indexer_weights})
      *tensor = random_tensor(DType::f32, {1, 2, kLength, tensor == &indexer_weights ? 1 : 4}, random);
    indexer_keys = random_tensor(DType::f32, {1, 1, kLength, 4}, random);
    extras = {{"indexer_queries", indexer_queries.view()},
              {"indexer_keys", indexer_keys.view()},
              {"indexer_weights", indexer_weights.view()}};
    inputs = owned.inputs;
    inputs.extras = extras;
  }
  /// One decode step of query `query`.
  AttentionInputs step(Index query) const {
    AttentionInputs part = inputs.rows(query, query + 1);
    part.stage = Stage::generation;
    return part;
  }

  // The shape that the bundled calibration files are for.
  OwnedInputs owned{{1, 4, 2, kLength, kLength, 64, 64}, 11};
  Tensor indexer_queries, indexer_keys, indexer_weights;
  std::vector<NamedTensor> extras;
  AttentionInputs inputs;
  SparseAttention sparse = pipeline_of(with_data(GetParam().masker), true);
};

inline std::string name_of_entry(const ::testing::TestParamInfo<Entry>& parameter) {
  std::string name = std::string(parameter.param.masker).substr(10);
  name.resize(name.find('"'));
  return std::to_string(parameter.index) + "_" + name;
}

}  // namespace reticle::testing
