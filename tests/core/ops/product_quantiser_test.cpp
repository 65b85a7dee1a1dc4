#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/product_quantiser.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

std::vector<std::uint16_t> codes_of(const ProductQuantiser& quantiser, const std::vector<float>& vector) {
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(quantiser.parts()));
  quantiser.encode(vector, codes);
  return codes;
}

ProductQuantiser trained(const Tensor& keys, Index begin, Index parts, Index centroids, Index iterations,
                         PqMetric metric) {
  Philox random(3, 0, 0, 0, 0);
  return {keys, begin, parts, centroids, iterations, metric, random};
}

std::vector<float> sorted(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values;
}

TEST(ProductQuantiser, OfRecordedCentroidsTakesTheNearestOfEachPart) {
  // Three dimensions in parts of one and two; the second column of the first part is unused.
  const Tensor centroids = tensor_of({2, 2, 2}, {1, 99, 4, 99, 0, 0, 2, 2});
  const ProductQuantiser quantiser(centroids, 3);
  EXPECT_TRUE(quantiser.trained());
  EXPECT_EQ(quantiser.parts(), 2);
  EXPECT_EQ(quantiser.centroids(), 2);
  EXPECT_EQ(codes_of(quantiser, {3, 0.5f, 0.4f}), (std::vector<std::uint16_t>{1, 0}));
  EXPECT_EQ(codes_of(quantiser, {-7, 1, 1.5f}), (std::vector<std::uint16_t>{0, 1}));
  EXPECT_EQ(codes_of(quantiser, {2.5f, 1, 1}), (std::vector<std::uint16_t>{0, 0})) << "a tie goes to the first";
  EXPECT_EQ(quantiser.table(std::vector<float>{2, 1, 3}), (std::vector<float>{2, 8, 0, 8}));
}

TEST(ProductQuantiser, OfCentroidsNarrowerThanAPartIsRefused) {
  const Tensor centroids = tensor_of({2, 2, 1}, {1, 4, 0, 2});
  EXPECT_EQ(message_of<ShapeError>([&] { ProductQuantiser(centroids, 3); }),
            "centroids: F32 (2, 2, 1) are narrower than a part of head_dim 3");
}

TEST(ProductQuantiser, ClustersKeysAroundTheirMeans) {
  const Tensor keys = tensor_of({5, 1}, {77, 0, 1, 10, 11});
  const ProductQuantiser quantiser = trained(keys, 1, 1, 2, 20, PqMetric::euclidean);
  EXPECT_EQ(sorted(quantiser.books()[0].centroids), (std::vector<float>{0.5f, 10.5f})) << "the first key is left out";
}

TEST(ProductQuantiser, ClustersEachPartByItself) {
  const Tensor keys = tensor_of({4, 2}, {0, -4, 1, 4, 10, -5, 11, 5});
  const ProductQuantiser quantiser = trained(keys, 0, 2, 2, 20, PqMetric::euclidean);
  EXPECT_EQ(sorted(quantiser.books()[0].centroids), (std::vector<float>{0.5f, 10.5f}));
  EXPECT_EQ(sorted(quantiser.books()[1].centroids), (std::vector<float>{-4.5f, 4.5f}));
}

TEST(ProductQuantiser, WithACentroidPerKeyGivesEveryKeyBack) {
  std::mt19937 random(5);
  for (const PqMetric metric : {PqMetric::euclidean, PqMetric::ip}) {
    for (const Index parts : {1, 3}) {
      const Tensor keys = random_tensor(DType::f32, {9, 7}, random);
      const ProductQuantiser quantiser = trained(keys, 0, parts, 40, 5, metric);
      EXPECT_EQ(quantiser.centroids(), 9) << "there are no more keys";
      for (Index key = 0; key < 9; ++key) {
        std::vector<float> vector(7);
        load_row(keys, key, 1, vector);
        const std::vector<std::uint16_t> codes = codes_of(quantiser, vector);
        for (const ProductQuantiser::Book& book : quantiser.books()) {
          const std::uint16_t code = codes[static_cast<std::size_t>(&book - quantiser.books().data())];
          for (Index i = 0; i < book.width; ++i)
            EXPECT_EQ(book.centroids[static_cast<std::size_t>(code * book.width + i)],
                      vector[static_cast<std::size_t>(book.begin + i)]);
        }
      }
    }
  }
}

TEST(ProductQuantiser, ForInnerProductsLiftsKeysOntoASphere) {
  const Tensor keys = tensor_of({2, 2}, {3, 4, 0, 1});
  const ProductQuantiser quantiser = trained(keys, 0, 1, 2, 5, PqMetric::ip);
  const ProductQuantiser::Book& book = quantiser.books()[0];
  EXPECT_EQ(book.radius, 25);
  const bool in_order = book.centroids[0] == 3;
  EXPECT_EQ(book.lift[in_order ? 0 : 1], 0);
  EXPECT_EQ(book.lift[in_order ? 1 : 0], std::sqrt(24.0f));
}

TEST(PqRecipe, TrainsOnTheKeysThatCount) {
  const Tensor keys = tensor_of({7, 1}, {50, 0, 1, 500, 10, 11, 600});
  PqRecipe recipe;
  recipe.centroids = 2;
  recipe.iterations = 20;
  recipe.init_offset = 1;
  const ProductQuantiser quantiser = recipe.train(keys, 0, 0, [](Index key) { return key != 3 && key != 6; });
  EXPECT_EQ(sorted(quantiser.books()[0].centroids), (std::vector<float>{0.5f, 10.5f}));
}

TEST(PqRecipe, TrainsAsManyCentroidsWhereFewKeysOrNoneCount) {
  const Tensor keys = tensor_of({4, 1}, {5, 6, 7, 8});
  PqRecipe recipe;
  recipe.centroids = 3;
  const auto one = recipe.train(keys, 0, 0, [](Index key) { return key == 2; });
  EXPECT_EQ(one.books()[0].centroids, (std::vector<float>{7, 7, 7}));
  const auto none = recipe.train(keys, 0, 0, [](Index) { return false; });
  EXPECT_EQ(none.books()[0].centroids, (std::vector<float>{0, 0, 0}));
}

TEST(PqRecipe, DrawsByItsSeedTheLayerAndTheHead) {
  std::mt19937 random(6);
  const Tensor keys = random_tensor(DType::f32, {200, 4}, random);
  PqRecipe recipe;
  recipe.centroids = 3;
  const auto centroids = [&](int layer, Index head) {
    return recipe.train(keys, layer, head, [](Index) { return true; }).books()[0].centroids;
  };
  const std::vector<float> first = centroids(2, 1);
  EXPECT_EQ(centroids(2, 1), first);
  EXPECT_NE(centroids(3, 1), first);
  EXPECT_NE(centroids(2, 0), first);
  recipe.seed = 1;
  EXPECT_NE(centroids(2, 1), first);
}

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
        unit[i] = 1;  // its dot product reads one coordinate of the centroid
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
