#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/compressed_attention.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/models.hpp"
#include "support/nsa.hpp"

namespace reticle::testing {
namespace {

TEST(CompressedAttention, SelectsForcedBlocksAndNeverOnesToCome) {
  std::mt19937 random(3);
  NsaConfig config = kSmallNsa;
  config.init_blocks = 2;
  config.topk = 5;
  const Index tokens = 120;
  const Tensor q = random_tensor(DType::f32, {tokens, 4, 8}, random),
               k = random_tensor(DType::f32, {config.compressed_length(tokens), 2, 8}, random);
  const SelectedBlocks blocks = compressed_attention(q, k, k, 0, 30, config).blocks;  // weights that underflow to 0
  ASSERT_EQ(blocks.width, 5);
  for (Index kv_head = 0; kv_head < 2; ++kv_head) {
    for (Index t = 0; t < tokens; ++t) {
      const Index own = t / config.block_size;
      std::vector<std::int32_t> chosen;
      for (const std::int32_t block : blocks.of(kv_head, t)) {
        if (block >= 0) chosen.push_back(block);
      }
      ASSERT_EQ(chosen.size(), static_cast<std::size_t>(std::min<Index>(5, own + 1))) << "every slot is used";
      ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
      for (const Index forced : {Index{0}, std::min<Index>(1, own), own, std::max<Index>(0, own - 1)})
        ASSERT_NE(std::find(chosen.begin(), chosen.end(), forced), chosen.end()) << t;
    }
  }
}

TEST(CompressedAttention, EqualScoresGoToTheLowerBlock) {
  // Keys of zeros. Blocks 1 to 8 share 4 strides with tokens that query 79 sees, its own and the first block 3.
  NsaConfig config = kSmallNsa;
  config.init_blocks = 0;
  config.local_blocks = 1;
  config.topk = 3;
  Tensor q(DType::f32, {1, 2, 3}), k(DType::f32, {19, 1, 3});
  for (Tensor* tensor : {&q, &k}) std::fill(tensor->span<float>().begin(), tensor->span<float>().end(), 0.0f);
  EXPECT_EQ(compressed_attention(q, k, k, 79, 1, config).blocks.indices, (Array<std::int32_t>{1, 2, 9}));
}

TEST(CompressedAttention, MoreHeadsThanATileHasRowsAreSummedAllTheSame) {
  std::mt19937 random(4);
  const Tensor q = random_tensor(DType::f32, {20, 80, 8}, random), k = random_tensor(DType::f32, {4, 1, 8}, random);
  const Tensor scores = block_scores(q, k, 0, 1, kSmallNsa);
  // Of one query, the probabilities of 80 heads; each token counts twice, once per chunk.
  double sum = 0;
  for (Index block = 0; block < scores.view().size(2); ++block)
    sum += static_cast<double>(*scores.view().at<float>(0, 15, block));
  EXPECT_NEAR(sum, 160, 1e-3);
}

TEST(CompressedAttention, DoesNotDependOnTheNumberOfThreads) {
  std::mt19937 random(5);
  const Tensor q = random_tensor(DType::f32, {200, 8, 8}, random), k = random_tensor(DType::f32, {48, 2, 8}, random);
  const CompressedAttention one = compressed_attention(q, k, k, 0, 1, kSmallNsa, Context(1)),
                            three = compressed_attention(q, k, k, 0, 1, kSmallNsa, Context(3));
  expect_near(one.output.span<float>(), three.output.span<float>(), 0);
  EXPECT_EQ(one.blocks.indices, three.blocks.indices);
}

TEST(CompressedAttention, NotANumberIsAnError) {
  Tensor q(DType::f32, {20, 2, 8}), k(DType::f32, {4, 1, 8});
  std::fill(q.span<float>().begin(), q.span<float>().end(), 1.0f);
  std::fill(k.span<float>().begin(), k.span<float>().end(), std::nanf(""));
  EXPECT_THROW(compressed_attention(q, k, k, 0, 1, kSmallNsa), ValueError);
  EXPECT_THROW(compressed_attention(q, Tensor(DType::f32, {4, 3, 8}), k, 0, 1, kSmallNsa), ShapeError);
  EXPECT_THROW(compressed_attention(q, Tensor(DType::f16, {4, 1, 8}), k, 0, 1, kSmallNsa), ShapeError);
}

TEST(SelectedBlocks, ListsMayComeInAnyOrderWithRepeatsAndGaps) {
  const std::vector<std::int32_t> lists{3, -1, 1, 1, -1, -1, -1, -1};
  const SelectedBlocks blocks = SelectedBlocks::from_lists(1, 2, 4, lists);
  EXPECT_EQ(blocks.indices, (Array<std::int32_t>{1, 3, -1, -1, -1, -1, -1, -1}));
  const Mask mask = selected_mask(blocks, 0, 2, 30, 28, 8);
  EXPECT_EQ(mask.nnz(), 2 * (8 + 5)) << "tokens 8 to 15 and 24 to 28; the second query selected nothing";
  EXPECT_THROW(SelectedBlocks::from_lists(1, 2, 3, lists), ShapeError);
  EXPECT_EQ(message_of<ShapeError>([&] { SelectedBlocks::from_lists(1, 2, 3, lists); }),
            "selected blocks: 8 numbers are not (1, 2, 3)");
}

TEST(SelectedMask, HoldsTheTokensOfTheBlocksUpToTheQuerysOwn) {
  const std::vector<std::int32_t> lists{0, 1, -1, 2, 3, 9};
  const SelectedBlocks blocks = SelectedBlocks::from_lists(2, 1, 3, lists);
  // The query stands at 13. Blocks 0 and 1 of 4 tokens are one run; of blocks 2 and 3 tokens 8 to 13; 9 is to come.
  const Mask first = selected_mask(blocks, 0, 1, 20, 13, 4), second = selected_mask(blocks, 1, 1, 20, 13, 4);
  for (Index key = 0; key < 20; ++key) {
    EXPECT_EQ(first.at(0, 0, 0, key), key < 8 ? 1 : 0) << key;
    EXPECT_EQ(second.at(0, 0, 0, key), key >= 8 && key <= 13 ? 1 : 0) << key;
  }
}

TEST(CompressedMask, HoldsTheWindowsThatLieAtOrBeforeTheQuery) {
  // Windows 0, 1, 2 end at tokens 7, 11, 15.
  EXPECT_EQ(row_counts(compressed_mask(1, 4, 3, 10, kSmallNsa)), (std::vector<Index>{1, 2, 2, 2}));
  EXPECT_EQ(row_counts(compressed_mask(2, 2, 3, 6, kSmallNsa)), (std::vector<Index>{0, 1, 0, 1}));
  EXPECT_EQ(row_counts(compressed_mask(1, 1, 3, 1000, kSmallNsa)), (std::vector<Index>{3})) << "no more than there are";
}

TEST(WindowMask, HoldsTheWindowAndTheTokenItself) {
  const Mask mask = window_mask(2, 5, 5, 0, 2);
  EXPECT_EQ(row_counts(mask), (std::vector<Index>{1, 2, 3, 3, 3, 1, 2, 3, 3, 3}));
}

}  // namespace
}  // namespace reticle::testing
