#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/scores.hpp>

#include "support/attention.hpp"
#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

/// Against plain loops in double.
template <class T>
void expect_scores(const Case& c, Index head_dim, double tolerance) {
  const Problem<T> drawn(c, head_dim);
  const OnDevice<T> on_device(drawn);
  const auto count = static_cast<std::size_t>(c.batch * c.heads * c.rows * c.keys);
  const Buffer buffer(count * sizeof(float), nullptr);
  dot_scores(on_device.inputs, buffer.as<float>(), nullptr);
  const std::vector<float> scores = on_host<float>(buffer, count);
  const MaskShape shape = drawn.inputs.shape();
  for (Index row = 0; row < shape.rows(); ++row) {
    const RowId id = shape.row_of_logical(row);
    for (Index key = 0; key < c.keys; ++key) {
      const float found = scores[static_cast<std::size_t>(row * c.keys + key)];
      if (c.causal && key > c.keys - c.rows + id.query) {
        ASSERT_EQ(found, -std::numeric_limits<float>::infinity()) << "row " << row << ", key " << key;
        continue;
      }
      double expected = 0;
      for (Index i = 0; i < head_dim; ++i)
        expected += reticle::testing::element(drawn.inputs.queries, id.batch, id.head, id.query, i) *
                    reticle::testing::element(drawn.inputs.keys, id.batch, id.head * c.kv_heads / c.heads, key, i);
      expected *= static_cast<double>(drawn.inputs.scaling);
      ASSERT_NEAR(found, expected, tolerance * (1 + std::abs(expected))) << "row " << row << ", key " << key;
    }
  }
}

TEST_F(CudaDevice, ScoresAreScaledProductsForEveryHeadSizeAndDtype) {
  Case c;
  for (const Index head_dim : {64, 128, 256}) {
    expect_scores<float>(c, head_dim, 1e-5);
    expect_scores<BFloat16>(c, head_dim, 1e-5);
    expect_scores<Half>(c, head_dim, 1e-5);
  }
}

TEST_F(CudaDevice, KeysToComeScoreMinusInfinity) {
  Case c;
  c.causal = true;
  for (const Index keys : {1, 5, 131}) {  // fewer than queries, too
    c.keys = keys;
    expect_scores<float>(c, 64, 1e-5);
  }
}

TEST_F(CudaDevice, HeadSizesWithoutAKernelAreRefused) {
  const Problem<float> drawn(Case{}, 40);
  const OnDevice<float> on_device(drawn);
  EXPECT_EQ(reticle::testing::message_of<DeviceError>([&] { dot_scores(on_device.inputs, nullptr, nullptr); }),
            "head_dim is 40; on a GPU it is 64, 128 or 256");
}

}  // namespace
}  // namespace reticle::cuda
