#include <algorithm>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/executor.hpp>
#include <reticle/attention/kv_cache.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

std::vector<std::int32_t> tokens(Index count, std::int32_t first = 0) {
  std::vector<std::int32_t> tokens;
  for (Index i = 0; i < count; ++i) tokens.push_back(first + static_cast<std::int32_t>(i));
  return tokens;
}

/// Appends random keys and values of `count` tokens to every layer.
void fill(KvCache& cache, Index count, std::uint32_t seed = 1) {
  std::mt19937 random(seed);
  const KvCacheShape& shape = cache.shape();
  cache.extend(tokens(count, static_cast<std::int32_t>(cache.length())));
  for (int layer = 0; layer < shape.layers; ++layer)
    cache.append(layer, random_tensor(DType::f32, {count, shape.kv_heads, shape.head_dim}, random),
                 random_tensor(DType::f32, {count, shape.kv_heads, shape.value_dim}, random));
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(KvCache, KeepsWhatIsAppendedInOrder) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    KvCache cache({2, 3, 8, 4, 10, dtype});
    Tensor keys(DType::f32, {4, 3, 8}), values(DType::f32, {4, 3, 4});
    for (std::size_t i = 0; i < 96; ++i) keys.span<float>()[i] = static_cast<float>(i);
    for (std::size_t i = 0; i < 48; ++i) values.span<float>()[i] = -static_cast<float>(i);
    for (int round = 0; round < 2; ++round) {
      cache.extend(tokens(4));
      for (int layer = 0; layer < 2; ++layer) cache.append(layer, keys, values);
    }
    const TensorView stored = cache.keys(1), stored_values = cache.values(0);
    ASSERT_EQ(stored.describe(), TensorView(nullptr, dtype, {1, 3, 8, 8}).describe());
    for (Index i = 0; i < 8; ++i) {
      for (Index head = 0; head < 3; ++head) {
        EXPECT_EQ(read_float(stored, head * stored.stride(1) + i * stored.stride(2) + 5),
                  *keys.view().at<float>(i % 4, head, 5));
        EXPECT_EQ(read_float(stored_values, head * stored_values.stride(1) + i * stored_values.stride(2) + 2),
                  *values.view().at<float>(i % 4, head, 2));
      }
    }
    EXPECT_EQ(cache.length(), 8);
    EXPECT_EQ(cache.bytes(), 2 * 3 * 10 * 12 * size_of(dtype));
    EXPECT_EQ(cache.bytes_used(), 2 * 3 * 8 * 12 * size_of(dtype));
  }
}

TEST(KvCache, AFullOneSaysSoAndStaysAsItIs) {
  KvCache cache({1, 1, 4, 4, 5, DType::f32});
  fill(cache, 4);
  const std::string message = message_of([&] { cache.extend(tokens(2)); });
  EXPECT_EQ(message,
            "KV cache: 2 more tokens do not fit; layer 0 holds 4 keys of at most 5 (make the cache with more capacity, "
            "truncate or evict)");
  EXPECT_EQ(cache.length(), 4);
  fill(cache, 1);
  EXPECT_EQ(cache.length(), 5);
}

TEST(KvCache, TakesExactlyTheTokensThatWereAnnounced) {
  KvCache cache({1, 1, 4, 4, 5, DType::f32});
  const Tensor two(DType::f32, {2, 1, 4}), one(DType::f32, {1, 1, 4}), wide(DType::f32, {2, 1, 5});
  EXPECT_THROW(cache.append(0, two, two), ShapeError);
  cache.extend(tokens(2));
  EXPECT_THROW(cache.append(0, one, one), ShapeError);
  EXPECT_THROW(cache.append(0, two, wide), ShapeError);
  EXPECT_THROW(cache.append(1, two, two), ShapeError);
  cache.append(0, two, two);
  EXPECT_THROW(cache.append(0, two, two), ShapeError);
}

TEST(KvCache, TruncateDropsTheNewest) {
  KvCache cache({2, 1, 4, 4, 8, DType::f32});
  fill(cache, 6);
  const float kept = *cache.keys(1).at<float>(0, 0, 2, 1);
  cache.truncate(3);
  EXPECT_EQ(cache.stored(1), 3);
  EXPECT_EQ(*cache.keys(1).at<float>(0, 0, 2, 1), kept);
  fill(cache, 5);
  EXPECT_EQ(cache.length(), 8);
  EXPECT_THROW(cache.truncate(9), ShapeError);
  EXPECT_EQ(cache.counters().truncated, 3);
  EXPECT_EQ(cache.counters().appended, 11);
}

TEST(KvCache, AttentionOverWhatEvictionLeavesIsAttentionOverTheMask) {
  KvCache cache({1, 2, 16, 16, 40, DType::f32});
  fill(cache, 30);
  std::mt19937 random(5);
  const Tensor queries = random_tensor(DType::f32, {1, 4, 1, 16}, random);
  // Every head keeps what any head keeps: eviction is of whole tokens.
  const Mask kept = Mask::intervals({1, 4, 1, 30}, [](RowId row) {
    return Interval{static_cast<std::int32_t>(row.head), static_cast<std::int32_t>(row.head + 6)};
  });
  const Mask everyone = Mask::intervals(MaskShape{1, 4, 1, 30}.one_head(), [](RowId) { return Interval{0, 9}; });
  const auto attend = [&](const Mask& mask) {
    AttentionInputs inputs{queries, cache.keys(0), cache.values(0)};
    return attention(inputs, mask);
  };
  const AttentionResult before = attend(everyone);
  EXPECT_EQ(cache.evict(0, kept), 21);
  EXPECT_EQ(std::vector<Index>(cache.positions(0).begin(), cache.positions(0).end()),
            (std::vector<Index>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  const AttentionResult after = attend(Mask::full({1, 4, 1, 9}));
  for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(before.output.span<float>()[i], after.output.span<float>()[i], 1e-6);
  // The sequence goes on where it was.
  fill(cache, 1);
  EXPECT_EQ(cache.positions(0).back(), 30);
  EXPECT_EQ(cache.counters().evicted, 21);
  EXPECT_EQ(cache.length(), 31);
  EXPECT_THROW(cache.evict(0, kept), ShapeError);
}

TEST(KvCache, EvictionMakesRoom) {
  KvCache cache({1, 1, 4, 4, 4, DType::f32});
  fill(cache, 4);
  EXPECT_THROW(cache.extend(tokens(1)), ValueError);
  cache.evict(0, Mask::intervals({1, 1, 1, 4}, [](RowId) { return Interval{1, 3}; }));
  fill(cache, 2);
  EXPECT_EQ(cache.stored(0), 4);
  EXPECT_EQ(std::vector<Index>(cache.positions(0).begin(), cache.positions(0).end()), (std::vector<Index>{1, 2, 4, 5}));
}

TEST(KvCache, AForkGoesItsOwnWay) {
  KvCache cache({1, 2, 4, 4, 8, DType::bf16});
  fill(cache, 3);
  KvCache fork = cache.fork();
  fill(fork, 2, 9);
  EXPECT_EQ(cache.length(), 3);
  EXPECT_EQ(fork.length(), 5);
  for (Index head = 0; head < 2; ++head)
    EXPECT_EQ(cache.keys(0).at<BFloat16>(0, head, 2, 1)->bits, fork.keys(0).at<BFloat16>(0, head, 2, 1)->bits);
}

TEST(KvCache, ReuseKeepsTheCommonPrefix) {
  KvCache cache({1, 1, 4, 4, 16, DType::f32});
  fill(cache, 6);  // tokens 0 .. 5
  EXPECT_EQ(cache.reuse(std::vector<std::int32_t>{0, 1, 2, 9, 4, 5, 6}), 3);
  EXPECT_EQ(cache.length(), 3);
  EXPECT_EQ(cache.counters().hits, 3);
  EXPECT_EQ(cache.counters().misses, 4);
  cache.evict(0, Mask::intervals({1, 1, 1, 3}, [](RowId) { return Interval{0, 1}; }));
  EXPECT_EQ(cache.reuse(tokens(3)), 0) << "what was evicted cannot serve another prompt";
}

TEST(KvCache, CodesAreThoseOfTheRowsWhateverTheSizesOfTheAppends) {
  for (const DType dtype : {DType::q8, DType::q4}) {
    KvCache cache({1, 2, 40, 24, 30, dtype});
    std::mt19937 random(2);
    const Tensor keys = random_tensor(DType::f32, {30, 2, 40}, random),
                 values = random_tensor(DType::f32, {30, 2, 24}, random);
    for (const Index count : {1, 12, 17}) {
      const Index first = cache.length();
      cache.extend(tokens(count));
      cache.append(0, keys.view().slice(0, first, first + count), values.view().slice(0, first, first + count));
    }
    const Tensor expected = Tensor::copy(Tensor::copy(keys.view().permute({1, 0, 2}), dtype), DType::f32);
    const Tensor stored = Tensor::copy(cache.keys(0), DType::f32);
    EXPECT_TRUE(std::ranges::equal(stored.span<float>(), expected.span<float>()));
    EXPECT_EQ(cache.bytes(), 30 * 2 * (row_bytes(dtype, 40) + row_bytes(dtype, 24)));
    EXPECT_EQ(cache.recent_keys(0).size(2), 0);
  }
}

/// The recent keys of a cache are the given keys [end - count, end) of its layer.
void expect_recent(const KvCache& cache, const TensorView& keys, std::span<const Index> tokens) {
  const TensorView recent = cache.recent_keys(0);
  ASSERT_EQ(recent.size(2), static_cast<Index>(tokens.size()));
  for (Index head = 0; head < recent.size(1); ++head) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      for (Index j = 0; j < recent.size(3); ++j)
        ASSERT_EQ(*recent.at<float>(0, head, static_cast<Index>(i), j), *keys.at<float>(tokens[i], head, j));
    }
  }
}

TEST(KvCache, TheNewestKeysAreAlsoHeldAsTheyWereGiven) {
  std::mt19937 random(3);
  const Tensor keys = random_tensor(DType::f32, {60, 2, 8}, random);
  KvCache cache({1, 2, 8, 8, 60, DType::q8, 5});
  const auto append = [&](Index count) {
    const Index first = cache.length();
    cache.extend(tokens(count, static_cast<std::int32_t>(first)));
    const TensorView part = keys.view().slice(0, first, first + count);
    cache.append(0, part, part);
  };
  append(3);
  expect_recent(cache, keys, std::vector<Index>{0, 1, 2});
  for (Index length = 4; length <= 20; ++length) {
    append(1);
    std::vector<Index> newest;
    for (Index i = std::max<Index>(0, length - 5); i < length; ++i) newest.push_back(i);
    expect_recent(cache, keys, newest);
  }
  append(12);
  expect_recent(cache, keys, std::vector<Index>{27, 28, 29, 30, 31});
  append(4);
  expect_recent(cache, keys, std::vector<Index>{31, 32, 33, 34, 35});
  cache.truncate(34);
  expect_recent(cache, keys, std::vector<Index>{31, 32, 33});
  EXPECT_EQ(cache.bytes_used(), 34 * 2 * 2 * row_bytes(DType::q8, 8) + 3 * 2 * (8 + 8) * 4);
  KvCache fork = cache.fork();
  cache.truncate(20);
  expect_recent(cache, keys, {});
  append(2);
  expect_recent(cache, keys, std::vector<Index>{20, 21});
  expect_recent(fork, keys, std::vector<Index>{31, 32, 33});
  fork.evict(0, Mask::from_runs({1, 1, 1, 34}, [](RowId, FunctionRef<void(reticle::Run)> emit) {
               emit({0, 32, 1});
               emit({33, 34, 1});
             }));
  expect_recent(fork, keys, std::vector<Index>{31, 33});
  fork.reset();
  expect_recent(fork, keys, {});
}

TEST(KvCache, RefusesRecentKeysBesideKeysThatAreNotQuantisedAndRowsThatAreTooWide) {
  EXPECT_THROW(KvCache({1, 1, 8, 8, 4, DType::bf16, 5}), ValueError);
  EXPECT_THROW(KvCache({1, 1, 8, 8, 4, DType::q8, -1}), ValueError);
  EXPECT_THROW(KvCache({1, 1, 1025, 8, 4, DType::q8}), ShapeError);
  EXPECT_THROW(KvCache({1, 1, 8, 8, 4, DType::i8}), ShapeError);
}

TEST(KvCache, RefusesExtentsThatAreNotPositive) {
  EXPECT_THROW(KvCache({0, 1, 4, 4, 8, DType::f32}), ShapeError);
  EXPECT_THROW(KvCache({1, 1, 4, 4, 0, DType::f32}), ShapeError);
  EXPECT_THROW(KvCache({1, 1, 4, 4, 8, DType::i32}), ShapeError);
  EXPECT_THROW(KvCache({1, 1 << 20, 1 << 20, 4, Index{1} << 40, DType::f32}), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
