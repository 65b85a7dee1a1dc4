#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(Socket, KeepsTheKeyThatFallsIntoTheQuerysBucketAndTheLongerValue) {
  // One plane along the only axis: positive keys share the query's bucket.
  Scored s(std::vector<float>{2}, {-1, 3, -5, 4});
  const std::vector<float> values{9, 1, 1, 2}, plane{1};
  const NamedTensor planes{"planes", TensorView(plane.data(), DType::f32, {1, 1, 1})};
  s.inputs.values = TensorView(values.data(), DType::f32, {1, 1, 4, 1});
  s.inputs.extras = {&planes, 1};
  EXPECT_EQ(row_text(mask_of(R"({"type": "socket", "heavy_size": 2, "K": 1, "L": 1, "tau": 0.1})", s.inputs), 0),
            ".1.1")
      << "sharp: the bucket decides";
  EXPECT_EQ(row_text(mask_of(R"({"type": "socket", "heavy_size": 2, "K": 1, "L": 1, "tau": 1000})", s.inputs), 0),
            "1..1")
      << "flat: the length of the value decides";
}

/// A key's score in plain loops; `planes` is (tables, k, d).
double reference_score(const AttentionInputs& in, const Tensor& planes, Index query, Index key, double tau) {
  const Index tables = planes.view().size(0), k = planes.view().size(1), d = planes.view().size(2);
  const auto projection = [&](const TensorView& of, Index row, Index table, Index plane) {
    double sum = 0;
    for (Index i = 0; i < d; ++i)
      sum += element(of, 0, 0, row, i) * static_cast<double>(*planes.view().at<float>(table, plane, i));
    return sum;
  };
  double probability = 0;
  for (Index table = 0; table < tables; ++table) {
    double all = 0, of_bucket = 0;
    for (Index corner = 0; corner < Index{1} << k; ++corner) {
      double logit = 0;
      bool of_key = true;
      for (Index plane = 0; plane < k; ++plane) {
        const bool positive = (corner >> plane & 1) != 0;
        const double lean = std::tanh(projection(in.queries, query, table, plane));
        logit += (positive ? lean : -lean) / (tau * std::sqrt(static_cast<double>(d)));
        of_key = of_key && positive == (projection(in.keys, key, table, plane) >= 0);
      }
      all += std::exp(logit);
      if (of_key) of_bucket += std::exp(logit);
    }
    probability += of_bucket / all;
  }
  double squares = 0;
  for (Index i = 0; i < in.values.size(3); ++i)
    squares += element(in.values, 0, 0, key, i) * element(in.values, 0, 0, key, i);
  return probability * std::sqrt(squares);
}

TEST(Socket, RanksByBucketProbabilitiesTimesTheLengthOfTheValue) {
  OwnedInputs owned({1, 1, 1, 3, 30, 5, 7}, 2);
  std::mt19937 random(1);
  const Tensor planes = random_tensor(DType::f32, {2, 3, 5}, random);
  const NamedTensor recorded{"planes", planes.view()};
  owned.inputs.extras = {&recorded, 1};
  const Mask mask = mask_of(R"({"type": "socket", "heavy_size": 6, "K": 3, "L": 2, "tau": 0.4})", owned.inputs);
  for (Index query = 0; query < 3; ++query) {
    std::vector<std::pair<double, Index>> ranked;
    for (Index key = 0; key < 30; ++key)
      ranked.emplace_back(-reference_score(owned.inputs, planes, query, key, 0.4), key);
    std::sort(ranked.begin(), ranked.end());
    std::string expected(30, '.');
    for (std::size_t i = 0; i < 6; ++i) expected[static_cast<std::size_t>(ranked[i].second)] = '1';
    EXPECT_EQ(row_text(mask, query), expected) << "query " << query;
  }
}

TEST(Socket, ADecodeStepEqualsAFreshStart) {
  const OwnedInputs owned({1, 4, 2, 20, 90, 16, 24}, 3);
  const std::string maskers = R"({"type": "socket", "heavy_size": 12, "K": 5, "L": 6})";
  expect_steps_equal_fresh_starts(maskers, owned.inputs);
  const SparseAttention sparse = pipeline_of(maskers);
  SequenceState kept;
  sparse.mask(owned.inputs, kept);
  EXPECT_THROW(sparse.mask(first_keys(owned.inputs, 50), kept), ShapeError);
}

TEST(Socket, SeedsGiveOtherPlanes) {
  const OwnedInputs owned({1, 2, 1, 4, 100, 16, 16}, 4);
  const Mask first = mask_of(R"({"type": "socket", "heavy_size": 10, "seed": 1})", owned.inputs);
  EXPECT_EQ(first, mask_of(R"({"type": "socket", "heavy_size": 10, "seed": 1})", owned.inputs));
  EXPECT_FALSE(first == mask_of(R"({"type": "socket", "heavy_size": 10, "seed": 2})", owned.inputs));
}

TEST(Socket, RefusesBadParametersAndPlanes) {
  EXPECT_EQ(refusal(R"({"type": "socket", "K": 0})"), "/maskers/0/K: must be in [1, 16], got 0");
  EXPECT_EQ(refusal(R"({"type": "socket", "K": 17})"), "/maskers/0/K: must be in [1, 16], got 17");
  EXPECT_EQ(refusal(R"({"type": "socket", "L": 0})"), "/maskers/0/L: must be in [1, 4096], got 0");
  EXPECT_EQ(refusal(R"({"type": "socket", "L": 128, "K": 16})"),
            "/maskers/0/L: must be at most 2^22 / 2^K, so that all buckets of a query fit into 16 MiB, got 128");
  EXPECT_EQ(refusal(R"({"type": "socket", "tau": 0})"), "/maskers/0/tau: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "socket", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
  OwnedInputs owned({}, 5);
  const Tensor planes(DType::f32, {2, 4, 16});
  const NamedTensor recorded{"planes", planes.view()};
  owned.inputs.extras = {&recorded, 1};
  EXPECT_EQ(refusal<ShapeError>(R"({"type": "socket", "K": 4, "L": 3})", owned.inputs),
            "planes: F32 (2, 4, 16); expected F32 (L, K, head_dim)");
}

}  // namespace
}  // namespace reticle::testing
