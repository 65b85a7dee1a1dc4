#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/ops/select_by_rules.hpp>

#include "support/attention.hpp"

namespace reticle::testing {

struct RulesOnlyConfig {
  Index best = 7;

  static constexpr const char* docs[] = {"keys of the highest scores"};
};

/// A masker that says what it chooses and nothing else. tests/cuda/device_test.cpp has it choose on a GPU.
class RulesOnly final : public Masker {
 public:
  explicit RulesOnly(const RulesOnlyConfig& config) : best_(config.best) {}
  std::vector<Rule> rules(Index, int) const override {
    return {Rule{Rule::Kind::sinks, 3}, Rule{Rule::Kind::window, 5}, Rule{Rule::Kind::top_k, best_}};
  }

 private:
  Index best_;
};

RETICLE_REGISTER_MASKER("test_rules_only", RulesOnly, RulesOnlyConfig,
                        {.summary = "Keeps sinks, a window and the best others.",
                         .source = "none: of the tests",
                         .rule = "as sink, local and oracle_top_k",
                         .cost = "theirs"});

namespace {

Mask chosen(const std::string& maskers, const AttentionInputs& inputs) {
  SequenceState state;
  return SparseAttention::from_json(R"({"maskers": [)" + maskers + "]}").mask(inputs, state);
}

TEST(Rules, AreAllThatAMaskerHasToSay) {
  for (const Index rows : {Index{1}, Index{6}}) {
    const OwnedInputs owned({2, 4, 2, rows, 40, 8, 8}, 3);
    EXPECT_EQ(chosen(R"({"type": "test_rules_only"})", owned.inputs),
              chosen(R"({"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 5},
                        {"type": "oracle_top_k", "heavy_size": 7})",
                     owned.inputs));
  }
}

TEST(Rules, OfOneMaskerChooseBeyondThoseBeforeThem) {
  const OwnedInputs owned({1, 2, 1, 4, 30, 8, 8}, 5);
  const Rule best{Rule::Kind::top_k, 4};
  const std::vector<Rule> twice{best, best}, once{Rule{Rule::Kind::top_k, 8}};
  const Mask none = Mask::empty(owned.inputs.shape());
  EXPECT_EQ(select_by_rules(twice, owned.inputs, none, {}), select_by_rules(once, owned.inputs, none, {}));
}

TEST(Rules, OfMaskersThatKeepSomethingAreTheirOwn) {
  const OwnedInputs owned({1, 2, 1, 4, 30, 8, 8}, 5);
  for (const Rule::Kind kind :
       {Rule::Kind::pages, Rule::Kind::hashed, Rule::Kind::quantised, Rule::Kind::adaptive, Rule::Kind::colliding}) {
    const std::vector<Rule> rules{Rule{kind, 4}};
    EXPECT_THROW(select_by_rules(rules, owned.inputs, Mask::empty(owned.inputs.shape()), {}), Error);
  }
}

class Silent final : public Masker {};

TEST(Rules, AMaskerWithoutThemSelectsByItself) {
  const OwnedInputs owned({1, 1, 1, 1, 4, 8, 8}, 5);
  LayerState state;
  try {
    Silent().select(owned.inputs, Mask::empty(owned.inputs.shape()), state, {});
    FAIL() << "it chose";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "masker \"?\": has neither rules nor a select of its own");
  }
}

Rule rule(Rule::Kind kind, Index count = 0) {
  Rule made;
  made.kind = kind;
  made.count = count;
  return made;
}

std::optional<Index> entries(const std::vector<Rule>& rules, Index keys = 100) { return entries_of(rules, keys); }

TEST(EntriesOfRules, AreKnownWhereNothingCanMeet) {
  using enum Rule::Kind;
  EXPECT_EQ(entries({}), 0);
  EXPECT_EQ(entries({rule(sinks, 4), rule(window, 8), rule(top_k, 16)}), 28);
  EXPECT_EQ(entries({rule(window, 8), rule(sinks, 4), rule(hashed, 3), rule(top_k, 2)}), 17);
  Rule drawn = rule(sample);
  drawn.share = 0.25;
  EXPECT_EQ(entries({rule(sinks, 20), drawn}), 40);  // a quarter of the 80 that are left
  drawn.share = 0.001;
  EXPECT_EQ(entries({drawn}), 1);
}

TEST(EntriesOfRules, AreAtMostTheKeys) {
  using enum Rule::Kind;
  EXPECT_EQ(entries({rule(sinks, 4), rule(window, 8)}, 10), 10);
  EXPECT_EQ(entries({rule(top_k, 1000)}, 10), 10);
  EXPECT_EQ(entries({rule(top_k, 1000), rule(sample)}, 10), 10);
}

TEST(EntriesOfRules, AreNotKnownWhereTheyDependOnScoresOrMayMeet) {
  using enum Rule::Kind;
  for (const Rule::Kind kind : {top_p, pages, quantised, adaptive, colliding})
    EXPECT_EQ(entries({rule(kind, 4)}), std::nullopt);
  EXPECT_EQ(entries({rule(top_k, 4), rule(sinks, 4)}), std::nullopt);  // sinks may be among the best
  EXPECT_EQ(entries({rule(window, 4), rule(window, 8)}), std::nullopt);
  Rule dilated = rule(window, 4);
  dilated.dilation = 2;
  EXPECT_EQ(entries({dilated}), std::nullopt);
}

}  // namespace
}  // namespace reticle::testing
