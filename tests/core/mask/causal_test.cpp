#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

TEST(Causal, MoreQueriesThanKeysLeaveTheFirstRowsWithoutCausalKeys) {
  const Mask causal = restrict_causal(Mask::full({1, 1, 5, 3}));
  EXPECT_EQ(row_counts(causal), (std::vector<Index>{0, 0, 1, 2, 3}));
}

TEST(Causal, LeavesTheEntriesUpToEachQuerysPosition) {
  std::mt19937 random(3);
  for (const MaskShape& shape : {MaskShape{2, 2, 5, 5}, MaskShape{1, 2, 3, 70}, MaskShape{1, 1, 70, 9}}) {
    for (const NamedMask& named : random_masks(shape, random)) {
      const auto visible = [&](Index row, Index key, float p) {
        return key <= shape.keys - shape.queries + row % shape.queries ? p : 0.0f;
      };
      const NaiveMask expected = NaiveMask(named.mask).map(visible);
      expect_equal(restrict_causal(named.mask), expected, named.name);
      EXPECT_EQ(causal_nnz(named.mask), expected.nnz()) << named.name;
    }
  }
}

TEST(Causal, AMaskThatIsCausalIsReturnedAsItIs) {
  const Mask window = Mask::intervals({1, 1, 4, 4}, [](RowId row) {
    return Interval{0, static_cast<std::int32_t>(row.query + 1)};
  });
  EXPECT_EQ(&restrict_causal(window).representation(), &window.representation());
  EXPECT_EQ(restrict_causal(Mask::empty({1, 1, 4, 4})).kind(), MaskKind::empty);
}

}  // namespace
}  // namespace reticle::testing
