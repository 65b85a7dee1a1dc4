// TileState is internal: it is tested through attention of more than kRowPathRows rows to a tile, which goes by it.
#include <algorithm>
#include <limits>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include <reticle/attention/executor.hpp>
#include <reticle/core/mask/combine.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"
#include "support/targets.hpp"

namespace reticle::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(TileKernel, AgreeForEveryDtypeRepresentationAndCausality) {
  std::uint32_t seed = 100;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Shapes& s :
         {Shapes{1, 4, 2, 70, 300, 24, 40}, Shapes{1, 4, 1, 9, 270, 64, 64}, Shapes{1, 2, 2, 65, 65, 7, 130}}) {
      OwnedInputs owned(s, ++seed, dtype);
      std::mt19937 random(seed);
      for (const bool causal : {false, true}) {
        owned.inputs.causal = causal;
        for (const NamedMask& m : random_masks(owned.inputs.shape(), random)) {
          SCOPED_TRACE(m.name + ", " + std::string(name_of(dtype)) + (causal ? ", causal" : ""));
          const AttentionResult result = attention(owned.inputs, m.mask);
          expect_agrees(result, reference_attention(owned.inputs, m.mask));
          const AttentionResult planned = attention(owned.inputs, AttentionPlan(owned.inputs, m.mask));
          EXPECT_TRUE(std::ranges::equal(result.lse.span<float>(), planned.lse.span<float>()));
        }
      }
    }
  }
}

TEST(TileKernel, AgreeOnEveryInstructionSet) {
  OwnedInputs owned({1, 4, 2, 50, 400, 72, 40}, 120, DType::bf16);
  owned.inputs.causal = true;
  std::mt19937 random(120);
  const Tensor bias = random_tensor(DType::f32, {1, 1, 50, 400}, random);
  owned.inputs.attention_mask = bias.view();
  AttentionOptions options;
  options.soft_cap = 2.0f;
  const Mask mask = Mask::dense(owned.inputs.shape(), random_p(owned.inputs.shape(), 0.7, true, random));
  const Reference reference = reference_attention(owned.inputs, mask, options);
  for_each_target([&] { expect_agrees(attention(owned.inputs, mask, options, Context(1)), reference); });
}

TEST(TileKernel, ValuesThatOnlySomeRowsAttendToDoNotReachOthers) {
  OwnedInputs owned({1, 1, 1, 64, 256, 16, 16}, 130);
  const Mask mask = Mask::intervals(owned.inputs.shape(), [](RowId row) {
    return Interval{0, static_cast<std::int32_t>(row.query < 32 ? 256 : 200)};
  });
  const AttentionResult clean = attention(owned.inputs, mask);
  owned.values.span<float>()[220 * 16 + 3] = kInfinity;
  AttentionOptions lenient;
  lenient.allow_non_finite = true;
  const AttentionResult result = attention(owned.inputs, mask, lenient);
  for (std::size_t i = 0; i < 64 * 16; ++i) {
    const float value = result.output.span<float>()[i];
    if (i < 32 * 16 && i % 16 == 3) {
      EXPECT_EQ(value, kInfinity);
    } else {
      EXPECT_NEAR(value, clean.output.span<float>()[i], 1e-6);
    }
  }
  const Mask last_only = mask - Mask::intervals(owned.inputs.shape(), [](RowId row) {
                           return Interval{0, static_cast<std::int32_t>(row.query < 31 ? 256 : 0)};
                         });
  try {
    attention(owned.inputs, last_only);
    ADD_FAILURE() << "accepted infinity";
  } catch (const ValueError& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, 44), "attention: the result of row (0, 0, 31) is n");
  }
}

TEST(TileKernel, AgreesForEveryNumberOfRowsThatATileMayHave) {
  for_each_target([] {
    for (const Index rows : {kRowPathRows + 1, Index{15}, Index{16}, Index{17}, Index{33}, kTileRows, kTileRows + 1}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const OwnedInputs owned({1, 1, 1, rows, 131, 18, 10}, static_cast<std::uint32_t>(rows), dtype);
        const Mask mask = Mask::full(owned.inputs.shape());
        SCOPED_TRACE(std::to_string(rows) + " rows");
        expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference_attention(owned.inputs, mask));
      }
    }
  });
}

TEST(TileKernel, AMaximumThatGrowsFromBlockToBlockRescalesWhatWasSummed) {
  OwnedInputs owned({1, 1, 1, 20, 500, 1, 3}, 6);
  owned.inputs.scaling = 1;
  std::fill(owned.queries.span<float>().begin(), owned.queries.span<float>().end(), 1.0f);
  for (std::size_t key = 0; key < 500; ++key) owned.keys.span<float>()[key] = static_cast<float>(key) / 32;
  const Mask mask = Mask::full(owned.inputs.shape());
  for_each_target(
      [&] { expect_agrees(attention(owned.inputs, mask, {}, Context(1)), reference_attention(owned.inputs, mask)); });
}

}  // namespace
}  // namespace reticle::testing
