#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/device_storage.hpp>

#include "support/cuda/on_device.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, MasksCombineAsOnTheCpu) {
  for (const bool weighted : {false, true}) {
    for (const double density : {0.01, 0.3}) {
      Case c;
      c.rows = 40;
      c.keys = 3000;
      c.weighted = weighted;
      const Mask a = random_mask(c, density, 1);
      c.weighted = false;
      const Mask b = random_mask(c, 0.1, 2);
      const Mask window = Mask::intervals(a.shape().one_head(), [](RowId row) {
        const auto end = static_cast<std::int32_t>(2961 + row.query);
        return Interval{end - 100, end};
      });
      const Mask on_a = a.to(kGpu), on_b = b.to(kGpu), on_window = window.to(kGpu);
      for (const Mask& result :
           {merge(on_a, on_b), merge(on_a, on_b, MergeRule::independent), intersect(on_a, on_b), subtract(on_a, on_b)})
        EXPECT_EQ(result.device(), kGpu);
      EXPECT_EQ(merge(on_a, on_b), merge(a, b)) << "masks are compared on the host";
      EXPECT_EQ(merge(on_a, on_b, MergeRule::independent), merge(a, b, MergeRule::independent));
      EXPECT_EQ(intersect(on_a, on_b), intersect(a, b));
      EXPECT_EQ(subtract(on_a, on_b), subtract(a, b));
      if (!weighted) {
        EXPECT_EQ(complement(on_a), complement(a));
      }
      for (const Mask& on_device : {on_a, on_b, on_window}) EXPECT_EQ(on_device.nnz(), on_device.to({}).nnz());
      EXPECT_EQ(merge(on_a, on_window, MergeRule::max), merge(a, window, MergeRule::max));
    }
  }
}

TEST_F(CudaDevice, DenseMasksLieThereAsBitsAndOthersAsLists) {
  const MaskShape shape{1, 2, 1, 64};
  std::vector<float> p(128, 0);
  p[0] = p[5] = p[64] = 1;  // 3 of 128 are fewer than a 32nd
  const Mask sparse = Mask::dense(shape, p), listed = sparse.to(kGpu);
  EXPECT_EQ(listed.on_device()->kind(), MaskKind::csr);
  EXPECT_EQ(listed.on_device()->bytes(), 2 * 2 * 4 + 2 * 4) << "room for the longest row, and a count a row";
  EXPECT_FALSE(listed.on_device()->weighted());
  EXPECT_EQ(listed.to({}), sparse);
  p[6] = p[7] = 1;
  const Mask dense = Mask::dense(shape, p), bits = dense.to(kGpu);
  EXPECT_EQ(bits.on_device()->kind(), MaskKind::bits);
  EXPECT_EQ(bits.on_device()->bytes(), 2 * 8);
  EXPECT_EQ(bits.to({}), dense);
  p[7] = 0.5f;
  const Mask weighted = Mask::dense(shape, p), with_p = weighted.to(kGpu);
  EXPECT_EQ(with_p.on_device()->kind(), MaskKind::csr) << "bits hold no p";
  EXPECT_TRUE(with_p.on_device()->weighted());
  EXPECT_EQ(with_p.to({}), weighted);
}

TEST_F(CudaDevice, MasksWithoutEntriesComeBackEmpty) {
  const MaskShape shape{1, 2, 3, 70};
  const auto keys = [&](std::int32_t begin, std::int32_t end) {
    return Mask::intervals(shape, [=](RowId) { return Interval{begin, end}; }).to(kGpu);
  };
  for (const Mask& nothing : {intersect(keys(0, 1), keys(1, 2)), intersect(keys(0, 40), keys(40, 70)),
                              subtract(keys(3, 4), keys(3, 4))}) {  // as lists, as bits, and as lists again
    EXPECT_EQ(nothing.device(), kGpu);
    EXPECT_EQ(nothing.nnz(), 0);
    EXPECT_EQ(nothing.to({}), Mask::empty(shape));
  }
}

TEST_F(CudaDevice, MasksThatHoldAllOrNothingLieNowhere) {
  EXPECT_EQ(Mask::full({1, 1, 2, 3}).to(kGpu).on_device(), nullptr);
  EXPECT_EQ(Mask::empty({1, 1, 2, 3}).to(kGpu).on_device(), nullptr);
}

TEST_F(CudaDevice, ListsOfKeysBecomeAMask) {
  // Two rows of up to three keys; what stands beyond a list's count is not read.
  const std::vector<std::int32_t> indices = {1, 4, -7, 0, 2, 3}, counts = {2, 3};
  const std::vector<float> p = {1, 0.5f, -7, 0.25f, 1, 1};
  const Buffer there = Buffer::copy_of(std::span<const std::int32_t>(indices), nullptr),
               counted = Buffer::copy_of(std::span<const std::int32_t>(counts), nullptr),
               weights = Buffer::copy_of(std::span<const float>(p), nullptr);
  KeyLists lists{there.as<std::int32_t>(), counted.as<std::int32_t>(), nullptr, 3};
  const MaskShape shape{1, 2, 1, 5};
  EXPECT_EQ(entries_of_lists(lists, 2, nullptr), 5);
  EXPECT_EQ(entries_of_lists(lists, 1, nullptr), 2);
  const Mask mask = mask_of_lists(shape, lists, nullptr);
  EXPECT_EQ(mask.device(), kGpu);
  EXPECT_EQ(mask, Mask::dense(shape, std::vector<float>{0, 1, 0, 0, 1, 1, 0, 1, 1, 0}));
  lists.p = weights.as<float>();
  EXPECT_EQ(mask_of_lists(shape, lists, nullptr),
            Mask::dense(shape, std::vector<float>{0, 1, 0, 0, 0.5f, 0.25f, 0, 1, 1, 0}));
}

TEST_F(CudaDevice, MasksOfOtherShapesDoNotCombine) {
  const auto first_two_of = [](Index keys) {
    return Mask::intervals({1, 1, 1, keys}, [](RowId) { return Interval{0, 2}; }).to(kGpu);
  };
  const Mask five = first_two_of(5), six = first_two_of(6);
  EXPECT_THROW(merge(five, six), ShapeError);
  EXPECT_THROW(intersect(five, six), ShapeError);
  EXPECT_THROW(subtract(five, six), ShapeError);
}

TEST_F(CudaSmall, Masks) {
  const Case c = small(40);
  const Mask a = random_mask(c, 0.3, 1), b = random_mask(c, 0.02, 2);
  const Mask on_a = a.to(kGpu), on_b = b.to(kGpu);
  EXPECT_EQ(merge(on_a, on_b), merge(a, b));
  EXPECT_EQ(intersect(on_b, on_b), b);
  EXPECT_EQ(on_b.nnz(), b.nnz());
}

}  // namespace
}  // namespace reticle::cuda
