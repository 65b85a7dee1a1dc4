#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include <reticle/attention/executor.hpp>
#include <reticle/attention/pattern.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle::testing {
namespace {

constexpr MaskShape kShape{2, 4, 6, 9};
constexpr Index kKvHeads = 2;

/// Inputs of that shape; the tensors hold zeros.
struct Problem {
  Tensor queries{DType::f32, {kShape.batch, kShape.heads, kShape.queries, 8}},
      keys{DType::f32, {kShape.batch, kKvHeads, kShape.keys, 8}};
  AttentionInputs inputs;
  Problem() {
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
  }
};

template <class Attends>
Mask expected_mask(const Attends& attends) {
  return Mask::from_runs(kShape, [&](RowId row, const auto& emit) {
    for (std::int32_t key = 0; key < kShape.keys; ++key) {
      if (attends(row, key)) emit(Run{key, key + 1, 1.0f});
    }
  });
}

TEST(Pattern, BytesOfBlocksAttendToWholeBlocksCutOffAtTheEnds) {
  const Problem problem;
  constexpr Index kBlockQueries = 4, kBlockKeys = 5;
  Tensor attended(DType::boolean, {1, kShape.heads, 2, 2});
  const auto byte = [](Index head, Index query, Index key) { return (head + query + key) % 3 != 0; };
  auto* at = static_cast<std::uint8_t*>(attended.data());
  for (Index head = 0; head < kShape.heads; ++head) {
    for (Index i = 0; i < 4; ++i) *at++ = byte(head, i / 2, i % 2) ? 1 : 0;
  }
  EXPECT_EQ(
      mask_of(AttendedBytes{attended.view(), kBlockQueries, kBlockKeys}, problem.inputs),
      expected_mask([&](RowId row, Index key) { return byte(row.head, row.query / kBlockQueries, key / kBlockKeys); }));
}

TEST(Pattern, NumberedBlocksAreCausalAndSharedByTheHeadsOfAKvHead) {
  const Problem problem;
  constexpr Index kBlock = 4;
  Tensor numbers(DType::i32, {1, kKvHeads, kShape.queries, 3});
  auto* at = static_cast<std::int32_t*>(numbers.data());
  for (Index head = 0; head < kKvHeads; ++head) {
    for (Index query = 0; query < kShape.queries; ++query) {
      *at++ = static_cast<std::int32_t>(head);
      *at++ = static_cast<std::int32_t>(head + query % 2);  // now and then one that was named before
      *at++ = -1;
    }
  }
  EXPECT_EQ(
      mask_of(NumberedKeyBlocks{numbers.view(), kBlock}, problem.inputs), expected_mask([&](RowId row, Index key) {
        const Index head = row.head / (kShape.heads / kKvHeads), block = key / kBlock;
        return (block == head || block == head + row.query % 2) && key <= row.query + kShape.keys - kShape.queries;
      }));
}

TEST(Pattern, BandsHoldTheLastKeysThatAreComplete) {
  const Problem problem;
  for (const Band band : {Band{}, Band{3, 1, 1, 2}, Band{2, 3, 2, 2}, Band{0, 4, 1, 1}}) {
    EXPECT_EQ(mask_of(band, problem.inputs), expected_mask([&](RowId row, Index key) {
                const auto complete = [&](Index k) {
                  return k * band.stride + band.kernel - 1 <= row.query + band.first_query;
                };
                return complete(key) && !complete(key + band.width);
              }));
  }
}

TEST(Pattern, AttentionTakesEachAsItsMask) {
  Problem problem;
  float value = 0;
  for (Tensor* tensor : {&problem.queries, &problem.keys}) {
    for (float& element : tensor->span<float>()) element = std::sin(value += 1.0f);
  }
  const Band band{3, 1, 1, 2};
  const AttentionResult by_pattern = attention(problem.inputs, band),
                        by_mask = attention(problem.inputs, mask_of(band, problem.inputs));
  EXPECT_TRUE(std::ranges::equal(by_pattern.output.span<float>(), by_mask.output.span<float>()));
  EXPECT_TRUE(std::ranges::equal(by_pattern.lse.span<float>(), by_mask.lse.span<float>()));
}

TEST(Pattern, SizesThatAreNoneAreRefused) {
  const Problem problem;
  const Tensor numbers(DType::i32, {1, 1, kShape.queries, 1}), bytes(DType::boolean, {1, 1, 1, 1});
  constexpr Index kHuge = std::numeric_limits<Index>::max();
  for (const Index size : {Index{0}, Index{-1}, kHuge}) {
    EXPECT_THROW(mask_of(NumberedKeyBlocks{numbers.view(), size}, problem.inputs), ValueError);
    EXPECT_THROW(mask_of(AttendedBytes{bytes.view(), size, 9}, problem.inputs), ValueError);
    EXPECT_THROW(mask_of(AttendedBytes{bytes.view(), 6, size}, problem.inputs), ValueError);
    EXPECT_THROW(mask_of(Band{0, size}, problem.inputs), ValueError);
    EXPECT_THROW(mask_of(Band{0, 1, size}, problem.inputs), ValueError);
    EXPECT_THROW(mask_of(Band{0, 1, 1, size}, problem.inputs), ValueError);
  }
  EXPECT_THROW(mask_of(Band{-1}, problem.inputs), ValueError);
  EXPECT_THROW(mask_of(Band{kHuge}, problem.inputs), ValueError);
}

TEST(Pattern, TensorsThatDoNotFitAreRefused) {
  const Problem problem;
  Tensor numbers(DType::i32, {1, 1, kShape.queries, 1});
  for (const std::int32_t number : {3, -2, std::numeric_limits<std::int32_t>::max()}) {
    for (std::int32_t& each : numbers.span<std::int32_t>()) each = number;
    EXPECT_THROW(mask_of(NumberedKeyBlocks{numbers.view(), 4}, problem.inputs), ShapeError) << number;
  }
  const auto refuses = [&](const Tensor& tensor, Index block_size) {
    const Pattern pattern =
        block_size > 0 ? Pattern(NumberedKeyBlocks{tensor.view(), block_size}) : Pattern(AttendedBytes{tensor.view()});
    EXPECT_THROW(mask_of(pattern, problem.inputs), ShapeError);
  };
  refuses(Tensor(DType::f32, {1, 1, 6, 1}), 4);
  refuses(Tensor(DType::i32, {1, 1, 5, 1}), 4);
  refuses(Tensor(DType::boolean, {1, 1, 6, 8}), 0);
  refuses(Tensor(DType::f32, {1, 1, 6, 9}), 0);
  refuses(Tensor(DType::boolean, {6, 9}), 0);
}

}  // namespace
}  // namespace reticle::testing
