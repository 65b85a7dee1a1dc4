// What maskers promise beyond the contract of all of them, with parameters that leave something to choose: one line
// each.
#include <algorithm>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

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

const std::string kData = std::string(RETICLE_SOURCE_DIR) + "/examples/data/";

// clang-format off
const Entry kCatalogue[] = {
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
    {R"({"type": "hash_attention_top_k", "heavy_size": 9, "hat_mlp_layers": 1, "hat_weight_file": "DATA/random_hash_weights.safetensors"})",
     kDecodeIsPrefill | kReadsNewKeysOnly},
    {R"({"type": "double_sparsity_top_k", "heavy_size": 9, "group_factor": 8, "sorted_channel_file": "DATA/double_sparsity_channels.json"})",
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
    {R"({"type": "vertical_slash", "vertical_size": 6, "slash_size": 6, "approximation_window": 4, "attention_sinks": 1, "window_size": 2})",
     kNone},
    {R"({"type": "adaptive_vertical_slash", "alpha": 0.1, "min_budget": 3, "attention_sinks": 1, "window_size": 2})",
     kNone},
    {R"({"type": "block_sparse", "chunk_size": 8, "top_chunks": 3})", kNone},
    {R"({"type": "flex_prefill", "block_size": 8, "gamma": 0.3})", kNone},
    {R"({"type": "x_attention", "block_size": 8, "stride": 4, "threshold": 0.3})", kNone},
};
/// They choose while they generate after a prefill, and are else tested in files of their own.
const Entry kEvictions[] = {
    {R"({"type": "snap_kv", "token_capacity": 20, "approximation_window": 4, "kernel_size": 3})", kNone},
    {R"({"type": "ada_snap_kv", "token_capacity": 20, "approximation_window": 4, "kernel_size": 3, "local_window": 4})", kNone},
    {R"({"type": "pyramid_kv", "num_layers": 2, "token_capacity": 20, "approximation_window": 4, "kernel_size": 3})", kNone},
    {R"({"type": "h2o", "heavy_size": 6, "recent_size": 6})", kNone},
    {R"({"type": "tova", "token_capacity": 12})", kNone},
};
// clang-format on

/// They need a prefill, or a file of their own, and are tested in files of their own.
const std::set<std::string> kElsewhere{"ada_snap_kv", "block_list", "h2o", "pyramid_kv", "snap_kv", "tova"};

std::string with_data(std::string masker) {
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

TEST_P(Catalogue, ChoosesAndDoesNotDependOnThreads) {
  SequenceState one, three;
  const Mask mask = sparse.mask(inputs, one, Context(1));
  EXPECT_EQ(sparse.mask(inputs, three, Context(3)), mask);
  EXPECT_GT(mask.nnz(), 0);
  if (std::string(GetParam().masker).find("causal") == std::string::npos) {
    EXPECT_LT(mask.nnz(), causal_nnz(Mask::full(inputs.shape()))) << "a test that leaves nothing out shows little";
  }
}

TEST_P(Catalogue, HeadsThatAreNotWantedChangeNothingForTheOthers) {
  std::string masker = with_data(GetParam().masker);
  masker.insert(masker.size() - 1, R"(, "heads": [1])");
  SequenceState all, some;
  const Mask whole = sparse.mask(inputs, all), part = pipeline_of(masker, true).mask(inputs, some);
  EXPECT_EQ(slice(part, Dim::heads, 1, 2), slice(whole, Dim::heads, 1, 2));
  EXPECT_EQ(slice(part, Dim::heads, 2, 4), slice(restrict_causal(Mask::full(inputs.shape())), Dim::heads, 2, 4))
      << "heads that no masker serves are dense";
}

class DecodeIsPrefill : public Catalogue {};
TEST_P(DecodeIsPrefill, ADecodeStepSelectsWhatThePrefillDoes) {
  SequenceState prefilled, decoded;
  const Mask prefill = sparse.mask(inputs, prefilled);
  for (Index query = 0; query < kLength; ++query) {
    const Mask row = sparse.mask(step(query), decoded);
    EXPECT_EQ(row, slice(slice(prefill, Dim::queries, query, query + 1), Dim::keys, 0, query + 1)) << query;
  }
}

class ReadsNewKeysOnly : public Catalogue {};
TEST_P(ReadsNewKeysOnly, ADecodeStepDoesNotReadOldKeysAgain) {
  SequenceState kept, spoilt;
  sparse.mask(inputs.rows(0, 50), kept);
  sparse.mask(inputs.rows(0, 50), spoilt);
  const Mask expected = sparse.mask(step(50), kept);
  // Where old keys lay, there is now something else; but the last one, by which a sequence is known.
  Tensor keys = Tensor::copy(owned.keys, DType::f32);
  for (Index head = 0; head < 2; ++head) {
    for (Index i = 0; i < 49 * 64; ++i)
      keys.span<float>()[static_cast<std::size_t>(head * kLength * 64 + i)] = std::numeric_limits<float>::quiet_NaN();
  }
  AttentionInputs changed = step(50);
  changed.keys = keys.view().slice(2, 0, 51);
  EXPECT_EQ(sparse.mask(changed, spoilt), expected);
}

/// A batch under an attention mask: the first sequence is padded on the left, keys of the second are forbidden here and
/// there, and key 40 to some of its queries only.
class ForbiddenKeys : public Catalogue {
 protected:
  static constexpr Index kPrompt = 60;
  ForbiddenKeys() : attention_mask_(DType::f32, {2, 1, kLength, kLength}) {
    for (Index query = 0; query < kLength; ++query) {
      for (Index key = 0; key < kLength; ++key) {
        if (is_forbidden(0, query, key)) at(0, query, key) = -std::numeric_limits<float>::infinity();
        if (is_forbidden(1, query, key)) at(1, query, key) = -std::numeric_limits<float>::infinity();
      }
    }
  }
  static bool is_forbidden(Index batch, Index query, Index key) {
    if (batch == 0) return key < 13;
    return key % 7 == 3 || (key >= 24 && key < 33) || (key == 40 && query % 2 == 0);
  }
  /// What the masker chooses of the allowed keys, at the prompt and at the steps after it.
  std::vector<Array<float>> chosen(Tensor& keys) {
    inputs.queries = queries_.view();
    inputs.keys = keys.view();
    inputs.values = values_.view();
    inputs.attention_mask = attention_mask_.view();
    SequenceState state;
    std::vector<Array<float>> masks;
    const auto add = [&](const Mask& mask, Index first) {
      masks.push_back(to_dense(mask));
      const MaskShape shape = mask.shape();
      for (Index row = 0; row < shape.rows(); ++row) {
        const RowId id = shape.row_of_logical(row);
        for (Index key = 0; key < shape.keys; ++key) {
          if (is_forbidden(id.batch, first + id.query, key))
            masks.back()[static_cast<std::size_t>(row * shape.keys + key)] = 0;
        }
      }
    };
    const auto of_both = [&](Index from, Index to) {
      for (NamedTensor& extra : extras) {
        extra.tensor = (extra.name == "indexer_keys"      ? indexer_keys
                        : extra.name == "indexer_queries" ? indexer_queries
                                                          : indexer_weights)
                           .view();
        extra.tensor = extra.tensor.slice(2, extra.name == "indexer_keys" ? 0 : from, to);
        extra.tensor.shape[0] = 2;
        extra.tensor.strides[0] = 0;
      }
      AttentionInputs part = inputs.rows(from, to);
      part.extras = extras;
      part.stage = from == 0 ? Stage::prefill : Stage::generation;
      return part;
    };
    add(sparse.mask(of_both(0, kPrompt), state), 0);
    for (Index query = kPrompt; query < kLength; ++query) add(sparse.mask(of_both(query, query + 1), state), query);
    return masks;
  }

  Tensor random(Index heads, std::uint32_t seed) const {
    std::mt19937 engine(seed);
    return random_tensor(DType::f32, {2, heads, kLength, 64}, engine);
  }
  Tensor keys_ = random(2, 3);

 private:
  float& at(Index batch, Index query, Index key) {
    return attention_mask_.span<float>()[static_cast<std::size_t>((batch * kLength + query) * kLength + key)];
  }
  Tensor queries_ = random(4, 1), values_ = random(2, 2), attention_mask_;
};

TEST_P(ForbiddenKeys, WhatTheyHoldDecidesNothing) {
  const std::vector<Array<float>> expected = chosen(keys_);
  std::mt19937 engine(5);
  std::normal_distribution<float> large(0, 50);
  for (const float spoilt : {0.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor keys = Tensor::copy(keys_, DType::f32);
    for (Index row = 0; row < 4 * kLength; ++row) {
      if (!is_forbidden(row / (2 * kLength), 1, row % kLength)) continue;  // to every query, since query 1 is odd
      for (Index i = row * 64; i < (row + 1) * 64; ++i)
        keys.span<float>()[static_cast<std::size_t>(i)] = spoilt == 0 ? large(engine) : spoilt;
    }
    const std::vector<Array<float>> masks = chosen(keys);
    for (std::size_t step = 0; step < masks.size(); ++step)
      EXPECT_TRUE(std::equal(masks[step].begin(), masks[step].end(), expected[step].begin(), expected[step].end()))
          << "forbidden keys hold " << spoilt << ", call " << step;
  }
}

std::vector<Entry> all_entries() {
  std::vector<Entry> entries(std::begin(kCatalogue), std::end(kCatalogue));
  entries.insert(entries.end(), std::begin(kEvictions), std::end(kEvictions));
  return entries;
}

std::vector<Entry> promising(unsigned promise) {
  std::vector<Entry> entries;
  for (const Entry& entry : kCatalogue) {
    if ((entry.promises & promise) == promise) entries.push_back(entry);
  }
  return entries;
}

std::string name_of_entry(const ::testing::TestParamInfo<Entry>& parameter) {
  std::string name = std::string(parameter.param.masker).substr(10);
  name.resize(name.find('"'));
  return std::to_string(parameter.index) + "_" + name;
}

INSTANTIATE_TEST_SUITE_P(Maskers, Catalogue, ::testing::ValuesIn(kCatalogue), name_of_entry);
INSTANTIATE_TEST_SUITE_P(Maskers, ForbiddenKeys, ::testing::ValuesIn(all_entries()), name_of_entry);
INSTANTIATE_TEST_SUITE_P(Maskers, DecodeIsPrefill, ::testing::ValuesIn(promising(kDecodeIsPrefill)), name_of_entry);
INSTANTIATE_TEST_SUITE_P(Maskers, ReadsNewKeysOnly, ::testing::ValuesIn(promising(kReadsNewKeysOnly)), name_of_entry);

TEST(CatalogueTest, HoldsEveryMasker) {
  std::set<std::string> covered = kElsewhere;
  for (const Entry& entry : kCatalogue) {
    const std::vector<std::string> types = pipeline_of(with_data(entry.masker)).maskers(Stage::prefill);
    covered.insert(types.begin(), types.end());
  }
  for (const MaskerType* type : Registry::global().list()) {
    if (!type->name.starts_with("test_")) {
      EXPECT_TRUE(covered.contains(type->name)) << type->name;
    }
  }
}

}  // namespace
}  // namespace reticle::testing
