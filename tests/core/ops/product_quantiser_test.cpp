#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/product_quantiser.hpp>

#include "support/attention.hpp"

namespace reticle::testing {
namespace {

TEST(ProductQuantiser, ReproducesKeysWhenThereAreAsManyCentroids) {
  std::mt19937 random(1);
  const Tensor keys = random_tensor(DType::f32, {20, 6}, random);
  for (const PqMetric metric : {PqMetric::euclidean, PqMetric::ip}) {
    Philox philox(1, 0, 0, 0, 0);
    const ProductQuantiser book(keys, 0, 2, 64, 10, metric, philox);
    EXPECT_EQ(book.centroids(), 20) << "no more centroids than keys";
    std::vector<std::uint16_t> codes(2);
    const std::vector<float> query{1, -2, 3, 0.5f, 2, -1};
    const std::vector<float> table = book.table(query);
    for (Index k = 0; k < 20; ++k) {
      const std::span<const float> key = keys.span<float>().subspan(static_cast<std::size_t>(k * 6), 6);
      book.encode(key, codes);
      double expected = 0;
      for (std::size_t i = 0; i < 6; ++i) expected += static_cast<double>(query[i]) * static_cast<double>(key[i]);
      EXPECT_NEAR(table[codes[0]] + table[20 + codes[1]], expected, 1e-5);
    }
  }
}

TEST(ProductQuantiser, MoreCentroidsApproximateBetter) {
  std::mt19937 random(2);
  const Tensor keys = random_tensor(DType::bf16, {400, 16}, random);
  const Tensor exact = Tensor::copy(keys, DType::f32);
  double last = 1e30;
  for (const Index centroids : {1, 4, 16, 64}) {
    Philox philox(3, 0, 0, 0, 0);
    const ProductQuantiser book(keys, 0, 4, centroids, 15, PqMetric::euclidean, philox);
    std::vector<std::uint16_t> codes(4);
    std::vector<float> unit(16);
    double error = 0;
    for (Index k = 0; k < 400; ++k) {
      const auto key = exact.span<float>().subspan(static_cast<std::size_t>(k * 16), 16);
      book.encode(key, codes);
      for (std::size_t i = 0; i < 16; ++i) {
        std::fill(unit.begin(), unit.end(), 0.0f);
        unit[i] = 1;  // reads the centroid's coordinate
        const std::size_t part = i / 4;
        const double coordinate =
            static_cast<double>(book.table(unit)[part * static_cast<std::size_t>(book.centroids()) + codes[part]]);
        error += (coordinate - static_cast<double>(key[i])) * (coordinate - static_cast<double>(key[i]));
      }
    }
    EXPECT_LT(error, last) << centroids;
    last = error;
  }
}

TEST(ProductQuantiser, CutsAnyWidthIntoAnyNumberOfParts) {
  std::mt19937 random(3);
  const Tensor keys = random_tensor(DType::f32, {10, 5}, random);
  for (const Index parts : {1, 2, 3, 5, 8}) {
    Philox philox(1, 0, 0, 0, 0);
    const ProductQuantiser book(keys, 2, parts, 4, 5, PqMetric::euclidean, philox);
    std::vector<std::uint16_t> codes(static_cast<std::size_t>(parts));
    book.encode(keys.span<float>().subspan(0, 5), codes);
    for (const std::uint16_t code : codes) EXPECT_LT(code, 4);
  }
}

}  // namespace
}  // namespace reticle::testing
