// Each masker's rule on inputs small enough to work out by hand.
#include "support/maskers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>

namespace reticle::testing {
namespace {

TEST(Sink, KeepsTheFirstKeysOfEveryRowInOneStoredRow) {
  const Scored s(3, std::vector<float>(8));
  const Mask mask = mask_of(R"({"type": "sink", "sink_size": 3})", s.inputs);
  for (Index q = 0; q < 3; ++q) EXPECT_EQ(row_text(mask, q), "111.....");
  EXPECT_EQ(mask.shape().stored_rows(), 1);
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 0.29})", s.inputs), 0), "11......") << "int(0.29 * 8)";
  EXPECT_EQ(row_text(mask_of(R"({"type": "sink", "sink_size": 100})", s.inputs), 0), "11111111");
}

TEST(Local, EndsAtTheQuerysOwnPosition) {
  const Scored s(3, std::vector<float>(6));  // queries at positions 3, 4, 5
  const Mask mask = mask_of(R"({"type": "local", "window_size": 2})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "..11..");
  EXPECT_EQ(row_text(mask, 1), "...11.");
  EXPECT_EQ(row_text(mask, 2), "....11");
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 100})", s.inputs), 0), "1111..")
      << "a short sequence does not become dense";
  const Mask dilated = mask_of(R"({"type": "local", "window_size": 2, "dilation": 3})", s.inputs);
  EXPECT_EQ(row_text(dilated, 0), "1..1..");
  EXPECT_EQ(row_text(dilated, 2), "..1..1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "local", "window_size": 5, "dilation": 4})", s.inputs), 2), ".1...1");
}

TEST(Causal, KeepsWhatLiesBehind) {
  const Scored s(3, std::vector<float>(4));
  const Mask mask = mask_of(R"({"type": "causal"})", s.inputs);
  EXPECT_EQ(row_text(mask, 0), "11..");
  EXPECT_EQ(row_text(mask, 2), "1111");
}

TEST(OracleTopK, CountsOnlyNewPositions) {
  const Scored s(1, {5, 9, 1, 9, 3, 9});
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_k", "heavy_size": 2})", s.inputs), 0), ".1.1..")
      << "ties: lower index";
  EXPECT_EQ(
      row_text(mask_of(R"({"type": "sink", "sink_size": 2}, {"type": "oracle_top_k", "heavy_size": 2})", s.inputs), 0),
      "11.1.1");
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_k", "heavy_size": 100})", s.inputs), 0), "111111");
}

TEST(OracleTopK, ChoosesAmongTheKeysThatCausalityAndTheMaskAllow) {
  Scored s(2, {1, 2, 9, 8});  // queries at positions 2 and 3
  Tensor bias(DType::f32, {1, 1, 1, 4});
  const float values[] = {0, 0, -std::numeric_limits<float>::infinity(), 0};
  std::copy(std::begin(values), std::end(values), bias.span<float>().begin());
  s.inputs.attention_mask = bias.view();
  const Mask mask = mask_of(R"({"type": "oracle_top_k", "heavy_size": 2})", s.inputs, true);
  EXPECT_EQ(row_text(mask, 0), "11..");
  EXPECT_EQ(row_text(mask, 1), ".1.1");
}

TEST(OracleTopP, KeepsTheFewestKeysWhoseMassExceedsTheShare) {
  const float ln2 = std::log(2.0f);
  const Scored s(1, {0, 2 * ln2, ln2, 0});  // masses 1, 4, 2, 1 of 8
  const auto row = [&](const std::string& p) {
    return row_text(mask_of(R"({"type": "oracle_top_p", "top_p": )" + p + "}", s.inputs), 0);
  };
  EXPECT_EQ(row("0"), ".1..");
  EXPECT_EQ(row("0.49"), ".1..");
  EXPECT_EQ(row("0.7"), ".11.");
  EXPECT_EQ(row("0.8"), "111.");
  EXPECT_EQ(row("1"), "1111");
  EXPECT_EQ(row_text(mask_of(R"({"type": "oracle_top_p", "top_p": 0.4})", s.inputs, false,
                             mask_of(R"({"type": "sink", "sink_size": 2})", s.inputs)),
                     0),
            "111.")
      << "the mass is that of the keys not chosen yet";
}

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

TEST(RandomSampling, RecordedDrawsOfAnotherShapeAreRefused) {
  Scored s(1, std::vector<float>(50));
  const Tensor wrong(DType::i64, {1, 1, 2, 3});
  const std::vector<NamedTensor> extras{{"sample_indices", wrong.view()}};
  s.inputs.extras = extras;
  EXPECT_THROW(mask_of(R"({"type": "random_sampling", "replacement": true})", s.inputs), ShapeError);
}

TEST(Maskers, RefuseBadParametersByName) {
  const auto refusal = [](const std::string& masker) {
    try {
      SparseAttention::from_json("{\"maskers\": [" + masker + "]}");
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal(R"({"type": "sink", "sink_size": 0})"), "/maskers/0/sink_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "local", "window_size": 0.0})"), "/maskers/0/window_size: must be > 0, got 0.0");
  EXPECT_EQ(refusal(R"({"type": "oracle_top_k", "heavy_size": 0})"), "/maskers/0/heavy_size: must be > 0, got 0");
  EXPECT_EQ(refusal(R"({"type": "oracle_top_p", "top_p": 1.01})"), "/maskers/0/top_p: must be in [0, 1], got 1.01");
  EXPECT_EQ(refusal(R"({"type": "random_sampling", "sampling_rate": 0})"),
            "/maskers/0/sampling_rate: must be in (0, 1], got 0");
  EXPECT_EQ(refusal(R"({"type": "causal", "window": 1})"), "/maskers/0/window: unknown key; known are none");
}

TEST(Maskers, DecodeRowsEqualPrefillRows) {
  const OwnedInputs owned({1, 4, 2, 20, 60, 16, 16}, 6);
  const std::string maskers = R"({"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 5},
                                 {"type": "oracle_top_k", "heavy_size": 7}, {"type": "oracle_top_p", "top_p": 0.3})";
  const Mask prefill = mask_of(maskers, owned.inputs, true);
  for (Index q = 0; q < 20; ++q) {
    AttentionInputs step = owned.inputs;
    step.queries = step.queries.slice(2, q, q + 1);
    step.keys = step.keys.slice(2, 0, 41 + q);
    step.values = step.values.slice(2, 0, 41 + q);
    const Mask decode = mask_of(maskers, step, true);
    for (Index head = 0; head < 4; ++head) {
      std::vector<reticle::Run> ours, theirs;
      decode.row({0, head, 0}, ours);
      prefill.row({0, head, q}, theirs);
      EXPECT_EQ(ours, theirs) << "query " << q << ", head " << head;
    }
  }
}

}  // namespace
}  // namespace reticle::testing
