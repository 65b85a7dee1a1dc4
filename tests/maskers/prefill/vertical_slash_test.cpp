// Patterns that a prefill chooses from its own queries and keys.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/ops/vertical_slash.hpp>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(VerticalSlash, KeepsColumnsAndDiagonalsOfTheLastQueries) {
  // The last query attends to keys 1 and 5: one vertical is key 1, one slash is the distance 7 - 5 = 2.
  std::vector<float> keys(8, 0.0f);
  keys[1] = 9;
  keys[5] = 8;
  const Scored s(8, keys);
  const Mask mask = mask_of(
      R"({"type": "vertical_slash", "vertical_size": 1, "slash_size": 1, "approximation_window": 1,
          "attention_sinks": 0, "window_size": 0})",
      s.inputs);
  EXPECT_EQ(row_text(mask, 7), ".1......") << "distance 6 leads to key 1, too";
  EXPECT_EQ(row_text(mask, 6), "11......") << "the slash follows the query";
  EXPECT_EQ(row_text(mask, 5), ".1......");
  const Mask two = mask_of(
      R"({"type": "vertical_slash", "vertical_size": 1, "slash_size": 2, "approximation_window": 1,
          "attention_sinks": 0, "window_size": 0})",
      s.inputs);
  EXPECT_EQ(row_text(two, 7), ".1...1..");
  EXPECT_EQ(row_text(two, 2), "11......");
}

TEST(VerticalSlash, ForcedOnesCountInTheBudget) {
  std::vector<float> keys(8, 0.0f);
  keys[3] = 9;
  const Scored s(8, keys);
  const auto row = [&](int verticals, int sinks, int slashes, int window) {
    return row_text(mask_of(R"({"type": "vertical_slash", "approximation_window": 2, "vertical_size": )" +
                                std::to_string(verticals) + R"(, "attention_sinks": )" + std::to_string(sinks) +
                                R"(, "slash_size": )" + std::to_string(slashes) + R"(, "window_size": )" +
                                std::to_string(window) + "}",
                            s.inputs),
                    7);
  };
  EXPECT_EQ(row(2, 2, 2, 2), "11....11") << "the sinks and the window alone";
  EXPECT_EQ(row(3, 2, 2, 2), "11.1..11");
  EXPECT_EQ(row(1, 2, 1, 2), "1......1") << "a budget below the forced keeps the first of them";
}

TEST(VerticalSlash, WidenedSlashesCoverTheExactOnes) {
  const OwnedInputs owned({1, 2, 1, 200, 200, 16, 16}, 1);
  for (const char* block : {"2", "16", "64"}) {
    const std::string sizes = R"({"type": "vertical_slash", "vertical_size": 20, "slash_size": 30, "attention_sinks": 2,
                                  "window_size": 10, "block_size": )";
    const Mask exact = mask_of(sizes + "1}", owned.inputs), widened = mask_of(sizes + block + "}", owned.inputs);
    EXPECT_EQ((exact - widened).nnz(), 0) << block;
    EXPECT_GT(widened.nnz(), exact.nnz());
    EXPECT_EQ(widened, restrict_causal(widened));
  }
}

TEST(Cover, CountsTheHighestScoresThatPassAShare) {
  const std::vector<float> scores{0.1f, 0.5f, 0.25f, 0.125f};
  EXPECT_EQ(cover(scores, 0), 1);
  EXPECT_EQ(cover(scores, 0.5), 2) << "0.5 alone does not exceed it";
  EXPECT_EQ(cover(scores, 0.6), 2);
  EXPECT_EQ(cover(scores, 5), 4);
  EXPECT_EQ(cover({}, 1), 0);
}

TEST(AdaptiveVerticalSlash, BudgetsFollowTheAttention) {
  std::vector<float> keys(40, 0.0f);
  keys[7] = 12;
  const Scored peaked(40, keys), flat(40, std::vector<float>(40));
  const std::string masker =
      R"({"type": "adaptive_vertical_slash", "alpha": 0.5, "approximation_size": 4, "min_budget": 1,
          "attention_sinks": 0, "window_size": 0})";
  const std::string row = row_text(mask_of(masker, peaked.inputs), 39);
  EXPECT_EQ(row[7], '1');
  EXPECT_LE(std::count(row.begin(), row.end(), '1'), 4);
  const std::string spread = row_text(mask_of(masker, flat.inputs), 39);
  EXPECT_GE(std::count(spread.begin(), spread.end(), '1'), 20);
}

TEST(BlockSparse, KeepsTheBestChunksByTheirMeans) {
  // Chunk means of the keys: 0, 3, 1, 2.
  const Scored s(8, {0, 0, 3, 3, 0, 2, 2, 2});
  const auto row = [&](const std::string& more, Index query) {
    return row_text(mask_of(R"({"type": "block_sparse", "chunk_size": 2, "top_chunks": 2)" + more + "}", s.inputs),
                    query);
  };
  EXPECT_EQ(row(R"(, "sink_chunks": 0)", 7), "..11..11");
  EXPECT_EQ(row("", 7), "1111....") << "the first chunk counts";
  EXPECT_EQ(row(R"(, "sink_chunks": 1, "recent_chunks": 1)", 7), "11....11");
  EXPECT_EQ(row(R"(, "sink_chunks": 0)", 2), "111.....") << "fewer chunks than the budget, none after the query";
}

TEST(BlockSparse, OneChunkAndAWindowAreSinksAndAWindow) {
  const OwnedInputs owned({1, 2, 2, 50, 50, 8, 8}, 2);
  EXPECT_EQ(
      mask_of(R"({"type": "block_sparse", "chunk_size": 8, "top_chunks": 1}, {"type": "local", "window_size": 8})",
              owned.inputs, true),
      mask_of(R"({"type": "sink", "sink_size": 8}, {"type": "local", "window_size": 8})", owned.inputs, true));
}

TEST(BlockSparse, TheSumOfAShortChunkIsDividedByTheWholeSize) {
  const Scored s(5, {1, 1, 0, 0, 1.5f});  // the last chunk's mean is 0.75, below the first's
  EXPECT_EQ(
      row_text(mask_of(R"({"type": "block_sparse", "chunk_size": 2, "top_chunks": 1, "sink_chunks": 0})", s.inputs), 4),
      "11...");
}

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
  for (const double tau : {0.0, 2.0}) {  // no head, and every head, lets its queries choose
    const Mask few = mask(0.3, tau), many = mask(0.9, tau);
    for (Index query = 0; query < 160; ++query) {
      EXPECT_GT(few.at(0, 0, query, 0), 0);
      EXPECT_GT(few.at(0, 0, query, query), 0);
    }
    EXPECT_LT(few.nnz(), many.nnz()) << tau;
    EXPECT_LE(many.nnz(), causal_nnz(Mask::full(owned.inputs.shape())));
  }
}

TEST(XAttention, KeepsTheFirstTheOwnAndTheHeaviestBlocks) {
  std::vector<float> keys(16, 0.0f);
  for (int i = 4; i < 8; ++i) keys[static_cast<std::size_t>(i)] = 6;
  const Scored s(16, keys);
  const auto row = [&](double threshold) {
    return row_text(mask_of(R"({"type": "x_attention", "stride": 2, "block_size": 4, "threshold": )" +
                                std::to_string(threshold) + "}",
                            s.inputs),
                    15);
  };
  EXPECT_EQ(row(0), "1111........1111");
  EXPECT_EQ(row(0.5), "11111111....1111");
  EXPECT_EQ(row(1), std::string(16, '1'));
}

TEST(PrefillPatterns, RefuseBadParameters) {
  EXPECT_NE(refusal(R"({"type": "vertical_slash", "approximation_window": 0})").find("/approximation_window"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "vertical_slash", "vertical_size": 0, "slash_size": 0})").find("must be > 0"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "adaptive_vertical_slash", "alpha": 1.5})").find("[0, 1]"), std::string::npos);
  EXPECT_NE(refusal(R"({"type": "block_sparse", "top_chunks": 1, "recent_chunks": 1})").find("sink_chunks + recent"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "flex_prefill", "min_budget": 5, "max_budget": 4})").find("at least min_budget"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"type": "x_attention", "block_size": 12})").find("multiple of stride"), std::string::npos);
}

}  // namespace
}  // namespace reticle::testing
