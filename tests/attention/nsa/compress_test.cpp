#include <algorithm>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/compress.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/nsa.hpp"

namespace reticle::testing {
namespace {

NsaConfig windows_of_four(Compression how) {
  return {.compress_type = how, .kernel_size = 4, .kernel_stride = 2, .block_size = 4};
}

Tensor tensor_of(std::initializer_list<Index> shape, const std::vector<float>& values) {
  Tensor tensor(DType::f32, shape);
  std::copy(values.begin(), values.end(), tensor.span<float>().begin());
  return tensor;
}

std::vector<float> values_of(const Packed& packed) {
  const auto values = packed.data.span<float>();
  return {values.begin(), values.end()};
}

/// Two sequences, of 7 and 4 tokens, of one element each: 0 to 6 and 10 to 13.
struct TwoSequences {
  Tensor x = tensor_of({11, 1, 1}, {0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13});
  std::vector<Index> cu_seqlens{0, 7, 11};
  Tensor embedding = tensor_of({1, 4, 1}, {0, 0, 0, 8});
};

TEST(Compress, AveragesTheTokensOfEachWholeWindow) {
  const TwoSequences given;
  const NsaConfig config = windows_of_four(Compression::avgpool);
  const Packed y = compress(given.x, given.cu_seqlens, {}, config);
  EXPECT_EQ(values_of(y), (std::vector<float>{1.5f, 3.5f, 11.5f})) << "token 6 has no whole window";
  EXPECT_EQ(y.cu_seqlens, (std::vector<Index>{0, 2, 3}));
  EXPECT_EQ(values_of(compress(given.x, given.cu_seqlens, {std::nullopt, given.embedding.view()}, config)),
            (std::vector<float>{3.5f, 5.5f, 13.5f}))
      << "8 / 4 more";
}

TEST(Compress, SumsTheTokensByTheirWeights) {
  const TwoSequences given;
  const Tensor weight = tensor_of({1, 4}, {1, 0, 0, 2});
  EXPECT_EQ(values_of(compress(given.x, given.cu_seqlens, {weight.view(), given.embedding.view()},
                               windows_of_four(Compression::weightedpool))),
            (std::vector<float>{0 + 2 * (3 + 8), 2 + 2 * (5 + 8), 10 + 2 * (13 + 8)}));
}

TEST(Compress, MapsAllElementsOfAWindowLinearly) {
  // Head 1 of two heads of two elements. Element o of the result: sum of x[k][i] * weight[2 k + i][o].
  std::mt19937 random(1);
  const Tensor x = random_tensor(DType::f32, {6, 2, 2}, random), weight = random_tensor(DType::f32, {2, 8, 2}, random),
               embedding = random_tensor(DType::f32, {2, 4, 2}, random);
  const Packed y =
      compress(x, std::vector<Index>{0, 6}, {weight.view(), embedding.view()}, windows_of_four(Compression::linear));
  ASSERT_EQ(y.data.view().describe(), "F32 (2, 2, 2)");
  for (Index window = 0; window < 2; ++window) {
    for (Index o = 0; o < 2; ++o) {
      double sum = 0;
      for (Index k = 0; k < 4; ++k) {
        for (Index i = 0; i < 2; ++i)
          sum += (static_cast<double>(*x.view().at<float>(window * 2 + k, 1, i)) +
                  static_cast<double>(*embedding.view().at<float>(1, k, i))) *
                 static_cast<double>(*weight.view().at<float>(1, 2 * k + i, o));
      }
      EXPECT_NEAR(*y.data.view().at<float>(window, 1, o), sum, 1e-5);
    }
  }
}

TEST(Compress, GradientsAgreeWithFiniteDifferences) {
  for (const Compression how : {Compression::avgpool, Compression::weightedpool, Compression::linear}) {
    const NsaConfig config = windows_of_four(how);
    std::mt19937 random(2);
    Tensor x = random_tensor(DType::f32, {11, 2, 3}, random), embedding = random_tensor(DType::f32, {2, 4, 3}, random),
           weight = how == Compression::linear ? random_tensor(DType::f32, {2, 12, 3}, random)
                                               : random_tensor(DType::f32, {2, 4}, random);
    const std::vector<Index> cu_seqlens{0, 7, 11};
    const Tensor dy = random_tensor(DType::f32, {3, 2, 3}, random);
    CompressionWeights weights{std::nullopt, embedding.view()};
    if (how != Compression::avgpool) weights.weight = weight.view();
    const auto loss = [&] {
      const Packed y = compress(x, cu_seqlens, weights, config);
      double sum = 0;
      for (std::size_t i = 0; i < 18; ++i)
        sum += static_cast<double>(y.data.span<float>()[i]) * static_cast<double>(dy.span<float>()[i]);
      return sum;
    };
    const CompressionGradients gradients = compress_backward(x, cu_seqlens, weights, config, dy);
    const auto expect_slopes = [&](Tensor& tensor, const Tensor& gradient, const char* name) {
      const auto values = tensor.span<float>();
      ASSERT_EQ(values.size(), gradient.span<float>().size()) << name;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float at = values[i];
        values[i] = at + 0.25f;  // the loss is linear in each element: steps may be large
        const double above = loss();
        values[i] = at - 0.25f;
        const double below = loss();
        values[i] = at;
        EXPECT_NEAR(gradient.span<float>()[i], (above - below) / 0.5, 2e-4) << name << " " << i;
      }
    };
    expect_slopes(x, gradients.x, "x");
    expect_slopes(embedding, *gradients.position_embedding, "position_embedding");
    EXPECT_EQ(gradients.weight.has_value(), how != Compression::avgpool);
    if (gradients.weight) expect_slopes(weight, *gradients.weight, "weight");
  }
}

TEST(Compress, SequencesShorterThanAWindowGiveNothing) {
  const Tensor x(DType::f32, {10, 2, 8});
  NsaConfig config = kSmallNsa;
  config.compress_type = Compression::avgpool;
  const Packed y = compress(x, std::vector<Index>{0, 3, 3, 10}, {}, config);
  EXPECT_EQ(y.data.view().size(0), 0);
  EXPECT_EQ(y.cu_seqlens, (std::vector<Index>{0, 0, 0, 0}));
}

TEST(Compress, RefusesWeightsThatDoNotFit) {
  const Tensor x(DType::f32, {16, 2, 8}), pool(DType::f32, {2, 8}), wrong(DType::f32, {2, 9}),
      half(DType::f16, {16, 2, 8});
  const std::vector<Index> cu{0, 16};
  NsaConfig average = kSmallNsa;
  average.compress_type = Compression::avgpool;
  EXPECT_THROW(compress(x, cu, {pool.view(), std::nullopt}, average), ShapeError);
  EXPECT_THROW(compress(x, cu, {}, kSmallNsa), ShapeError);
  EXPECT_THROW(compress(x, cu, {wrong.view(), std::nullopt}, kSmallNsa), ShapeError);
  EXPECT_THROW(compress(x, cu, {pool.view(), pool.view()}, kSmallNsa), ShapeError);
  EXPECT_THROW(compress(half, cu, {pool.view(), std::nullopt}, kSmallNsa), ShapeError);
  EXPECT_THROW(compress(x, std::vector<Index>{0, 17}, {pool.view(), std::nullopt}, kSmallNsa), ShapeError);
  const auto refusal = [&](const CompressionWeights& weights, const NsaConfig& config) {
    return message_of<ShapeError>([&] { compress(x, cu, weights, config); });
  };
  EXPECT_EQ(refusal({pool.view(), std::nullopt}, average), "compress: avgpool takes no weight; given is F32 (2, 8)");
  EXPECT_EQ(refusal({}, kSmallNsa), "compress: weightedpool and linear need a weight");
  EXPECT_EQ(refusal({wrong.view(), std::nullopt}, kSmallNsa),
            "compress: weight: is F32 (2, 9); expected contiguous F32 (2, 8)");
  EXPECT_EQ(message_of<ShapeError>([&] {
              compress_backward(x, cu, {pool.view(), std::nullopt}, kSmallNsa, pool);
            }),
            "compress_backward: dy is F32 (2, 8); expected contiguous F32 (3, 2, 8)");
}

}  // namespace
}  // namespace reticle::testing
