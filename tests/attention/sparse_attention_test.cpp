#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

AttentionInputs bundled(const SafeTensors& file, int layer) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  AttentionInputs inputs;
  inputs.queries = file.at(prefix + "queries");
  inputs.keys = file.at(prefix + "keys");
  inputs.values = file.at(prefix + "values");
  inputs.scaling = 0.125f;
  inputs.layer = layer;
  return inputs;
}

const SafeTensors& bundled_file() {
  static const SafeTensors file(RETICLE_SOURCE_DIR "/examples/data/attention_4096.safetensors");
  return file;
}

TEST(SparseAttention, NoMaskersMeanDenseAttention) {
  const OwnedInputs owned({}, 1);
  SequenceState state;
  const auto result = SparseAttention::from_json(R"({"maskers": []})").run(owned.inputs, state, true);
  EXPECT_EQ(result.mask.kind(), MaskKind::full);
  EXPECT_EQ(result.metrics.comparison->relative_error, 0.0);
  EXPECT_EQ(result.metrics.comparison->least_mass, 1.0);
}

TEST(SparseAttention, ContributionsAddUpToTheMask) {
  SequenceState state;
  for (const char* causal : {"true", "false"}) {
    const SparseAttention sparse = SparseAttention::from_json(
        std::string(R"({"maskers": [{"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 4},
        {"type": "oracle_top_k", "heavy_size": 5}, {"type": "random_sampling", "sampling_rate": 0.3}], "causal": )") +
        causal + "}");
    const OwnedInputs owned({2, 4, 2, 9, 50, 16, 16}, 2);
    const auto result = sparse.run(owned.inputs, state);
    Index sum = 0;
    for (const MaskerMetrics& masker : result.metrics.maskers) {
      EXPECT_GT(masker.added, 0) << masker.type;
      sum += masker.added;
    }
    EXPECT_EQ(sum, result.mask.nnz());
    EXPECT_EQ(result.metrics.entries, result.mask.nnz());
    EXPECT_DOUBLE_EQ(result.metrics.density, result.mask.density());
    double heads = 0;
    for (const double density : result.metrics.head_density) heads += density / 8;
    EXPECT_NEAR(heads, result.metrics.density, 1e-12);
  }
}

TEST(SparseAttention, ContributionsSayWhichMaskerWasTheFirstToChooseAnEntry) {
  const OwnedInputs owned({2, 4, 2, 9, 50, 16, 16}, 2);
  for (const char* heads : {"[0, 1, 2, 3]", "[0, 2]"}) {
    const SparseAttention sparse = SparseAttention::from_json(
        std::string(R"({"maskers": [{"type": "sink", "sink_size": 3, "heads": )") + heads +
        R"(}, {"type": "local", "window_size": 4, "heads": )" + heads +
        R"(}, {"type": "oracle_top_k", "heavy_size": 5, "heads": )" + heads +
        R"(}, {"type": "random_sampling", "sampling_rate": 0.3, "heads": )" + heads + R"(}], "causal": true})");
    SequenceState state, again;
    const auto result = sparse.run(owned.inputs, state);
    std::vector<Contribution> contributions = sparse.contributions(owned.inputs, again);
    Mask all = Mask::empty(owned.inputs.shape());
    for (const Contribution& each : contributions) {
      EXPECT_EQ(intersect(all, each.mask).nnz(), 0) << each.type;
      all = merge(all, each.mask);
    }
    EXPECT_EQ(all, result.mask);
    if (contributions.size() == 5) {
      EXPECT_EQ(contributions.front().type, "dense");
      contributions.erase(contributions.begin());
    }
    ASSERT_EQ(contributions.size(), result.metrics.maskers.size());
    for (std::size_t i = 0; i < contributions.size(); ++i) {
      EXPECT_EQ(contributions[i].type, result.metrics.maskers[i].type);
      EXPECT_EQ(contributions[i].mask.nnz(), result.metrics.maskers[i].added);
    }
  }
  SequenceState state;
  const auto dense = SparseAttention::from_json(R"({"maskers": []})").contributions(owned.inputs, state);
  ASSERT_EQ(dense.size(), 1u);
  EXPECT_EQ(dense[0].type, "dense");
}

TEST(SparseAttention, StagesChooseTheirMaskers) {
  const SparseAttention sparse = SparseAttention::from_json(
      R"({"prefill": {"maskers": []}, "generation": {"maskers": [{"type": "sink", "sink_size": 1}]}})");
  OwnedInputs owned({1, 2, 1, 1, 10, 16, 16}, 3);
  SequenceState state;
  EXPECT_EQ(sparse.mask(owned.inputs, state).nnz(), 20);
  owned.inputs.stage = Stage::generation;
  EXPECT_EQ(sparse.mask(owned.inputs, state).nnz(), 2);
  EXPECT_EQ(sparse.maskers(Stage::generation), std::vector<std::string>{"sink"});
}

TEST(SparseAttention, SeedsOfConfigAndContextVaryTheSample) {
  const OwnedInputs owned({1, 2, 1, 4, 60, 16, 16}, 4);
  const auto mask = [&](int config_seed, std::uint64_t context_seed) {
    SequenceState state;
    Context context;
    context.seed = context_seed;
    return SparseAttention::from_json(R"({"maskers": [{"type": "random_sampling", "sampling_rate": 0.3}], "seed": )" +
                                      std::to_string(config_seed) + "}")
        .mask(owned.inputs, state, context);
  };
  EXPECT_EQ(mask(0, 0), mask(0, 0));
  EXPECT_FALSE(mask(0, 0) == mask(1, 0));
  EXPECT_FALSE(mask(0, 0) == mask(0, 1));
}

TEST(SparseAttention, MaskersAtOtherPlacesOfAPipelineDrawIndependently) {
  const OwnedInputs owned({1, 1, 1, 1, 1000, 16, 16}, 5);
  const std::string sampler = R"({"type": "random_sampling", "sampling_rate": 0.2, "replacement": true})";
  const auto mask = [&](const std::string& before) {
    SequenceState state;
    return SparseAttention::from_json("{\"maskers\": [" + before + sampler + "]}").mask(owned.inputs, state);
  };
  // Equal draws would differ in the sink alone; independent ones overlap in about a fifth.
  EXPECT_GT((mask(R"({"type": "sink", "sink_size": 1}, )") - mask("")).nnz(), 100);
}

TEST(SparseAttention, TwoSamplersForOneHeadAreRefused) {
  const std::string sampler = R"({"type": "random_sampling"})";
  EXPECT_THROW(SparseAttention::from_json("{\"maskers\": [" + sampler + ", " + sampler + "]}"), ConfigError);
}

TEST(SparseAttention, ErrorFallsAndMassGrowsWithHeavySizeOnRealTensors) {
  for (int layer = 0; layer < 4; ++layer) {
    double last_error = 10, last_mass = 0;
    for (const char* heavy : {"0.01", "0.02", "0.05", "0.1", "0.2", "0.4", "1.0"}) {
      SequenceState state;
      const auto sparse = SparseAttention::from_json(
          std::string(
              R"({"causal": true, "maskers": [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 32},
          {"type": "oracle_top_k", "heavy_size": )") +
          heavy + "}]}");
      const auto comparison = *sparse.run(bundled(bundled_file(), layer), state, true).metrics.comparison;
      EXPECT_LT(comparison.relative_error, last_error) << "layer " << layer << ", heavy_size " << heavy;
      EXPECT_GT(comparison.mean_mass, last_mass) << "layer " << layer << ", heavy_size " << heavy;
      last_error = comparison.relative_error;
      last_mass = comparison.mean_mass;
    }
    EXPECT_LT(last_error, 5e-4) << "everything is kept; weights and outputs are rounded to half precision";
  }
}

TEST(SparseAttention, OracleTopPRecoversItsShareOnEveryRowOfRealTensors) {
  for (const double top_p : {0.5, 0.9, 0.99}) {
    const auto sparse = SparseAttention::from_json(
        R"({"causal": true, "maskers": [{"type": "oracle_top_p", "top_p": )" + std::to_string(top_p) + "}]}");
    for (int layer = 0; layer < 4; ++layer) {
      SequenceState state;
      EXPECT_GE(sparse.run(bundled(bundled_file(), layer), state, true).metrics.comparison->least_mass, top_p - 1e-5);
    }
  }
}

/// The worst deviation, in standard errors, of mean sampled numerators and denominators from the dense sums, over
/// seeds; p_scale tampers with the inclusion probabilities.
double worst_deviation(const std::string& sampler, float p_scale) {
  constexpr int kSeeds = 2000;
  const OwnedInputs owned({1, 2, 1, 3, 48, 8, 8}, 6);
  const AttentionInputs& inputs = owned.inputs;
  const SparseAttention sparse = SparseAttention::from_json(
      R"({"causal": true, "maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 3}, )" +
      sampler + "]}");
  AttentionInputs causal = inputs;
  causal.causal = true;
  const auto sums = [](const AttentionResult& result) {  // numerators, then denominators
    std::vector<double> values;
    const auto lse = result.lse.span<float>();
    const auto output = result.output.span<float>();
    for (std::size_t i = 0; i < output.size(); ++i)
      values.push_back(output[i] * std::exp(static_cast<double>(lse[i / 8])));
    for (const float l : lse) values.push_back(std::exp(static_cast<double>(l)));
    return values;
  };
  const std::vector<double> truth = sums(attention(causal, Mask::full(inputs.shape())));
  std::vector<double> mean(truth.size(), 0), square(truth.size(), 0);
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Context context;
    context.seed = seed;
    SequenceState state;
    Mask mask = sparse.mask(inputs, state, context);
    if (p_scale != 1) {
      const Mask original = mask;
      mask = Mask::from_runs(original.shape(), [&](RowId row, FunctionRef<void(reticle::Run)> emit) {
        std::vector<reticle::Run> runs;
        original.row(row, runs);
        for (const reticle::Run& run : runs) emit({run.begin, run.end, run.p < 1 ? run.p * p_scale : run.p});
      });
    }
    const std::vector<double> sampled = sums(attention(causal, mask));
    for (std::size_t i = 0; i < sampled.size(); ++i) {
      mean[i] += sampled[i] / kSeeds;
      square[i] += sampled[i] * sampled[i] / kSeeds;
    }
  }
  double worst = 0;
  for (std::size_t i = 0; i < mean.size(); ++i) {
    const double standard_error = std::sqrt((square[i] - mean[i] * mean[i]) / (kSeeds - 1));
    worst = std::max(worst, std::abs(mean[i] - truth[i]) / standard_error);
  }
  return worst;
}

TEST(Unbiasedness, SampledSumsMeanTheDenseSumsOver2000Seeds) {
  EXPECT_LT(worst_deviation(R"({"type": "random_sampling", "sampling_rate": 0.2})", 1), 4);
  EXPECT_LT(worst_deviation(R"({"type": "random_sampling", "sampling_rate": 0.01})", 1), 4) << "at least one is drawn";
}

TEST(Unbiasedness, AWrongProbabilityIsNoticed) {
  EXPECT_GT(worst_deviation(R"({"type": "random_sampling", "sampling_rate": 0.2})", 0.95f), 4);
  EXPECT_GT(worst_deviation(R"({"type": "random_sampling", "sampling_rate": 0.2, "replacement": true})", 1), 4)
      << "the reference's way is biased";
}

TEST(SparseAttention, OneMillionQueriesAndKeysNeedMegabytes) {
  constexpr Index kLength = 1 << 20;
  const float one = 1;
  AttentionInputs inputs;
  inputs.queries = TensorView(&one, DType::f32, {1, 1, 1, 1});
  inputs.queries.shape = {1, 1, kLength, 1};
  inputs.queries.strides = {0, 0, 0, 0};
  inputs.keys = inputs.values = inputs.queries;
  SequenceState state;
  const Mask mask = SparseAttention::from_json(R"({"causal": true, "maskers": [{"type": "sink", "sink_size": 128},
                                                  {"type": "local", "window_size": 1024}]})")
                        .mask(inputs, state);
  constexpr Index kJoined = 128 + 1024;
  EXPECT_EQ(mask.nnz(), kJoined * (kJoined + 1) / 2 + (kLength - kJoined) * kJoined);
  EXPECT_LT(mask.bytes(), Index{26} << 20);
}

TEST(SparseAttention, MemoryOfTheCallersIsNotPassedOverOnTheCpu) {
  const OwnedInputs owned({1, 2, 1, 3, 9, 8, 8}, 1);
  const auto sparse = SparseAttention::from_json(R"({"maskers": [{"type": "sink"}]})");
  SequenceState state;
  float lse[6];
  EXPECT_THROW(sparse.attend(owned.inputs, state, {}, {.lse = lse}), DeviceError);
  EXPECT_NO_THROW(sparse.attend(owned.inputs, state));
}

/// A whole sequence of one layer, as many queries as keys.
OwnedInputs sequence(Index length, std::uint32_t seed, Index batch = 1) {
  return {{.batch = batch, .heads = 4, .kv_heads = 2, .queries = length, .keys = length}, seed};
}

std::span<const float> row_of(const AttentionResult& result, Index batch, Index head, Index query) {
  const TensorView& view = result.output.view();
  return {view.at<float>(batch, head, query, 0), static_cast<std::size_t>(view.size(3))};
}

const std::string kGenerations[] = {
    R"({"type": "local", "window_size": 9})",
    R"({"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 4}, {"type": "oracle_top_k", "heavy_size": 8})",
    R"({"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "kernel_size": 3})",
    R"({"type": "tova", "token_capacity": 10})",
    R"({"type": "h2o", "heavy_size": 6, "recent_size": 6})",
};

TEST(Forward, TeacherForcingEqualsDecodingStepByStep) {
  const OwnedInputs owned = sequence(40, 1);
  for (const std::string& generation : kGenerations) {
    SCOPED_TRACE(generation);
    const SparseAttention sparse =
        SparseAttention::by_stage(pipeline_of(R"({"type": "local", "window_size": 16})"), pipeline_of(generation));
    SequenceState at_once(Recording::figures), stepwise(Recording::figures);
    const AttentionResult forced = sparse.forward(owned.inputs, 12, at_once);
    AttentionInputs part = owned.inputs.rows(0, 28);
    part.causal = true;
    part.stage = Stage::prefill;
    sparse.attend(part, stepwise);
    for (Index query = 28; query < 40; ++query) {
      part = owned.inputs.rows(query, query + 1);
      part.causal = true;
      part.stage = Stage::generation;
      const AttentionResult step = sparse.attend(part, stepwise).attention;
      for (Index head = 0; head < 4; ++head) {
        const auto ours = row_of(step, 0, head, 0), theirs = row_of(forced, 0, head, query);
        for (std::size_t i = 0; i < ours.size(); ++i) ASSERT_NEAR(ours[i], theirs[i], 1e-5) << query;
      }
    }
    EXPECT_NEAR(at_once.recorded(Stage::generation).density(), stepwise.recorded(Stage::generation).density(), 1e-12);
    EXPECT_EQ(stepwise.recorded(Stage::generation).sparsity.size(), 12);
    EXPECT_EQ(at_once.recorded(Stage::generation).sparsity.size(), 1);
  }
}

TEST(Forward, SequencesDoNotShareState) {
  const OwnedInputs first = sequence(30, 2), second = sequence(24, 3);
  const SparseAttention sparse =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "tova", "token_capacity": 8})"));
  SequenceState one(Recording::figures), other(Recording::figures), alone(Recording::figures);
  const AttentionResult expected = sparse.forward(second.inputs, 6, alone);
  sparse.forward(first.inputs, 6, one);
  const AttentionResult beside = sparse.forward(second.inputs, 6, other);
  EXPECT_TRUE(std::equal(expected.output.span<float>().begin(), expected.output.span<float>().end(),
                         beside.output.span<float>().begin()));
  one.reset();
  EXPECT_TRUE(one.recorded(Stage::generation).sparsity.empty());
  const AttentionResult again = sparse.forward(second.inputs, 6, one);
  EXPECT_TRUE(std::equal(expected.output.span<float>().begin(), expected.output.span<float>().end(),
                         again.output.span<float>().begin()));
}

TEST(Forward, IsCausalWhateverTheConfigSays) {
  const OwnedInputs owned = sequence(10, 5);
  const SparseAttention sparse = SparseAttention::by_stage(pipeline_of(""), pipeline_of(""));
  SequenceState state(Recording::figures);
  const AttentionResult result = sparse.forward(owned.inputs, 3, state);
  AttentionInputs causal = owned.inputs;
  causal.causal = true;
  const AttentionResult dense = attention(causal, Mask::full(causal.shape()));
  for (std::size_t i = 0; i < dense.output.span<float>().size(); ++i)
    EXPECT_NEAR(result.output.span<float>()[i], dense.output.span<float>()[i], 1e-6);
}

TEST(Forward, AnOutputLeavesSomethingToPrefill) {
  const OwnedInputs owned = sequence(10, 6);
  const SparseAttention sparse = SparseAttention::by_stage(pipeline_of(""), pipeline_of(""));
  SequenceState state(Recording::figures);
  EXPECT_THROW(sparse.forward(owned.inputs, 10, state), ShapeError);
  EXPECT_THROW(sparse.forward(owned.inputs, -1, state), ShapeError);
  EXPECT_NO_THROW(sparse.forward(owned.inputs, 0, state));
  EXPECT_THROW(sparse.forward(owned.inputs.rows(5, 10), 2, state), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
