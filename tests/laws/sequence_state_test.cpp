// What maskers keep follows what happens to a cache: for every registered masker.
#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {
namespace {

const std::string kData = std::string(RETICLE_SOURCE_DIR) + "/examples/data/";

/// What makes maskers choose among so few keys.
const std::map<std::string, std::string> kSmall = {
    {"ada_snap_kv", R"("token_capacity": 16, "approximation_window": 8, "local_window": 4, "prefix_tokens": 1)"},
    {"double_sparsity_top_k",
     R"("heavy_size": 12, "sorted_channel_file": ")" + kData + "double_sparsity_channels.json\""},
    {"h2o", R"("heavy_size": 8, "recent_size": 8)"},
    {"hash_attention_top_k", R"("heavy_size": 12, "hat_bits": 32, "hat_mlp_layers": 1, "hat_weight_file": ")" + kData +
                                 "random_hash_weights.safetensors\""},
    {"inf_llm", R"("block_size": 4, "n_init": 2, "n_local": 12, "top_k": 2, "repr_top_k": 2)"},
    {"loki_top_k", R"("heavy_size": 12, "pca_file": ")" + kData + "loki_pca.safetensors\""},
    {"magic_pig", R"("lsh_l": 12, "lsh_k": 4)"},
    {"moba", R"("block_size": 8, "top_k": 2)"},
    {"nsa_top_k", R"("kernel_size": 8, "kernel_stride": 4, "block_size": 8, "top_k": 3, "local_blocks": 1)"},
    {"pq_cache", R"("heavy_size": 8, "pq_bits": 3)"},
    {"pyramid_kv", R"("token_capacity": 16, "approximation_window": 8, "num_layers": 2)"},
    {"quest_top_k", R"("heavy_size": 12, "page_size": 4, "min_pages": 1)"},
    {"snap_kv", R"("token_capacity": 16, "approximation_window": 8)"},
    {"socket", R"("heavy_size": 8)"},
    {"top_k", R"("heavy_size": 8, "scorer": "page_bounds", "page_size": 4)"},
    {"top_p", R"("scorer": "page_means", "page_size": 4)"},
    {"tova", R"("token_capacity": 16)"},
};

std::string small_config(const std::string& type) {
  const auto known = kSmall.find(type);
  return R"({"type": ")" + type + "\"" + (known == kSmall.end() ? "" : ", " + known->second) + "}";
}

constexpr Index kBatch = 3, kHeads = 4, kKvHeads = 2, kHeadDim = 64, kKeys = 90, kPrompt = 60;

/// The tensors of a few sequences, which other sequences share the first keys of.
class Sequences {
 public:
  explicit Sequences(unsigned seed)
      : queries_(drawn(kHeads, seed)), keys_(drawn(kKvHeads, seed + 1)), values_(drawn(kKvHeads, seed + 2)) {}

  /// Tokens [from, to) of all sequences, with the keys before them.
  AttentionInputs at(Index from, Index to, Stage stage) const {
    AttentionInputs inputs;
    inputs.queries = queries_.view().slice(2, from, to);
    inputs.keys = keys_.view().slice(2, 0, to);
    inputs.values = values_.view().slice(2, 0, to);
    inputs.scaling = 0.125f;
    inputs.causal = true;
    inputs.stage = stage;
    return inputs;
  }
  /// Of sequences `rows` the keys before `from`, and from there on what rows `others` of `other` have.
  Sequences continued(const std::vector<Index>& rows, Index from, const Sequences& other,
                      const std::vector<Index>& other_rows) const {
    Sequences mixed(0);
    const auto mix = [&](const Tensor& own, const Tensor& others, Tensor& to) {
      const Index heads = own.view().size(1);
      to = Tensor(DType::f32, {static_cast<Index>(rows.size()), heads, kKeys, kHeadDim});
      for (Index row = 0; row < static_cast<Index>(rows.size()); ++row) {
        for (Index head = 0; head < heads; ++head) {
          for (Index token = 0; token < kKeys; ++token) {
            const auto* from_row =
                token < from ? own.view().at<float>(rows[static_cast<std::size_t>(row)], head, token, 0)
                             : others.view().at<float>(other_rows[static_cast<std::size_t>(row)], head, token, 0);
            std::copy_n(from_row, kHeadDim,
                        to.span<float>().begin() + ((row * heads + head) * kKeys + token) * kHeadDim);
          }
        }
      }
    };
    mix(queries_, other.queries_, mixed.queries_);
    mix(keys_, other.keys_, mixed.keys_);
    mix(values_, other.values_, mixed.values_);
    return mixed;
  }

 private:
  static Tensor drawn(Index heads, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw;
    Tensor tensor(DType::f32, {kBatch, heads, kKeys, kHeadDim});
    for (float& x : tensor.span<float>()) x = draw(random);
    return tensor;
  }

  Tensor queries_, keys_, values_;
};

class EveryMasker : public ::testing::TestWithParam<std::string> {
 protected:
  EveryMasker() : sparse_(SparseAttention::from_json(R"({"maskers": [)" + small_config(GetParam()) + "]}")) {}

  void prefill(const Sequences& sequences, SequenceState& state) const {
    sparse_.mask(sequences.at(0, kPrompt, Stage::prefill), state);
  }
  /// Decodes tokens [from, to) one by one; the masks.
  std::vector<Mask> decode(const Sequences& sequences, SequenceState& state, Index from, Index to) const {
    std::vector<Mask> masks;
    for (Index token = from; token < to; ++token)
      masks.push_back(sparse_.mask(sequences.at(token, token + 1, Stage::generation), state));
    return masks;
  }

  SparseAttention sparse_;
};

TEST_P(EveryMasker, TruncatedAStateIsAsIfTheRestHadNeverBeenSeen) {
  const Sequences sequences(1), others(11);
  const std::vector<Index> all = {0, 1, 2};
  for (const Index cut : {kPrompt + 3, kPrompt, kPrompt - 20}) {
    const Sequences continued = sequences.continued(all, cut, others, all);
    SequenceState state, fresh;
    prefill(sequences, state);
    decode(sequences, state, kPrompt, kPrompt + 12);
    try {
      state.truncate(cut);
    } catch (const ValueError& error) {
      EXPECT_TRUE(cut < kPrompt || GetParam() == "inf_llm") << error.what();
      EXPECT_NE(std::string(error.what()).find("masker \"" + GetParam() + "\" cannot follow its sequence: "),
                std::string::npos)
          << error.what();
      continue;
    }
    if (cut < kPrompt) {
      sparse_.mask(sequences.at(0, cut, Stage::prefill), fresh);
    } else {
      prefill(sequences, fresh);
      decode(sequences, fresh, kPrompt, cut);
    }
    EXPECT_EQ(decode(continued, state, cut, cut + 8), decode(continued, fresh, cut, cut + 8)) << "cut at " << cut;
  }
}

TEST_P(EveryMasker, SelectedSequencesGoOnAsTheyWouldHave) {
  const Sequences sequences(2), others(12);
  const std::vector<Index> rows = {2, 0, 0, 1}, after = {0, 1, 2, 1}, all = {0, 1, 2};
  const Index cut = kPrompt + 5;
  const Sequences continued = sequences.continued(rows, cut, others, after);
  SequenceState state;
  prefill(sequences, state);
  decode(sequences, state, kPrompt, cut);
  SequenceState before = state.fork();
  state.select(rows);
  const std::vector<Mask> found = decode(continued, state, cut, cut + 4);
  if (found.front().weighted()) {  // what is drawn goes by the place in the batch
    SequenceState fresh;
    prefill(continued, fresh);
    decode(continued, fresh, kPrompt, cut);
    EXPECT_EQ(found, decode(continued, fresh, cut, cut + 4));
  } else {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Sequences in_place = sequences.continued(all, cut, others, {after[i], after[i], after[i]});
      SequenceState own = before.fork();
      const std::vector<Mask> expected = decode(in_place, own, cut, cut + 4);
      for (std::size_t step = 0; step < found.size(); ++step) {
        const auto row = static_cast<Index>(i);
        EXPECT_EQ(slice(found[step], Dim::batch, row, row + 1), slice(expected[step], Dim::batch, rows[i], rows[i] + 1))
            << "row " << i << ", step " << step;
      }
    }
  }
  EXPECT_THROW(state.select(std::vector<Index>{-1}), ValueError);
}

TEST_P(EveryMasker, AForkGoesOnByItself) {
  const Sequences sequences(3), others(13);
  const Index cut = kPrompt + 5;
  const Sequences continued = sequences.continued({0, 1, 2}, cut, others, {0, 1, 2});
  SequenceState state;
  prefill(sequences, state);
  decode(sequences, state, kPrompt, cut);
  SequenceState fork = state.fork();
  const std::vector<Mask> other_way = decode(continued, fork, cut, cut + 6);
  SequenceState fresh;
  prefill(sequences, fresh);
  decode(sequences, fresh, kPrompt, cut);
  EXPECT_EQ(decode(sequences, state, cut, cut + 6), decode(sequences, fresh, cut, cut + 6));
  SequenceState again;
  prefill(sequences, again);
  decode(sequences, again, kPrompt, cut);
  EXPECT_EQ(other_way, decode(continued, again, cut, cut + 6));
}

TEST_P(EveryMasker, WhatItLeavesForGoodIsNotChosenAgain) {
  const Sequences sequences(4);
  SequenceState state;
  prefill(sequences, state);
  std::vector<std::pair<Index, Mask>> lasting;
  try {
    lasting.emplace_back(kPrompt, sparse_.lasting(sequences.at(0, kPrompt, Stage::generation), kPrompt, state));
  } catch (const ValueError& error) {
    EXPECT_EQ(std::string(error.what()).find("eviction: " + GetParam() + " may come back to any key"), 0U);
    return;
  }
  for (Index token = kPrompt; token < kKeys; ++token) {
    const AttentionInputs inputs = sequences.at(token, token + 1, Stage::generation);
    const Mask chosen = sparse_.mask(inputs, state);
    for (const auto& [keys, mask] : lasting) {
      EXPECT_EQ(subtract(slice(chosen, Dim::keys, 0, keys), mask).nnz(), 0) << "token " << token << ", " << keys;
    }
    if (token % 8 == 0) lasting.emplace_back(token + 1, sparse_.lasting(inputs, std::max(kPrompt, token - 4), state));
  }
}

TEST_P(EveryMasker, EveryWholeNumberInItsConfigIsBounded) {
  const MaskerType& type = Registry::global().at(GetParam());
  const Sequences sequences(5);
  const auto try_with = [&](std::string_view field, const std::string& value) {
    std::string config = small_config(GetParam());
    const auto given = config.find("\"" + std::string(field) + "\": ");
    if (given != std::string::npos) {
      const auto end = config.find_first_of(",}", given);
      config.erase(given, config[end] == ',' ? end + 1 - given : end - given);
      if (const auto comma = config.rfind(", }"); comma != std::string::npos) config.erase(comma, 2);
    }
    config.insert(config.size() - 1, ", \"" + std::string(field) + "\": " + value);
    try {
      const auto sparse = SparseAttention::from_json(R"({"maskers": [)" + config + "]}");
      SequenceState state;
      sparse.mask(sequences.at(0, kPrompt, Stage::prefill), state);
      sparse.mask(sequences.at(kPrompt, kPrompt + 1, Stage::generation), state);
    } catch (const Error&) {  // refused by name, when it is read or when it meets the tensors
      return false;
    }
    return true;
  };
  for (const Field& field : type.factory.config_type->fields()) {
    const FieldType* kind = field.type;
    if (kind->kind == FieldType::Kind::optional) kind = kind->element;
    if (kind->kind != FieldType::Kind::integer && kind->kind != FieldType::Kind::size) continue;
    for (const char* value : {"0", "1", "2", "2147483646", "2147483647"}) try_with(field.name, value);
    if (kind->greatest == INT64_MAX) continue;  // a seed
    for (const char* value : {"2147483648", "4611686018427387904", "9223372036854775807", "18446744073709551615"})
      EXPECT_FALSE(try_with(field.name, value)) << field.name << ": " << value;
  }
}

/// Those that need nothing beside queries, keys and values but a file that is bundled.
std::vector<std::string> types() {
  std::vector<std::string> types;
  for (const MaskerType* type : Registry::global().list()) {
    const auto fields = type->factory.config_type->fields();
    const bool data = std::ranges::any_of(fields, [](const Field& field) { return field.required; });
    if (type->docs.extras.empty() && !type->name.starts_with("test_") && (!data || kSmall.contains(type->name)))
      types.push_back(type->name);
  }
  return types;
}

INSTANTIATE_TEST_SUITE_P(SequenceStates, EveryMasker, ::testing::ValuesIn(types()),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace reticle
