#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(PqCache, ADecodeStepGoesOnWithTheFirstCodebook) {
  const OwnedInputs owned({2, 4, 2, 1, 120, 16, 16}, 4);
  const SparseAttention sparse =
      pipeline_of(R"({"type": "pq_cache", "heavy_size": 9, "pq_group_factor": 4, "pq_bits": 4, "init_offset": 3})");
  SequenceState stepwise, at_once;
  for (const Index length : {100, 101, 107, 120}) {
    const AttentionInputs inputs = first_keys(owned.inputs, length);
    const Mask mask = sparse.mask(inputs, stepwise);
    EXPECT_EQ(mask.nnz(), 2 * 4 * 9);
    for (Index head = 0; head < 4; ++head) {
      for (Index key = 0; key < 3; ++key) EXPECT_EQ(mask.at(0, head, 0, key), 0.0f) << "before init_offset";
    }
    if (length == 100) sparse.mask(inputs, at_once);
    if (length == 120) {
      EXPECT_EQ(mask, sparse.mask(inputs, at_once)) << "however many keys come at a time";
    }
  }
  EXPECT_THROW(sparse.mask(first_keys(owned.inputs, 90), stepwise), ShapeError);
}

TEST(PqCache, FindsWhatTheExactScoresFindWhenThereAreEnoughCentroids) {
  const OwnedInputs owned({1, 2, 1, 4, 60, 16, 16}, 5);
  EXPECT_EQ(mask_of(R"({"type": "pq_cache", "heavy_size": 7, "pq_group_factor": 2, "pq_bits": 6})", owned.inputs),
            mask_of(R"({"type": "oracle_top_k", "heavy_size": 7})", owned.inputs));
}

TEST(PqCache, KeysOfACentroidScoreAlike) {
  // Two centroids, near 0 and near 10: the exact scores would keep keys 3 and 5.
  const Scored s(1, {0, 0.1f, -0.1f, 10, 9.9f, 10.1f});
  const Mask mask = mask_of(R"({"type": "pq_cache", "heavy_size": 2, "pq_group_factor": 1, "pq_bits": 1})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "...11.") << "ties: the lower index";
}

TEST(PqCache, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "pq_group_factor": 0})"),
            "/maskers/0/pq_group_factor: must be in [1, 1024], got 0");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "pq_bits": 0})"), "/maskers/0/pq_bits: must be in [1, 16], got 0");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "pq_bits": 17})"), "/maskers/0/pq_bits: must be in [1, 16], got 17");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "kmeans_iter": 0})"),
            "/maskers/0/kmeans_iter: must be in [1, 4096], got 0");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "init_offset": -1})"), "/maskers/0/init_offset: must be >= 0, got -1");
  EXPECT_EQ(refusal(R"({"type": "pq_cache", "metric": "cosine"})"),
            "/maskers/0/metric: \"cosine\" is not one of \"euclidean\", \"ip\"");
}

}  // namespace
}  // namespace reticle::testing
