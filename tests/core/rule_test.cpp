#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/rule.hpp>

namespace reticle::testing {
namespace {

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
