#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/cache.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/nsa.hpp"

namespace reticle::testing {
namespace {

/// One KV head of two elements: means of four tokens, two apart; rotated by angles that are positions.
struct Means {
  NsaConfig config{.compress_type = Compression::avgpool, .kernel_size = 4, .kernel_stride = 2, .block_size = 4};
  Rope rope{2, 10000, std::nullopt};
  NsaCache cache{config, 1, 2};

  void append(const TensorView& keys, const TensorView& values) { cache.append(keys, values, {}, {}, rope); }
};

TEST(NsaCache, CompressesWindowsAsTheyFill) {
  Means means;
  Tensor keys(DType::f32, {7, 1, 2}), values(DType::f32, {7, 1, 2});
  for (std::size_t i = 0; i < 14; ++i) {
    keys.span<float>()[i] = i % 2 == 0 ? 1 : 0;  // (1, 0) at every token
    values.span<float>()[i] = static_cast<float>(i);
  }
  Index at = 0;
  const auto append = [&](Index count) {
    means.append(keys.view().slice(0, at, at + count), values.view().slice(0, at, at + count));
    at += count;
  };
  append(3);
  EXPECT_EQ(means.cache.compressed_length(), 0);
  EXPECT_EQ(means.cache.pending_length(), 3);
  append(1);
  EXPECT_EQ(means.cache.compressed_length(), 1);
  EXPECT_EQ(means.cache.pending_length(), 2) << "tokens 2 and 3, of the window to come";
  append(3);
  ASSERT_EQ(means.cache.compressed_length(), 2);
  EXPECT_EQ(means.cache.pending_length(), 3);
  const TensorView compressed = means.cache.compressed_keys(), of_values = means.cache.compressed_values();
  EXPECT_EQ(compressed.describe(), "F32 (2, 1, 2)");
  for (const Index window : {0, 1}) {
    const auto position = static_cast<double>(2 * window);
    EXPECT_NEAR(*compressed.at<float>(window, 0, 0), std::cos(position), 1e-6) << "turned to the first of its tokens";
    EXPECT_NEAR(*compressed.at<float>(window, 0, 1), std::sin(position), 1e-6);
    // Elements 2 t and 2 t + 1 of tokens t = 2 window, ..., + 3: means 2 (2 window + 1.5) and one more.
    EXPECT_EQ(*of_values.at<float>(window, 0, 0), static_cast<float>(4 * window + 3));
    EXPECT_EQ(*of_values.at<float>(window, 0, 1), static_cast<float>(4 * window + 4));
  }
}

TEST(NsaCache, TokensOneByOneGiveWhatAllAtOnceGive) {
  std::mt19937 random(1);
  const Tensor keys = random_tensor(DType::f32, {23, 2, 8}, random),
               values = random_tensor(DType::f32, {23, 2, 8}, random), pool = random_tensor(DType::f32, {2, 8}, random),
               embedding = random_tensor(DType::f32, {2, 8, 8}, random);
  const CompressionWeights of_keys{pool.view(), embedding.view()}, of_values{pool.view(), std::nullopt};
  const Rope rope(8, 10000, std::nullopt);
  NsaCache whole(kSmallNsa, 2, 8), stepwise(kSmallNsa, 2, 8);
  whole.append(keys, values, of_keys, of_values, rope);
  for (Index t = 0; t < 23; ++t)
    stepwise.append(keys.view().slice(0, t, t + 1), values.view().slice(0, t, t + 1), of_keys, of_values, rope);
  ASSERT_EQ(whole.compressed_length(), 4);
  ASSERT_EQ(stepwise.compressed_length(), 4);
  const auto equal = [](const TensorView& a, const TensorView& b) {
    const auto *x = static_cast<const float*>(a.data), *y = static_cast<const float*>(b.data);
    return std::equal(x, x + a.elements(), y);
  };
  EXPECT_TRUE(equal(whole.compressed_keys(), stepwise.compressed_keys()));
  EXPECT_TRUE(equal(whole.compressed_values(), stepwise.compressed_values()));
}

TEST(NsaCache, RefusesTokensOfOtherExtents) {
  NsaCache cache(kSmallNsa, 2, 8);
  const Tensor good(DType::f32, {3, 2, 8}), wrong(DType::f32, {3, 2, 9}), pool(DType::f32, {2, 8});
  const CompressionWeights weights{pool.view(), std::nullopt};
  const Rope rope(8, 10000, std::nullopt);
  EXPECT_THROW(cache.append(good, wrong, weights, weights, rope), ShapeError);
  EXPECT_EQ(cache.pending_length(), 0);
  cache.append(good, good, weights, weights, rope);
  EXPECT_EQ(cache.pending_length(), 3);
  cache.reset();
  EXPECT_EQ(cache.pending_length(), 0);
  EXPECT_EQ(message_of<ShapeError>([&] { cache.append(good, wrong, weights, weights, rope); }),
            "NSA cache: keys F32 (3, 2, 8) and values F32 (3, 2, 9); expected contiguous F32 (3, 2, 8)");
  EXPECT_EQ(message_of<ShapeError>([] { NsaCache(kSmallNsa, 0, 8); }),
            "NSA cache: kv_heads and head_dim must be positive");
}

TEST(NsaCache, AResetCacheStartsAtTheFirstPosition) {
  Means means;
  Tensor keys(DType::f32, {6, 1, 2});
  std::fill(keys.span<float>().begin(), keys.span<float>().end(), 1.0f);
  means.append(keys, keys);
  EXPECT_EQ(means.cache.compressed_length(), 2);
  EXPECT_GE(means.cache.bytes(), (2 * 4 + 2 * 4) * 4) << "two compressed tokens, two that wait, keys and values";
  means.cache.reset();
  EXPECT_EQ(means.cache.compressed_length(), 0);
  means.append(keys.view().slice(0, 0, 4), keys.view().slice(0, 0, 4));
  ASSERT_EQ(means.cache.compressed_length(), 1);
  EXPECT_NEAR(*means.cache.compressed_keys().at<float>(0, 0, 0), 1, 1e-6) << "not turned: position 0";
}

}  // namespace
}  // namespace reticle::testing
