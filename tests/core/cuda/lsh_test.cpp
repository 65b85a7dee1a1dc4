// CollisionScorer is internal: what it scores is seen in what KeyChooser chooses by it.
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>

#include "support/cuda/on_device.hpp"
#include "support/cuda/rules.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, CodesOfCollisionsFollowTheKeysOfASequence) {
  expect_steps_choose_as_the_pipeline(R"({"type": "magic_pig", "lsh_l": 40})");
  expect_steps_choose_as_the_pipeline(R"({"type": "magic_pig", "lsh_l": 7, "lsh_k": 11, "center": false})");
}

TEST_F(CudaDevice, RecordedProjectionsAreRefused) {
  Case c;
  c.rows = 1;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  AttentionInputs inputs = on_device.inputs;
  const std::vector<NamedTensor> extras = {{"projection", inputs.queries}};
  inputs.extras = extras;
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "magic_pig"}]})");
  EXPECT_EQ(reticle::testing::message_of<DeviceError>([&] {
              KeyChooser(c.batch * c.heads, c.keys, nullptr)
                  .choose(inputs, sparse.rules(Stage::generation, 0, c.keys), nullptr);
            }),
            "hashing: queries F32 (2, 4, 1, 64) and keys F32 (2, 2, 200, 64); on a GPU a head_dim is at most 256, rows "
            "are contiguous, tensors have one dtype, and projections are not given");
}

}  // namespace
}  // namespace reticle::cuda
