#include "support/cuda/unavailable.hpp"

#include <gtest/gtest.h>

#include <reticle/attention/nsa/cuda/block_scores.hpp>

#include "support/attention.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaUnavailable, BlockScoresServeNothing) {
  const reticle::testing::OwnedInputs owned({.head_dim = 64, .value_dim = 64}, 1, DType::f16);
  EXPECT_FALSE(block_scores_serve(owned.inputs, {}));
}

TEST_F(CudaUnavailable, BlockScoresAreRefusedByWhatIsWrongFirst) {
  const reticle::testing::OwnedInputs owned({.head_dim = 64, .value_dim = 64}, 1, DType::f16);
  AttentionInputs there = owned.inputs;
  for (TensorView* view : {&there.queries, &there.keys, &there.values}) view->device = {Device::Kind::cuda, 0};
  const auto scores_of = [](const AttentionInputs& inputs, const NsaConfig& config) {
    return [=] { block_scores(inputs, 0, config, nullptr, 1, nullptr, nullptr); };
  };
  EXPECT_EQ(refusal(scores_of(owned.inputs, {})), "queries: on the CPU; expected a tensor on a GPU");
  EXPECT_EQ(reticle::testing::message_of<ConfigError>(scores_of(there, {.kernel_stride = 15})),
            "kernel_stride: 15; expected a divisor of kernel_size, 32");
  EXPECT_EQ(refusal(scores_of(there, {})), kNoCuda);
}

}  // namespace
}  // namespace reticle::cuda
