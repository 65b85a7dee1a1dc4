#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>

#include "support/maskers.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

/// Two keys of equal score whose values are 1 and 3, so that dense attention gives 2.
struct TwoKeys : WrittenInputs {
  Tensor values = tensor_of({1, 1, 2, 1}, {1, 3});
  TwoKeys() : WrittenInputs({1, 1, 1, 1}, {0}, {1, 1, 2, 1}, {5, 5}) { inputs.values = values.view(); }
};

Comparison compared(const std::string& maskers, const AttentionInputs& inputs, const AttentionOptions& options = {}) {
  SequenceState state;
  return pipeline_of(maskers).run(inputs, state, /*compare=*/true, options).metrics.comparison.value();
}

TEST(Comparison, OfHalfTheMassAndHalfTheValue) {
  const TwoKeys written;
  const Comparison found = compared(R"({"type": "sink", "sink_size": 1})", written.inputs);
  EXPECT_NEAR(found.mean_mass, 0.5, 1e-6);
  EXPECT_NEAR(found.least_mass, 0.5, 1e-6);
  EXPECT_NEAR(found.relative_error, 0.5, 1e-6) << "|2 - 1| / |2|";
  ASSERT_EQ(found.head_mean_mass.size(), 1);
  EXPECT_NEAR(found.head_mean_mass[0], 0.5, 1e-6);
  EXPECT_NEAR(found.head_relative_error[0], 0.5, 1e-6);
  EXPECT_GE(found.dense_seconds, 0);
}

TEST(Comparison, OfEverythingHasNoErrorAndAllTheMass) {
  const TwoKeys written;
  const Comparison found = compared("", written.inputs);
  EXPECT_EQ(found.relative_error, 0);
  EXPECT_NEAR(found.least_mass, 1, 1e-6);
}

TEST(Comparison, MassCountsKeysAndNeitherTheirWeightsNorSinkLogits) {
  const TwoKeys written;
  const Comparison sampled = compared(R"({"type": "random_sampling", "sampling_rate": 0.5})", written.inputs);
  EXPECT_NEAR(sampled.mean_mass, 0.5, 1e-6) << "one key of two was drawn, with p = 1/2";
  const std::vector<float> sinks{5};
  AttentionOptions options;
  options.sink_logits = sinks;
  const Comparison with_sinks = compared(R"({"type": "sink", "sink_size": 1})", written.inputs, options);
  EXPECT_NEAR(with_sinks.mean_mass, 0.5, 1e-6);
}

TEST(Comparison, ARowThatSeesNothingIsCoveredWhole) {
  WrittenInputs written({1, 1, 2, 1}, {0, 0}, {1, 1, 1, 1}, {5});  // the first of two queries stands before the key
  written.inputs.causal = true;
  const Comparison found = compared(R"({"type": "sink", "sink_size": 1})", written.inputs);
  EXPECT_NEAR(found.least_mass, 1, 1e-6);
  EXPECT_NEAR(found.relative_error, 0, 1e-6);
}

}  // namespace
}  // namespace reticle::testing
