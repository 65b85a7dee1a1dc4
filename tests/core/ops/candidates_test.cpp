#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/candidates.hpp>

#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

std::vector<std::int32_t> positions(const Gaps& candidates) {
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(candidates.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  candidates.to_positions(ranks);
  return ranks;
}

using Positions = std::vector<std::int32_t>;

/// Three queries over eight keys.
class Candidates : public ::testing::Test {
 protected:
  WrittenInputs written_{{1, 1, 3, 1}, std::vector<float>(3), {1, 1, 8, 1}, std::vector<float>(8)};
  AttentionInputs& inputs_ = written_.inputs;
};

TEST_F(Candidates, AreAllKeysWhereNothingIsChosenOrForbidden) {
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 0}, {})), (Positions{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST_F(Candidates, AreNeitherChosenNorForbidden) {
  written_.forbid({0, 4, 7});
  const std::vector<reticle::Run> chosen{{1, 2, 1}, {4, 6, 0.5f}};
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 2}, chosen)), (Positions{2, 3, 6}));
}

TEST_F(Candidates, EndAtTheQuerysOwnPositionWhereAttentionIsCausal) {
  inputs_.causal = true;
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 0}, {})), (Positions{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 2}, {})).size(), 8u);
}

TEST_F(Candidates, LieInTheRangeThatIsAskedFor) {
  const std::vector<reticle::Run> chosen{{0, 1, 1}, {3, 4, 1}};
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 0}, chosen, 2, 6)), (Positions{2, 4, 5}));
  EXPECT_EQ(candidates_of(inputs_, {0, 0, 0}, chosen, 5, 5).size(), 0);
  EXPECT_EQ(candidates_of(inputs_, {0, 0, 0}, chosen, 6, 2).size(), 0);
  EXPECT_EQ(candidates_of(inputs_, {0, 0, 0}, chosen, 100, 200).size(), 0);
  EXPECT_EQ(candidates_of(inputs_, {0, 0, 0}, chosen, 0, -1).size(), 0);
}

TEST_F(Candidates, AreNoneForAQueryBeforeTheFirstKey) {
  inputs_.causal = true;
  inputs_.keys = inputs_.values = inputs_.keys.slice(2, 0, 1);
  EXPECT_EQ(candidates_of(inputs_, {0, 0, 1}, {}).size(), 0);
  EXPECT_EQ(positions(candidates_of(inputs_, {0, 0, 2}, {})), Positions{0});
}

}  // namespace
}  // namespace reticle::testing
