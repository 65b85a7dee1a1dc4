#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/bf16_kernel.hpp>

namespace reticle::testing {
namespace {

std::vector<BFloat16> random_bf16(Index count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (BFloat16& value : values) value = from_float<BFloat16>(normal(random));
  return values;
}

TEST(Bf16Kernel, MultipliesForEveryPanelSizeAndStride) {
  std::mt19937 random(1);
  for (const Index columns : {16, 32, 48, 64}) {
    for (const Index rows : {1, 2, 5, 6, 13, 27}) {
      for (const auto& [row_stride, column_stride] : {std::pair<Index, Index>{51, 2}, {2, 2 * 27}}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + ", rows " + std::to_string(row_stride) +
                     " apart");
        const Index depth = 25, stride = 64;
        const auto a = random_bf16(27 * 52 + 2 * 27 * depth, random), b = random_bf16(2 * depth * stride, random);
        std::vector<Bf16Pair> pairs;
        for (std::size_t i = 0; i < b.size(); i += 2) pairs.push_back({b[i], b[i + 1]});
        const std::vector<float> before(static_cast<std::size_t>(rows * stride), 3.0f);
        std::vector<float> scale(static_cast<std::size_t>(columns));
        for (std::size_t v = 0; v < scale.size(); ++v) scale[v] = 0.25f * static_cast<float>(v);
        for (const float* factor : {static_cast<const float*>(nullptr), std::as_const(scale).data()}) {
          std::vector<float> c = before;
          multiply_bf16({a.data(), row_stride, column_stride}, rows, depth, pairs.data(), columns, stride, factor,
                        c.data());
          for (Index m = 0; m < rows; ++m) {
            for (Index v = 0; v < stride; ++v) {
              const float found = c[static_cast<std::size_t>(m * stride + v)];
              if (v >= columns) {
                ASSERT_EQ(found, 3.0f) << "beyond the columns";
                continue;
              }
              double expected = factor == nullptr ? 0 : 3.0 * static_cast<double>(factor[v]);
              for (Index k = 0; k < depth; ++k) {
                const BFloat16* left = a.data() + m * row_stride + k * column_stride;
                const Bf16Pair& right = pairs[static_cast<std::size_t>(k * stride + v)];
                expected += static_cast<double>(to_float(left[0])) * static_cast<double>(to_float(right.first)) +
                            static_cast<double>(to_float(left[1])) * static_cast<double>(to_float(right.second));
              }
              ASSERT_NEAR(found, expected, 1e-4) << m << ", " << v;
            }
          }
        }
      }
    }
  }
}

TEST(Bf16Kernel, PairsRowsTwoByTwoAndTheLastOfAnOddCountWithZeros) {
  std::mt19937 random(2);
  const auto data = random_bf16(6 * 9, random);
  TensorView matrix(data.data(), DType::bf16, {6, 7});
  matrix.strides[0] = 9;
  const std::vector<std::int32_t> indices{5, 0, 3};
  std::vector<Bf16Pair> pairs(14);
  pair_rows(matrix, indices.data(), 3, pairs.data());
  for (std::size_t j = 0; j < 7; ++j) {
    EXPECT_EQ(pairs[j].first.bits, data[5 * 9 + j].bits);
    EXPECT_EQ(pairs[j].second.bits, data[j].bits);
    EXPECT_EQ(pairs[7 + j].first.bits, data[3 * 9 + j].bits);
    EXPECT_EQ(pairs[7 + j].second.bits, 0);
  }
}

}  // namespace
}  // namespace reticle::testing
