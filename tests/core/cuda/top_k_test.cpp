#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/top_k.hpp>
#include <reticle/core/ops/select.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, TopKSelectsWhatTheCpuSelects) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw;
  for (const std::size_t count : {100u, 5000u, 131072u}) {
    constexpr std::size_t kRows = 5;
    std::vector<float> scores(kRows * count);
    for (float& score : scores) score = draw(random);
    for (std::size_t i = 0; i < count; ++i) scores[i] = 1;  // the first row has ties only
    for (const Index k : {1, 256, 3000}) {
      const auto width = static_cast<std::size_t>(k);
      const Buffer device = Buffer::copy_of(std::span<const float>(scores), nullptr);
      const Buffer indices(kRows * width * sizeof(std::int32_t), nullptr),
          counts(kRows * sizeof(std::int32_t), nullptr);
      top_k(device.as<float>(), kRows, static_cast<Index>(count), k, indices.as<std::int32_t>(),
            counts.as<std::int32_t>(), nullptr);
      std::vector<std::int32_t> found(kRows * width), found_counts(kRows), expected;
      indices.copy_to(found.data(), nullptr);
      counts.copy_to(found_counts.data(), nullptr);
      for (std::size_t row = 0; row < kRows; ++row) {
        expected.clear();  // top_k appends
        reticle::top_k(std::span<const float>(scores).subspan(row * count, count), k, expected);
        ASSERT_EQ(static_cast<std::size_t>(found_counts[row]), expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(found[row * width + i], expected[i]);
      }
    }
  }
}

TEST_F(CudaDevice, TopKRefusesWhatItCannotCount) {
  const auto refusal = [](Index rows, Index count, Index k) {
    return reticle::testing::message_of<ValueError>([&] { top_k(nullptr, rows, count, k, nullptr, nullptr, nullptr); });
  };
  EXPECT_EQ(refusal(1, 10, 0), "top_k: k is 0; expected 1 to 2^20");
  EXPECT_EQ(refusal(1, 10, 1048577), "top_k: k is 1048577; expected 1 to 2^20");
  EXPECT_EQ(refusal(1, Index{1} << 31, 1), "top_k: 1 rows of 2147483648 are too many");
}

TEST_F(CudaDevice, TopKOfNoRowsWritesNothing) {
  const std::vector<std::int32_t> before = {7};
  const Buffer counts = Buffer::copy_of(std::span<const std::int32_t>(before), nullptr);
  top_k(nullptr, 0, 10, 1, nullptr, counts.as<std::int32_t>(), nullptr);
  EXPECT_EQ(on_host<std::int32_t>(counts, 1), before);
}

}  // namespace
}  // namespace reticle::cuda
