#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/random.hpp>

namespace reticle {
namespace {

// Known-answer vectors for philox4x32-10 from Random123's kat_vectors.
TEST(Philox, ReproducesThePublishedVectors) {
  const auto expect = [](Philox::Block counter, std::uint32_t k0, std::uint32_t k1, Philox::Block expected) {
    const std::uint32_t key[2] = {k0, k1};
    const Philox::Block block = Philox::generate(counter, key);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], expected.word[i]);
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, StreamsOfDifferentRowsDiffer) {
  std::vector<std::uint32_t> firsts;
  for (std::uint32_t layer = 0; layer < 3; ++layer) {
    for (std::uint32_t head = 0; head < 3; ++head) {
      for (std::uint32_t row = 0; row < 3; ++row) firsts.push_back(Philox(1, layer, 0, head, row).next());
    }
  }
  std::sort(firsts.begin(), firsts.end());
  EXPECT_EQ(std::unique(firsts.begin(), firsts.end()), firsts.end());
}

TEST(Philox, BelowIsUniform) {
  Philox random(5, 0, 0, 0, 0);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 400);  // 4.3 standard deviations
}

TEST(Philox, NormalNumbersHaveTheMomentsOfTheNormalDistribution) {
  Philox random(6, 0, 0, 0, 0);
  constexpr int kCount = 100000;
  double sum = 0, squares = 0, fourths = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = static_cast<double>(random.normal());
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.015);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  EXPECT_NEAR(fourths / kCount, 3, 0.15);
}

TEST(Philox, AWordByItsNumberIsTheOneThatIsDrawn) {
  Philox drawn(7, 1, 2, 3, 4);
  const Philox addressed(7, 1, 2, 3, 4);
  for (std::uint32_t i = 0; i < 11; ++i) EXPECT_EQ(addressed.word(i), drawn.next()) << i;
  EXPECT_EQ(addressed.word(0), Philox(7, 1, 2, 3, 4).next()) << "after other words were read";
}

}  // namespace
}  // namespace reticle
