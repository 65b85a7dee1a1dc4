#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/list_plan.hpp>

#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

using reticle::testing::message_of;

std::vector<std::int32_t> columns_of(const ListPlan& plan, Index list) {
  const std::int32_t* const all = plan.lists.indices.span().data();
  return {all + plan.lists.row_ptr[list], all + plan.lists.row_ptr[list + 1]};
}

Mask mask_of(const MaskShape& shape, const std::vector<float>& p) { return Mask::dense(shape, p); }

TEST(CudaListPlan, HeadsThatAttendAlikeShareOneList) {
  // Four heads of one KV head at two queries: all alike; the first two and the last two; all different.
  const MaskShape shape{1, 4, 2, 3};
  const std::vector<float> alike = {1, 0, 1, 0, 1, 0}, other = {1, 1, 0, 0, 0, 0};
  const auto of_heads = [&](std::vector<std::vector<float>> heads) {
    std::vector<float> p;
    for (const auto& head : heads) p.insert(p.end(), head.begin(), head.end());
    return plan_lists(mask_of(shape, p), 1, false);
  };
  const ListPlan four = of_heads({alike, alike, alike, alike});
  EXPECT_EQ(four.sharing, 4);
  EXPECT_EQ(four.lists.row_ptr.size(), 3u);
  EXPECT_EQ(columns_of(four, 0), (std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(columns_of(four, 1), (std::vector<std::int32_t>{1}));
  const ListPlan two = of_heads({alike, alike, other, other});
  EXPECT_EQ(two.sharing, 2);
  EXPECT_EQ(two.lists.row_ptr.size(), 5u);
  EXPECT_EQ(columns_of(two, 2), (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(columns_of(two, 3), (std::vector<std::int32_t>{}));
  const ListPlan one = of_heads({alike, other, alike, other});
  EXPECT_EQ(one.sharing, 1);
  EXPECT_EQ(one.lists.row_ptr.size(), 9u);
}

TEST(CudaListPlan, PatternsThatTheMaskStoresOnceAreListedOnce) {
  const Mask mask = Mask::intervals(MaskShape{1, 8, 1, 9}.one_head(), [](RowId) { return Interval{2, 4}; });
  const ListPlan plan = plan_lists(mask, 2, false);
  EXPECT_EQ(plan.sharing, 4);
  ASSERT_EQ(plan.lists.row_ptr.size(), 3u) << "one list for each KV head";
  for (const Index list : {0, 1}) EXPECT_EQ(columns_of(plan, list), (std::vector<std::int32_t>{2, 3}));
}

TEST(CudaListPlan, HeadsOfDifferentWeightsDoNotShare) {
  const ListPlan plan = plan_lists(mask_of({1, 2, 1, 2}, {1, 0.5f, 1, 0.25f}), 1, false);
  EXPECT_EQ(plan.sharing, 1);
  EXPECT_TRUE(std::ranges::equal(plan.lists.p.span(), std::vector<float>{1, 0.5f, 1, 0.25f}));
}

TEST(CudaListPlan, CausalListsEndAtTheQuerysOwnPosition) {
  const ListPlan plan = plan_lists(Mask::full({1, 1, 2, 3}), 1, true);
  EXPECT_EQ(columns_of(plan, 0), (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(columns_of(plan, 1), (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(CudaListPlan, NoRowsAreNoLists) {
  const ListPlan plan = plan_lists(Mask::full({0, 2, 1, 5}), 1, false);
  EXPECT_TRUE(plan.lists.indices.empty());
  EXPECT_EQ(plan.lists.row_ptr.size(), 1u);
}

TEST(CudaListPlan, RefusesHeadsThatDoNotFit) {
  EXPECT_EQ(message_of<ShapeError>([] {
              plan_lists(Mask::full({1, 3, 1, 1}), 2, false);
            }),
            "list plan: 3 heads of the mask are not a multiple of 2 KV heads");
}

}  // namespace
}  // namespace reticle::cuda
