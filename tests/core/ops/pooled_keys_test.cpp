#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/pooled_keys.hpp>

#include "support/attention.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

std::vector<float> means_of(const PooledKeys& pooled, Index count, Index batch = 0, Index kv_head = 0) {
  const TensorView means = pooled.means(batch, kv_head, count);
  std::vector<float> values;
  for (Index i = 0; i < count; ++i) {
    for (Index c = 0; c < means.size(1); ++c) values.push_back(*means.at<float>(i, c));
  }
  return values;
}

WrittenInputs six_keys() { return {{1, 1, 1, 2}, {0, 0}, {1, 1, 6, 2}, {1, 10, 3, 20, 5, 30, 7, 40, 9, 50, 11, 60}}; }

TEST(PooledKeys, AreMeansOfCompleteWindows) {
  const WrittenInputs written = six_keys();
  PooledKeys pooled;
  pooled.update(written.inputs, 3, 2);
  EXPECT_EQ(pooled.count(6), 2) << "keys 0 to 2 and 2 to 4; the window from key 4 on is not complete";
  EXPECT_EQ(means_of(pooled, 2), (std::vector<float>{3, 20, 7, 40}));
  std::vector<float> scores(2);
  pooled.score(std::vector<float>{2, -1}, 0, 0, 2, scores);
  EXPECT_EQ(scores, (std::vector<float>{-14, -26}));
}

TEST(PooledKeys, CountWindowsWithinTheFirstKeys) {
  const WrittenInputs written = six_keys();
  PooledKeys pooled;
  pooled.update(written.inputs, 3, 2);
  const Index expected[] = {0, 0, 0, 1, 1, 2, 2, 3};
  for (Index n = 0; n < 8; ++n) EXPECT_EQ(pooled.count(n), expected[n]) << n;
}

TEST(PooledKeys, PassOverKeysThatTheAttentionMaskForbidsToAll) {
  WrittenInputs written = six_keys();
  written.forbid({1, 4, 5});
  PooledKeys pooled;
  pooled.update(written.inputs, 2, 2);
  EXPECT_EQ(means_of(pooled, 3), (std::vector<float>{1, 10, 6, 35, 0, 0}));
  std::vector<float> scores(3);
  pooled.score(std::vector<float>{1, 0}, 0, 0, 3, scores);
  EXPECT_EQ(scores, (std::vector<float>{1, 6, -std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(pooled.keys_read(), 3);
}

TEST(PooledKeys, ReadOnlyNewKeysAndFollowTruncation) {
  const OwnedInputs owned({2, 2, 2, 10, 21, 7, 7}, 3);
  PooledKeys whole, stepwise;
  whole.update(owned.inputs, 4, 4);
  for (Index step = 0; step < 10; ++step) stepwise.update(owned.inputs.rows(step, step + 1), 4, 4);
  EXPECT_EQ(stepwise.keys_read(), 2 * 2 * 20);
  EXPECT_EQ(means_of(stepwise, 5, 1, 1), means_of(whole, 5, 1, 1));
  stepwise.truncate(13);
  stepwise.update(owned.inputs, 4, 4);
  EXPECT_EQ(means_of(stepwise, 5, 1, 1), means_of(whole, 5, 1, 1));
  EXPECT_EQ(stepwise.keys_read(), 2 * 2 * (20 + 8)) << "windows 3 and 4 are read again";
}

TEST(PooledKeys, OfSelectedSequencesAreTheirs) {
  const OwnedInputs owned({2, 2, 2, 1, 9, 8, 8}, 7);
  PooledKeys pooled;
  pooled.update(owned.inputs, 4, 4);
  const std::vector<float> first = means_of(pooled, 2, 0, 1), second = means_of(pooled, 2, 1, 1);
  pooled.select(std::vector<Index>{1, 0, 1});
  EXPECT_EQ(means_of(pooled, 2, 0, 1), second);
  EXPECT_EQ(means_of(pooled, 2, 1, 1), first);
  EXPECT_EQ(means_of(pooled, 2, 2, 1), second);
}

TEST(PooledKeys, OfAnotherSequenceAreRefused) {
  const WrittenInputs written = six_keys();
  PooledKeys pooled;
  pooled.update(written.inputs, 3, 2);
  AttentionInputs shorter = written.inputs;
  shorter.keys = shorter.values = shorter.keys.slice(2, 0, 5);
  EXPECT_THROW(pooled.update(shorter, 3, 2), ShapeError);
}

TEST(PooledKeys, ReadOnlyNewKeysAndCountCompleteWindows) {
  const OwnedInputs owned({1, 2, 1, 1, 40, 4, 4}, 1);
  PooledKeys pooled, fresh;
  AttentionInputs inputs = owned.inputs;
  for (const Index length : {3, 10, 11, 40}) {
    inputs.keys = owned.inputs.keys.slice(2, 0, length);
    inputs.values = owned.inputs.values.slice(2, 0, length);
    const Index before = pooled.keys_read();
    pooled.update(inputs, 4, 2);
    EXPECT_EQ(pooled.count(length), length < 4 ? 0 : (length - 4) / 2 + 1);
    if (length == 11) {
      EXPECT_EQ(pooled.keys_read(), before) << "no window ends there";
    }
  }
  fresh.update(inputs, 4, 2);
  for (Index i = 0; i < fresh.count(40) * 4; ++i)
    EXPECT_EQ(*pooled.means(0, 0, 19).at<float>(0, i), *fresh.means(0, 0, 19).at<float>(0, i));
}

}  // namespace
}  // namespace reticle::testing
