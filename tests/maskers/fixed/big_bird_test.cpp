#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(BigBird, KeepsGlobalWindowAndRandomBlocks) {
  const Scored s(32, std::vector<float>(32));
  const std::string fixed = R"({"type": "big_bird", "block_size": 4, "global_blocks": 1, "window_blocks": 3)";
  const Mask none = mask_of(fixed + R"(, "random_blocks": 0})", s.inputs);
  EXPECT_EQ(row_text(none, 0), std::string(32, '1')) << "global queries see everything";
  EXPECT_EQ(row_text(none, 17), "1111........111111111111........");
  EXPECT_EQ(row_text(mask_of(fixed + R"(, "random_blocks": 0})", s.inputs, true), 17),
            "1111........111111..............");
  const Mask two = mask_of(fixed + R"(, "random_blocks": 2})", s.inputs);
  for (Index query = 4; query < 32; ++query) {
    const std::string row = row_text(two, query);
    EXPECT_EQ(std::count(row.begin(), row.end(), '1'), std::min<Index>(32, query < 8 || query >= 28 ? 20 : 24))
        << query;
  }
  EXPECT_NE(two, mask_of(fixed + R"(, "random_blocks": 2, "seed": 1})", s.inputs));
}

TEST(BigBird, AnEvenWindowHasOneBlockMoreBefore) {
  const Scored s(24, std::vector<float>(24));
  const auto row = [&](int window) {
    return row_text(mask_of(masker("big_bird", R"("block_size": 4, "global_blocks": 0, "random_blocks": 0,
                                                  "window_blocks": )" +
                                                   std::to_string(window)),
                            s.inputs),
                    13);
  };
  EXPECT_EQ(row(0), "........................");
  EXPECT_EQ(row(1), "............1111........");
  EXPECT_EQ(row(2), "........11111111........");
  EXPECT_EQ(row(4), "....1111111111111111....");
}

TEST(BigBird, DrawsRandomBlocksBehindTheQueryWhenCausal) {
  const OwnedInputs owned({1, 2, 1, 30, 30, 8, 8}, 1);
  const Mask mask = mask_of(R"({"type": "big_bird", "block_size": 4, "global_blocks": 1, "window_blocks": 1,
                                "random_blocks": 2})",
                            owned.inputs, true);
  bool heads_differ = false;
  for (Index query = 0; query < 30; ++query) {
    for (Index head = 0; head < 2; ++head) {
      const std::string row = row_text(mask, query, head);
      const Index own = query / 4;
      EXPECT_EQ(row.substr(static_cast<std::size_t>(query) + 1).find('1'), std::string::npos) << query;
      Index blocks = 0;
      for (Index block = 0; block < own; ++block) {
        const std::string keys = row.substr(static_cast<std::size_t>(4 * block), 4);
        EXPECT_TRUE(keys == "1111" || keys == "....") << "query " << query << ", block " << block;
        blocks += keys == "1111";
      }
      EXPECT_EQ(blocks, std::min<Index>(own, 3)) << "the first block and two others before its own";
    }
    heads_differ |= row_text(mask, query, 0) != row_text(mask, query, 1);
  }
  EXPECT_TRUE(heads_differ);
}

TEST(BigBird, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "big_bird", "block_size": 0})"), "/maskers/0/block_size: must be in [1, 2^31), got 0");
  EXPECT_EQ(refusal(R"({"type": "big_bird", "random_blocks": -1})"),
            "/maskers/0/random_blocks: must be in [0, 2^31), got -1");
}

}  // namespace
}  // namespace reticle::testing
