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

/// A masker that implements rules() only. tests/core/cuda/choose_test.cpp runs it on a GPU.
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
  KeptByRules kept;
  EXPECT_EQ(select_by_rules(twice, owned.inputs, none, kept, {}), select_by_rules(once, owned.inputs, none, kept, {}));
}

TEST(Rules, ThatCannotBeFollowedAreRefusedByNumber) {
  const OwnedInputs owned({1, 2, 1, 4, 30, 8, 8}, 5);
  const auto refusal = [&](const std::vector<Rule>& rules) -> std::string {
    KeptByRules kept;
    try {
      select_by_rules(rules, owned.inputs, Mask::empty(owned.inputs.shape()), kept, {});
    } catch (const ValueError& error) {
      return error.what();
    }
    return "followed";
  };
  const Rule sinks{Rule::Kind::sinks, 2}, pages{.kind = Rule::Kind::pages, .count = 2, .page_size = 4};
  for (const Rule::Kind kind : {Rule::Kind::hashed, Rule::Kind::quantised, Rule::Kind::colliding})
    EXPECT_EQ(refusal({sinks, Rule{kind, 4}}), "rule 1: goes by codes; expected its hash, quantiser or lsh");
  EXPECT_EQ(refusal({Rule{Rule::Kind::pages, 4}}),
            "rule 0: pages of 0 keys, bounds of 16 bits; expected at least 1, and 1 to 16");
  EXPECT_EQ(refusal({pages, sinks, pages}),
            "rule 2: is the second that keeps the same of the keys; expected at most one");
  EXPECT_EQ(refusal({Rule{.kind = Rule::Kind::window, .count = 2, .dilation = 0}}),
            "rule 0: a window of keys 0 apart; expected at least 1");
  EXPECT_EQ(refusal({Rule{Rule::Kind::top_k, -1}}), "rule 0: -1 keys; expected at least 0");
  const PqRecipe no_parts{.parts = 0};
  const LshRecipe no_bits{.bits = 0};
  Rule quantised{Rule::Kind::quantised, 1}, colliding{Rule::Kind::colliding};
  quantised.quantiser = &no_parts;
  colliding.lsh = &no_bits;
  EXPECT_EQ(refusal({quantised}),
            "rule 0: 0 parts of 1 centroids beyond 0 keys; expected at least 1, 1 to 65536, and at least 0");
  EXPECT_EQ(refusal({colliding}), "rule 0: 1 tables of 0 bits; expected at least 1 of each");
  EXPECT_EQ(refusal({pages, sinks}), "followed");
}

/// A masker with two rules, sinks and pages among all keys; only the pages keep state.
class SinksAndPages final : public Masker {
 public:
  std::vector<Rule> rules(Index, int) const override {
    return {Rule{Rule::Kind::sinks, 3}, Rule{.kind = Rule::Kind::pages, .count = 2, .page_size = 4}};
  }
};

TEST(Rules, KeepWhatTheyHaveReadAndFollowTheSequence) {
  const OwnedInputs owned({2, 2, 1, 8, 40, 8, 8}, 5);
  const SinksAndPages masker;
  LayerState state;
  const auto step = [&](LayerState& of, Index query) {
    AttentionInputs inputs = owned.inputs;
    inputs.queries = inputs.queries.slice(2, query, query + 1);
    inputs.keys = inputs.keys.slice(2, 0, 33 + query);
    inputs.values = inputs.values.slice(2, 0, 33 + query);
    return masker.select(inputs, Mask::empty(inputs.shape()), of, {});
  };
  for (Index query = 0; query < 8; ++query) {
    LayerState fresh;
    EXPECT_EQ(step(state, query), step(fresh, query)) << "step " << query;
  }
  LayerState fork = state.fork(), fresh;
  fork.truncate(35);
  EXPECT_EQ(step(fork, 3), step(fresh, 3)) << "cut back";
}

TEST(Rules, ThatChangeWithinASequenceAreRefused) {
  const OwnedInputs owned({1, 2, 1, 1, 30, 8, 8}, 5);
  const Mask none = Mask::empty(owned.inputs.shape());
  const PqRecipe books{.parts = 2, .centroids = 4}, others{.parts = 4, .centroids = 4};
  const LshRecipe tables{.tables = 4, .bits = 3}, more{.tables = 8, .bits = 3};
  Rule pages{.kind = Rule::Kind::pages, .count = 2, .page_size = 8}, quantised{Rule::Kind::quantised, 3},
      colliding{Rule::Kind::colliding};
  quantised.quantiser = &books;
  colliding.lsh = &tables;
  KeptByRules kept;
  for (const Rule& rule : {pages, quantised, colliding})
    EXPECT_EQ(select_by_rules({&rule, 1}, owned.inputs, none, kept, {}).shape().keys, 30);
  pages.page_size = 16;
  quantised.quantiser = &others;
  colliding.lsh = &more;
  for (const Rule& rule : {pages, quantised, colliding})
    EXPECT_THROW(select_by_rules({&rule, 1}, owned.inputs, none, kept, {}), ShapeError);
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
  EXPECT_EQ(entries({rule(top_k, 4), rule(sinks, 4)}), std::nullopt);  // sinks may be among the top keys
  EXPECT_EQ(entries({rule(window, 4), rule(window, 8)}), std::nullopt);
  Rule dilated = rule(window, 4);
  dilated.dilation = 2;
  EXPECT_EQ(entries({dilated}), std::nullopt);
}

}  // namespace
}  // namespace reticle::testing
