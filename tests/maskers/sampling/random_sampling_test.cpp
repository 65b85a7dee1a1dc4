#include <algorithm>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(RandomSampling, DrawsTheAskedShareOfTheCandidatesWithTheirExactProbability) {
  const Scored s(4, std::vector<float>(103));
  const Mask mask =
      mask_of(R"({"type": "sink", "sink_size": 3}, {"type": "random_sampling", "sampling_rate": 0.257})", s.inputs);
  for (Index q = 0; q < 4; ++q) {
    std::vector<reticle::Run> runs;
    mask.row({0, 0, q}, runs);
    Index sampled = 0;
    for (const reticle::Run& run : runs) {
      if (run.end <= 3) continue;
      EXPECT_FLOAT_EQ(run.p, 0.26f) << "26 of 100";
      sampled += run.end - run.begin;
    }
    EXPECT_EQ(sampled, 26);
    EXPECT_EQ(mask.at(0, 0, q, 0), 1.0f);
  }
}

TEST(RandomSampling, DrawsAtLeastOneAndNeverTheForbidden) {
  Scored s(1, std::vector<float>(50));
  EXPECT_EQ(mask_of(R"({"type": "random_sampling", "sampling_rate": 0.001})", s.inputs).nnz(), 1);
  Tensor bias(DType::f32, {1, 1, 1, 50});
  std::fill(bias.span<float>().begin(), bias.span<float>().end(), -std::numeric_limits<float>::infinity());
  bias.span<float>()[7] = bias.span<float>()[8] = 0;
  s.inputs.attention_mask = bias.view();
  const Mask mask = mask_of(R"({"type": "random_sampling", "sampling_rate": 1})", s.inputs);
  EXPECT_EQ(mask.nnz(), 2);
  EXPECT_EQ(mask.at(0, 0, 0, 7), 1.0f);
}

TEST(RandomSampling, WithReplacementDrawsFromAllKeysAndPIsTheRate) {
  const Scored s(1, std::vector<float>(40));
  const Mask mask = mask_of(R"({"type": "random_sampling", "sampling_rate": 0.9, "replacement": true})", s.inputs);
  EXPECT_GT(mask.nnz(), 0);
  EXPECT_LT(mask.nnz(), 36) << "of 36 draws some meet the same key";
  for (Index key = 0; key < 40; ++key) EXPECT_TRUE(mask.at(0, 0, 0, key) == 0 || mask.at(0, 0, 0, key) == 0.9f) << key;
}

TEST(RandomSampling, RecordedDrawsReplaceItsOwn) {
  Scored s(1, std::vector<float>(12));
  const std::vector<Index> draws{9, 3, 3};
  const NamedTensor recorded{"sample_indices", TensorView(draws.data(), DType::i64, {1, 1, 1, 3})};
  s.inputs.extras = {&recorded, 1};
  const Mask mask = mask_of(R"({"type": "random_sampling", "sampling_rate": 0.25, "replacement": true})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "...1.....1..");
  EXPECT_EQ(mask.at(0, 0, 0, 3), 0.25f);
}

TEST(RandomSampling, RecordedDrawsOfAnotherShapeAreRefused) {
  Scored s(1, std::vector<float>(50));
  const std::vector<Index> draws(6);
  const NamedTensor wrong{"sample_indices", TensorView(draws.data(), DType::i64, {1, 1, 2, 3})};
  s.inputs.extras = {&wrong, 1};
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "random_sampling", "replacement": true})", s.inputs),
            "sample_indices: I64 (1, 1, 2, 3); expected I64 (b, hq, sq, draws) for (1, 1, 1, 50)");
}

TEST(RandomSampling, SeedsGiveOtherDraws) {
  const Scored s(1, std::vector<float>(100));
  const SparseAttention sparse = pipeline_of(R"({"type": "random_sampling", "sampling_rate": 0.3})");
  const auto mask = [&](std::uint64_t seed) {
    Context context;
    context.seed = seed;
    SequenceState state;
    return sparse.mask(s.inputs, state, context);
  };
  EXPECT_EQ(mask(1), mask(1));
  EXPECT_NE(mask(1), mask(2));
}

TEST(RandomSampling, RefusesBadRates) {
  EXPECT_EQ(refusal(R"({"type": "random_sampling", "sampling_rate": 0})"),
            "/maskers/0/sampling_rate: must be in (0, 1], got 0");
  EXPECT_EQ(refusal(R"({"type": "random_sampling", "sampling_rate": 1.5})"),
            "/maskers/0/sampling_rate: must be in (0, 1], got 1.5");
}

}  // namespace
}  // namespace reticle::testing
