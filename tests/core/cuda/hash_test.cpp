// HashScorer is internal: what it scores is seen in what KeyChooser chooses by it.
#include <string>

#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>

#include "support/cuda/on_device.hpp"
#include "support/cuda/rules.hpp"
#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, CodesOfLearnedHashesFollowTheKeysOfASequence) {
  const reticle::testing::TemporaryFolder folder;
  expect_steps_choose_as_the_pipeline(hashing(folder / "w", 0, 4, 100, 70, "relu"));  // 70 bits: two words
}

std::string refusal_of_hashes(Index hidden, Index heads) {
  const reticle::testing::TemporaryFolder folder;
  const auto sparse =
      SparseAttention::from_json(R"({"maskers": [)" + hashing(folder / "w", 0, 4, hidden, 32, "relu") + "]}");
  Case c;
  c.heads = heads;
  c.rows = 1;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  return reticle::testing::message_of<Error>([&] {
    KeyChooser(c.batch * c.heads, c.keys, nullptr)
        .choose(on_device.inputs, sparse.rules(Stage::generation, 0, c.keys), nullptr);
  });
}

TEST_F(CudaDevice, HashesOfOtherHeadsOrThatAreTooWideAreRefusedByName) {
  EXPECT_EQ(refusal_of_hashes(512, 4), "nothing was thrown");
  EXPECT_EQ(refusal_of_hashes(513, 4),
            "hashing: on a GPU there are at most 8 linear maps of width 512, and rows are contiguous");
  EXPECT_EQ(refusal_of_hashes(16, 6), "hashing: queries F32 (2, 6, 1, 64); the weights are for 4 heads of 64");
}

}  // namespace
}  // namespace reticle::cuda
