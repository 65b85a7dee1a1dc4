// fold_keys is internal: it is tested through attention of at most kRowPathRows rows to a tile, which goes by it.
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/row_kernel.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

TEST(RowKernel, AgreesOnEveryInstructionSet) {
  const OwnedInputs owned({1, 4, 2, 3, 600, 72, 40}, 20, DType::bf16);
  std::mt19937 random(20);
  const Mask mask = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.7, true, random));
  const Reference reference = reference_attention(owned.inputs, mask);
  for_each_target([&] { expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference); });
}

TEST(RowKernel, AgreesAroundTheKeysOfAStepAndTheLanesOfVectors) {
  for_each_target([] {
    std::uint32_t seed = 1;
    for (const Index keys : {Index{1}, Index{3}, kKeysPerStep - 1, kKeysPerStep, kKeysPerStep + 1, 2 * kKeysPerStep}) {
      for (const Index width : {1, 5, 17, 33}) {
        const OwnedInputs owned({1, 1, 1, 1, keys, width, width + 2}, seed++);
        const Mask mask = Mask::full(owned.inputs.shape());
        expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference_attention(owned.inputs, mask));
      }
    }
  });
}

/// The inputs with keys and values quantised, and the same with what these stand for as floats.
struct QuantisedInputs {
  Tensor keys, values, key_floats, value_floats;
  AttentionInputs quantised, floats;

  QuantisedInputs(const OwnedInputs& owned, DType key_dtype, DType value_dtype)
      : keys(Tensor::copy(owned.keys, key_dtype)),
        values(Tensor::copy(owned.values, value_dtype)),
        key_floats(Tensor::copy(keys, DType::f32)),
        value_floats(Tensor::copy(values, DType::f32)),
        quantised(owned.inputs),
        floats(owned.inputs) {
    quantised.keys = keys.view();
    quantised.values = values.view();
    floats.keys = key_floats.view();
    floats.values = value_floats.view();
  }
};

TEST(RowKernel, QuantisedKeysAndValuesGiveWhatTheirChannelsGive) {
  for_each_target([] {
    std::uint32_t seed = 30;
    for (const auto& [key_dtype, value_dtype] : {std::pair{DType::q8, DType::q8}, std::pair{DType::q4, DType::q4},
                                                 std::pair{DType::q8, DType::f32}, std::pair{DType::bf16, DType::q4}}) {
      for (const Index heads : {1, 2, 3, 4, 6}) {
        for (const Index width : {5, 32, 72, 128}) {
          const OwnedInputs owned({1, heads, 1, 1, 333, width, width + 1}, seed++);
          const QuantisedInputs inputs(owned, key_dtype, value_dtype);
          std::mt19937 random(seed);
          const Mask mask = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.7, true, random));
          const AttentionResult result = attention(inputs.quantised, mask, {}, Context(1));
          const Reference reference = reference_attention(inputs.floats, mask);
          for (std::size_t i = 0; i < reference.output.size(); ++i)
            EXPECT_NEAR(result.output.span<float>()[i], reference.output[i], 2e-3);
          for (std::size_t i = 0; i < reference.lse.size(); ++i)
            EXPECT_NEAR(result.lse.span<float>()[i], reference.lse[i], 2e-3);
        }
      }
    }
  });
}

TEST(RowKernel, AValueThatIsNotFiniteReachesOnlyTheRowsThatAttendToIt) {
  OwnedInputs owned({1, 4, 1, 1, 100, 32, 32}, 8);
  owned.values.span<float>()[50 * 32 + 3] = std::numeric_limits<float>::quiet_NaN();
  const Mask mask = Mask::from_runs(owned.inputs.shape(), [](RowId row, FunctionRef<void(reticle::Run)> emit) {
    emit({0, row.head == 3 ? 50 : 49, 1});
    if (row.head < 3) emit({51, 100, 1});
  });
  for (const DType dtype : {DType::q8, DType::q4}) {
    const QuantisedInputs inputs(owned, dtype, dtype);
    for_each_target([&] { EXPECT_NO_THROW(attention(inputs.quantised, mask, {}, Context(1))); });
    EXPECT_THROW(attention(inputs.quantised, Mask::full(owned.inputs.shape())), ValueError);
  }
}

TEST(RowKernel, AMaximumThatGrowsFromStepToStepRescalesWhatWasSummed) {
  // Scores grow by 1 per 64 keys, in F32 values that tell keys apart.
  OwnedInputs owned({1, 1, 1, 1, 1000, 1, 3}, 3);
  owned.inputs.scaling = 1;
  owned.queries.span<float>()[0] = 1;
  for (std::size_t key = 0; key < 1000; ++key) owned.keys.span<float>()[key] = static_cast<float>(key) / 64;
  const Mask mask = Mask::full(owned.inputs.shape());
  for_each_target(
      [&] { expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference_attention(owned.inputs, mask)); });
}

TEST(RowKernel, KeysThatARowDoesNotAttendToAreDropped) {
  // The rows of a group share what most of them attend to; each third key is not for the first row.
  const OwnedInputs owned({1, 4, 1, 1, 500, 24, 24}, 4);
  const Mask mask = Mask::from_runs(owned.inputs.shape(), [](RowId row, FunctionRef<void(reticle::Run)> emit) {
    for (std::int32_t key = 0; key < 500; ++key) {
      if (row.head > 0 || key % 3 != 0) emit({key, key + 1, 1});
    }
  });
  for_each_target(
      [&] { expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference_attention(owned.inputs, mask)); });
}

TEST(RowKernel, ANotANumberMakesItsRowOne) {
  OwnedInputs owned({1, 2, 1, 1, 300, 16, 16}, 5);
  owned.queries.span<float>()[3] = std::nanf("");  // of head 0
  AttentionOptions lenient;
  lenient.allow_non_finite = true;
  for_each_target([&] {
    const AttentionResult result = attention(owned.inputs, Mask::full(owned.inputs.shape()), lenient, Context(1));
    EXPECT_TRUE(std::isnan(result.lse.span<float>()[0]));
    EXPECT_TRUE(std::isnan(result.output.span<float>()[0]));
    EXPECT_TRUE(std::isfinite(result.lse.span<float>()[1]));
    EXPECT_TRUE(std::isfinite(result.output.span<float>()[16]));
  });
}

TEST(RowKernel, ScoresFarBelowTheMaximumOfUnattendedKeysDoNotUnderflow) {
  OwnedInputs owned({1, 1, 1, 1, 20, 16, 16}, 60);
  owned.inputs.scaling = 60;  // sparse-attention-hub divides 0 by 0 here
  const Mask mask = Mask::intervals(owned.inputs.shape(), [](RowId) { return Interval{3, 5}; });
  expect_agrees(attention(owned.inputs, mask), reference_attention(owned.inputs, mask), 1e-4);
}

TEST(RowKernel, SmallProbabilitiesAreDividedByExactly) {
  const OwnedInputs owned({1, 1, 1, 1, 30, 16, 16}, 65);
  std::vector<float> p(30, 1e-4f);
  p[3] = 1;
  const Mask mask = Mask::dense(owned.inputs.shape(), p);
  expect_agrees(attention(owned.inputs, mask), reference_attention(owned.inputs, mask));
}

}  // namespace
}  // namespace reticle::testing
