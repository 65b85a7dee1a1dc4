#include <string>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(InfLlm, KeepsTheFirstTheNearAndTheBlocksThatMattered) {
  // Memory blocks hold 2 keys after the first key; the window is 3. In block [3, 5), key 3 receives attention while it
  // is in the window.
  const Scored s(10, {0, 0, 0, 6, 0, 0, 0, 0, 0, 0});
  const auto mask = [&](int top) {
    return mask_of(R"({"type": "inf_llm", "block_size": 2, "n_init": 1, "n_local": 3, "repr_top_k": 1,
                       "exc_block_size": 1, "top_k": )" +
                       std::to_string(top) + "}",
                   s.inputs);
  };
  EXPECT_EQ(row_text(mask(0), 9), "1......111") << "blocks [1, 3), [3, 5), [5, 7) lie behind";
  EXPECT_EQ(row_text(mask(1), 9), "1..11..111");
  EXPECT_EQ(row_text(mask(9), 9), "1111111111");
  EXPECT_EQ(row_text(mask(1), 3), "1111......") << "not yet behind";
}

TEST(InfLlm, RepresentsABlockByTheMeanOfItsKeysOfMostAttention) {
  // In block [0, 2), key 0 received the attention; its mean with key 1 is below that of block [2, 4).
  const Scored s(8, {4, -9, 3, 3, 0, 0, 0, 0});
  const auto row = [&](int keys) {
    return row_text(mask_of(masker("inf_llm", R"("block_size": 2, "n_init": 0, "n_local": 2, "top_k": 1,
                                                 "exc_block_size": 1, "repr_top_k": )" +
                                                  std::to_string(keys)),
                            s.inputs),
                    7);
  };
  EXPECT_EQ(row(1), "11....11");
  EXPECT_EQ(row(2), "..11..11");
}

TEST(InfLlm, QueriesOfAChunkChooseByTheirMeanAndKeepWhatIsNearTheFirstOfThem) {
  const Scored s({1, 1, 1, 1, 1, 1, -3, 1}, {4, 4, -4, -4, 0, 0, 0, 0});
  const auto mask = [&](int queries) {
    return mask_of(masker("inf_llm", R"("block_size": 2, "n_init": 0, "n_local": 2, "top_k": 1, "repr_top_k": 1,
                                        "exc_block_size": )" +
                                         std::to_string(queries)),
                   s.inputs);
  };
  const Mask alone = mask(1), together = mask(2);
  EXPECT_EQ(row_text(alone, 7), "11....11");
  EXPECT_EQ(row_text(together, 7), "..111111") << "the mean of -3 and 1 looks at the negative keys";
  EXPECT_EQ(row_text(together, 6), "..11111.");
}

TEST(InfLlm, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "inf_llm", "n_local": 0})"), "/maskers/0/n_local: must be in [1, 2^31), got 0");
  EXPECT_EQ(refusal(R"({"type": "inf_llm", "n_init": -1})"), "/maskers/0/n_init: must be in [0, 2^31), got -1");
}

}  // namespace
}  // namespace reticle::testing
