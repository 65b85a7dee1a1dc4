#include <string>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(FlexPrefill, ShortPromptsStayDense) {
  const OwnedInputs owned({1, 1, 1, 32, 32, 8, 8}, 3);
  EXPECT_EQ(mask_of(R"({"type": "flex_prefill", "block_size": 16})", owned.inputs, true),
            restrict_causal(Mask::full(owned.inputs.shape())));
}

TEST(FlexPrefill, KeepsTheFirstBlockAndTheDiagonalAndGrowsWithGamma) {
  const OwnedInputs owned({1, 2, 1, 160, 160, 16, 16}, 4);
  const auto mask = [&](double gamma, double tau) {
    return mask_of(R"({"type": "flex_prefill", "block_size": 16, "gamma": )" + std::to_string(gamma) + R"(, "tau": )" +
                       std::to_string(tau) + "}",
                   owned.inputs);
  };
  for (const double tau : {0.0, 2.0}) {  // no head uses query-aware selection, then every head does
    const Mask few = mask(0.3, tau), many = mask(0.9, tau);
    for (Index query = 0; query < 160; ++query) {
      EXPECT_GT(few.at(0, 0, query, 0), 0);
      EXPECT_GT(few.at(0, 0, query, query), 0);
    }
    EXPECT_LT(few.nnz(), many.nnz()) << tau;
    EXPECT_LE(many.nnz(), causal_nnz(Mask::full(owned.inputs.shape())));
  }
}

/// The mask of 8 queries, in blocks of 2, all of which attend to key 2.
Mask looking_at_key_2(const std::string& parameters) {
  const Scored s(8, {0, 0, 40, 0, 0, 0, 0, 0});
  return mask_of(masker("flex_prefill", R"("block_size": 2, )" + parameters), s.inputs);
}

TEST(FlexPrefill, AddsTheBlocksAndTheDistancesThatTheLastQueriesAttendTo) {
  // Besides the first and the query's block: block 1, which holds key 2, and the block two before the query's.
  const Mask mask = looking_at_key_2(R"("tau": 0, "gamma": 0.5, "min_budget": 3)");
  EXPECT_EQ(row_text(mask, 7), "1111..11");
  EXPECT_EQ(row_text(mask, 5), "111111..");
  EXPECT_EQ(row_text(mask, 4), "11111...");
  EXPECT_EQ(row_text(mask, 2), "111.....");
  const Mask least = looking_at_key_2(R"("tau": 0, "gamma": 0.5, "min_budget": 1)");
  EXPECT_EQ(row_text(least, 7), "1111..11");
  EXPECT_EQ(row_text(least, 5), "11..11..") << "one key needs no second block, but two distances, 4 and 5, do";
  const Mask bounded = looking_at_key_2(R"("tau": 0, "gamma": 1, "max_budget": 2)");
  EXPECT_EQ(row_text(bounded, 7), "11....11");
}

TEST(FlexPrefill, BlocksOfQueriesThatChooseShareOneBudgetOfProbability) {
  // Four blocks of queries have a probability of 1 each: of block 0 the first, of block 1 with key 2 the others.
  const auto row = [](const std::string& gamma, Index query) {
    return row_text(looking_at_key_2(R"("tau": 2, "gamma": )" + gamma), query);
  };
  EXPECT_EQ(row("0.5", 5), "11..11..") << "2 of 4 are spent on the first two blocks of queries";
  EXPECT_EQ(row("0.9", 5), "111111..");
  EXPECT_EQ(row("0.9", 7), "11....11");
  EXPECT_EQ(row("1", 7), "1111..11");
}

TEST(FlexPrefill, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "flex_prefill", "min_budget": 5, "max_budget": 4})"),
            "/maskers/0/max_budget: must be at least min_budget, got 4");
  EXPECT_EQ(refusal(R"({"type": "flex_prefill", "gamma": 1.5})"), "/maskers/0/gamma: must be in [0, 1], got 1.5");
  EXPECT_EQ(refusal(R"({"type": "flex_prefill", "tau": -1})"), "/maskers/0/tau: must be >= 0, got -1");
}

}  // namespace
}  // namespace reticle::testing
