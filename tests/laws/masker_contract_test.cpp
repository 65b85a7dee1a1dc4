// The contract of every registered masker, whatever it selects.
#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/registry.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

/// True if a masker's config has a field without a default, such as a file of weights, or if it needs extra tensors.
bool needs_data(const MaskerType& type) {
  if (!type.docs.extras.empty()) return true;
  const auto fields = type.factory.config_type->fields();
  return std::any_of(fields.begin(), fields.end(), [](const Field& field) { return field.required; });
}

std::vector<std::string> registered(bool with_data) {
  std::vector<std::string> names;
  for (const MaskerType* type : Registry::global().list()) {
    if (!type->name.starts_with("test_") && needs_data(*type) == with_data) names.push_back(type->name);
  }
  return names;
}

class Contract : public ::testing::TestWithParam<std::string> {
 protected:
  SparseAttention sparse = SparseAttention::from_json(R"({"maskers": [{"type": ")" + GetParam() + R"("}]})");
  SparseAttention causal =
      SparseAttention::from_json(R"({"maskers": [{"type": ")" + GetParam() + R"("}], "causal": true})");

  Mask select(const AttentionInputs& inputs, int threads = 1,
              const std::optional<Mask>& previous = std::nullopt) const {
    SequenceState state;
    return sparse.mask(inputs, state, Context(threads), previous);
  }
};

TEST_P(Contract, IsDocumented) {
  const MaskerType& type = Registry::global().at(GetParam());
  EXPECT_TRUE(type.docs.summary.ends_with("."));
  EXPECT_FALSE(type.docs.source.empty());
  EXPECT_FALSE(type.docs.rule.empty());
  EXPECT_FALSE(type.docs.cost.empty());
  for (const Field& field : type.factory.config_type->fields()) EXPECT_FALSE(field.doc.empty()) << field.name;
}

TEST_P(Contract, ItsDefaultConfigRoundTrips) {
  const std::string printed = sparse.to_json();
  EXPECT_EQ(SparseAttention::from_json(printed).to_json(), printed);
  EXPECT_TRUE(nlohmann::json::accept(schema(GetParam())));
}

TEST_P(Contract, OnlyAddsToWhatWasChosen) {
  const OwnedInputs owned({2, 4, 2, 6, 70, 16, 16}, 1);
  std::mt19937 random(1);
  for (const NamedMask& previous : random_masks(owned.inputs.shape(), random)) {
    const Mask mask = select(owned.inputs, 1, previous.mask);
    EXPECT_EQ((previous.mask - mask).nnz(), 0) << previous.name;
    EXPECT_EQ(merge(mask, previous.mask, MergeRule::max), mask) << previous.name << ": some p was lowered";
  }
}

TEST_P(Contract, GivesTheSameMaskForAnyNumberOfThreads) {
  const OwnedInputs owned({2, 4, 2, 67, 130, 16, 16}, 2, DType::bf16);
  const Mask one = select(owned.inputs, 1);
  EXPECT_EQ(select(owned.inputs, 2), one);
  EXPECT_EQ(select(owned.inputs, 5), one);
}

TEST_P(Contract, SelectsNoForbiddenKey) {
  OwnedInputs owned({1, 4, 2, 6, 40, 16, 16}, 3);
  SequenceState state;
  const Mask mask = causal.mask(owned.inputs, state);
  EXPECT_EQ(mask, restrict_causal(mask));
  EXPECT_GT(mask.nnz(), 0);
}

TEST_P(Contract, CopesWithTheSmallestInputs) {
  for (const Shapes& s : {Shapes{1, 1, 1, 1, 1, 1, 1}, Shapes{1, 2, 1, 3, 1, 4, 4}, Shapes{1, 2, 1, 1, 3, 4, 4},
                          Shapes{0, 2, 1, 3, 4, 4, 4}, Shapes{1, 2, 1, 0, 4, 4, 4}, Shapes{1, 2, 1, 3, 0, 4, 4},
                          Shapes{1, 2, 2, 9, 4, 4, 4}}) {
    OwnedInputs owned(s, 4);
    owned.inputs.scaling = 1;
    for (const SparseAttention* pipeline : {&sparse, &causal}) {
      SequenceState state;
      const SparseAttentionResult result = pipeline->run(owned.inputs, state, true);
      EXPECT_TRUE(result.mask.shape().same_logical(owned.inputs.shape()));
      EXPECT_LE(result.mask.nnz(), owned.inputs.shape().positions());
    }
  }
}

TEST_P(Contract, CopesWithNonFiniteAndEqualScores) {
  OwnedInputs owned({1, 2, 1, 3, 50, 8, 8}, 5);
  std::fill(owned.keys.span<float>().begin(), owned.keys.span<float>().end(), 1.0f);
  EXPECT_NO_THROW(select(owned.inputs));
  for (std::size_t i = 0; i < 100; ++i)
    owned.keys.span<float>()[i * 4] =
        i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
  EXPECT_NO_THROW(select(owned.inputs));
}

INSTANTIATE_TEST_SUITE_P(Maskers, Contract, ::testing::ValuesIn(registered(false)),
                         [](const auto& parameter) { return parameter.param; });

// The behaviour of these maskers with data is tested elsewhere.
TEST(MaskersThatNeedData, SaySoWhenItIsMissing) {
  const OwnedInputs owned({1, 2, 1, 3, 50, 8, 8}, 5);
  for (const std::string& name : registered(true)) {
    try {
      SequenceState state;
      SparseAttention::from_json(R"({"maskers": [{"type": ")" + name + R"("}]})").mask(owned.inputs, state);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("is missing"), std::string::npos) << error.what();
    }
    const MaskerDocs& docs = Registry::global().at(name).docs;
    EXPECT_TRUE(docs.summary.ends_with(".") && !docs.source.empty() && !docs.rule.empty() && !docs.cost.empty())
        << name;
  }
}

}  // namespace
}  // namespace reticle::testing
