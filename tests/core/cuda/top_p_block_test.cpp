// The GPU's top-p, run on the CPU.
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/top_p_block.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::cuda {
namespace {

std::vector<std::int32_t> top_p_on_block(const std::vector<float>& scores, double share) {
  const HostBlock block(kTopKThreads);
  const auto shared = std::make_unique<TopPShared>();
  std::vector<std::int32_t> out(scores.size() + 1, -7);
  const int n = top_p_row(
      block, *shared, [&](Index i) { return order_key(scores[static_cast<std::size_t>(i)]); },
      static_cast<Index>(scores.size()), share, out.data());
  out.resize(static_cast<std::size_t>(n));
  return out;
}

TEST(CudaTopP, SelectsWhatTheCpuSelects) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> rows = {{}, {-kInfinity}, {2}, {kInfinity, 1, kInfinity}, {std::nanf(""), 0.5f, -1}};
  for (const std::size_t n : {100u, 511u, 5000u}) {
    std::vector<float> drawn(n), few_values(n), equal(n, 1.25f);
    for (std::size_t i = 0; i < n; ++i) {
      drawn[i] = 3 * normal(random);
      few_values[i] = static_cast<float>(random() % 4);
      if (i % 7 == 0) drawn[i] = -kInfinity;
    }
    rows.insert(rows.end(), {drawn, few_values, equal});
  }
  for (const std::vector<float>& scores : rows) {
    for (const double share : {-1.0, 0.0, 0.1, 0.5, 0.9, 0.999999, 1.0}) {
      std::vector<std::int32_t> expected;
      top_p(scores, share, expected);
      ASSERT_EQ(top_p_on_block(scores, share), expected) << scores.size() << " scores, share " << share;
    }
  }
}

}  // namespace
}  // namespace reticle::cuda
