// QuantisedScorer is internal: what it scores is seen in what KeyChooser chooses by it.
#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>

#include "support/cuda/on_device.hpp"
#include "support/cuda/rules.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, CodesOfQuantisedKeysFollowTheKeysOfASequence) {
  expect_steps_choose_as_the_pipeline(R"({"type": "pq_cache", "heavy_size": 60, "kmeans_iter": 2})");
  expect_steps_choose_as_the_pipeline(
      R"({"type": "pq_cache", "heavy_size": 60, "pq_bits": 3, "pq_group_factor": 5, "init_offset": 30})");
}

TEST_F(CudaDevice, TablesThatDoNotFitIntoSharedMemoryAreRefused) {
  Case c;
  c.rows = 1;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const auto sparse =
      SparseAttention::from_json(R"({"maskers": [{"type": "pq_cache", "pq_bits": 11, "pq_group_factor": 8}]})");
  EXPECT_EQ(reticle::testing::message_of<DeviceError>([&] {
              KeyChooser(c.batch * c.heads, c.keys, nullptr)
                  .choose(on_device.inputs, sparse.rules(Stage::generation, 0, c.keys), nullptr);
            }),
            "quantising: 8 parts of 2048 centroids, queries F32 (2, 4, 1, 64) and keys F32 (2, 2, 200, 64); on a GPU a "
            "table has at most 8192 entries, rows are contiguous, and tensors have one dtype");
}

}  // namespace
}  // namespace reticle::cuda
