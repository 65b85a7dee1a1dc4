#include <gtest/gtest.h>

#include <reticle/core/ops/pooled_keys.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

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
