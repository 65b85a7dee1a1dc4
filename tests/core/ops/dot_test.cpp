#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/dot.hpp>

#include "support/attention.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(Dot, AgreesWithDoubleSumsForEveryTargetWidthAndDtype) {
  std::mt19937 random(2);
  for_each_target([&] {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const Index d : {1, 3, 7, 16, 33, 64, 100, 128, 256}) {
        const Tensor queries = random_tensor(DType::f32, {kQueriesPerPass, d}, random);
        const Tensor keys = random_tensor(dtype, {9, d}, random);
        for (Index rows = 1; rows <= kQueriesPerPass; ++rows) {
          std::vector<float> scores(static_cast<std::size_t>(rows * 11), 77.0f);
          dot(queries.span<float>().data(), rows, keys, scores.data(), 11);
          for (Index r = 0; r < rows; ++r) {
            for (Index k = 0; k < 9; ++k) {
              double expected = 0;
              for (Index i = 0; i < d; ++i)
                expected += static_cast<double>(*queries.view().at<float>(r, i)) *
                            static_cast<double>(read_float(keys, k * d + i));
              EXPECT_NEAR(scores[static_cast<std::size_t>(r * 11 + k)], expected, 1e-5 * static_cast<double>(d + 4));
            }
            EXPECT_EQ(scores[static_cast<std::size_t>(r * 11 + 9)], 77.0f) << "nothing beyond the keys is written";
          }
        }
      }
    }
  });
}

TEST(Dot, AProductDoesNotDependOnWhatItIsComputedBeside) {
  std::mt19937 random(3);
  const Tensor queries = random_tensor(DType::f32, {4, 72}, random);
  const Tensor keys = random_tensor(DType::bf16, {20, 72}, random);
  std::vector<float> together(4 * 20), alone(20), gathered(20);
  dot(queries.span<float>().data(), 4, keys, together.data(), 20);
  dot(queries.span<float>().data() + 2 * 72, 1, keys, alone.data(), 20);
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + 40));
  std::vector<std::int32_t> indices{5, 5, 19, 0};
  dot_gather(queries.span<float>().data() + 2 * 72, 1, keys, indices.data(), 4, gathered.data(), 0);
  for (std::size_t i = 0; i < indices.size(); ++i) EXPECT_EQ(gathered[i], alone[static_cast<std::size_t>(indices[i])]);
}

TEST(Dot, QuantisedKeysGiveTheProductsOfTheirChannelsAndTheSameBitsOnEveryTarget) {
  std::mt19937 random(5);
  for (const DType dtype : {DType::q8, DType::q4}) {
    for (const Index d : {1, 7, 32, 33, 64, 100, 128, 1024}) {
      const Tensor queries = random_tensor(DType::f32, {kQueriesPerPass, d}, random);
      const Tensor keys = Tensor::copy(random_tensor(DType::f32, {9, d}, random), dtype);
      const Tensor channels = Tensor::copy(keys, DType::f32);
      const double bits = std::min(32767.0, 2147483647.0 / (4096.0 * static_cast<double>(d)));
      std::vector<float> first;
      for_each_target([&] {
        for (Index rows = 1; rows <= kQueriesPerPass; ++rows) {
          std::vector<float> scores(static_cast<std::size_t>(kQueriesPerPass * 11), 77.0f);
          dot(queries.span<float>().data(), rows, keys, scores.data(), 11);
          for (Index r = 0; r < rows; ++r) {
            double largest = 0, magnitudes = 0;
            for (Index i = 0; i < d; ++i)
              largest = std::max(largest, std::abs(static_cast<double>(*queries.view().at<float>(r, i))));
            for (Index k = 0; k < 9; ++k) {
              double expected = 0;
              magnitudes = 0;
              for (Index i = 0; i < d; ++i) {
                const auto key = static_cast<double>(*channels.view().at<float>(k, i));
                expected += static_cast<double>(*queries.view().at<float>(r, i)) * key;
                magnitudes += std::abs(key);
              }
              const double rounding = largest / std::floor(bits) / 2 * magnitudes;
              EXPECT_NEAR(scores[static_cast<std::size_t>(r * 11 + k)], expected, 1.01 * rounding + 1e-5 * magnitudes);
            }
            EXPECT_EQ(scores[static_cast<std::size_t>(r * 11 + 9)], 77.0f) << "nothing beyond the keys is written";
          }
          if (rows < kQueriesPerPass) continue;
          if (first.empty()) first = scores;
          EXPECT_EQ(scores, first) << "integers have one sum";
        }
      });
    }
  }
}

TEST(Dot, AQueryOrAQuantisedKeyThatIsNotFiniteGivesNaN) {
  for (const DType dtype : {DType::q8, DType::q4}) {
    Tensor queries(DType::f32, {2, 40}), keys(DType::f32, {6, 40});
    std::fill_n(queries.span<float>().data(), 80, 1.0f);
    std::fill_n(keys.span<float>().data(), 240, 1.0f);
    queries.span<float>()[3] = std::numeric_limits<float>::infinity();
    keys.span<float>()[5 * 40 + 2] = std::numeric_limits<float>::quiet_NaN();
    const Tensor quantised = Tensor::copy(keys, dtype);
    std::vector<float> scores(12);
    for_each_target([&] {
      dot(queries.span<float>().data(), 2, quantised, scores.data(), 6);
      for (std::size_t k = 0; k < 6; ++k) EXPECT_TRUE(std::isnan(scores[k]));
      EXPECT_NEAR(scores[6], 40, 1e-2);
      EXPECT_TRUE(std::isnan(scores[11]));
    });
  }
}

TEST(Dot, ReadsKeysOfAnyStride) {
  std::mt19937 random(4);
  const Tensor queries = random_tensor(DType::f32, {1, 24}, random);
  const Tensor transposed = random_tensor(DType::f16, {24, 10}, random);
  const TensorView keys = transposed.view().permute({1, 0});
  const Tensor packed = Tensor::copy(keys, DType::f16);
  std::vector<float> a(10), b(10);
  dot(queries.span<float>().data(), 1, keys, a.data(), 10);
  dot(queries.span<float>().data(), 1, packed, b.data(), 10);
  EXPECT_EQ(a, b);
}

}  // namespace
}  // namespace reticle::testing
