#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

TEST_F(CudaDevice, HeadsThatAttendAlikeShareListsHoweverTheMaskComes) {
  for (const Index heads : {2, 4, 8, 16}) {
    Case c;
    c.heads = heads;
    c.rows = 1;
    c.keys = 5000;
    Case one_head = c;
    one_head.batch = one_head.heads = 1;
    const Mask pattern = random_mask(one_head, 0.2, 4);
    const Mask mask = broadcast_to(pattern, {c.batch, c.heads, c.rows, c.keys});
    const Array<float> dense = to_dense(pattern);
    const std::vector<std::uint8_t> bytes(dense.begin(), dense.end());
    const Buffer copy = Buffer::copy_of(std::span<const std::uint8_t>(bytes), nullptr);
    const TensorView attended = on_gpu(TensorView(nullptr, DType::u8, {1, 1, 1, c.keys}), copy.as<std::uint8_t>());

    const Problem<float> drawn(c, 64);
    const AttentionResult expected = attention(drawn.inputs, mask, drawn.options());
    const OnDevice<float> on_device(drawn);
    for (const DevicePlan& plan :
         {DevicePlan(on_device.inputs, mask, nullptr), DevicePlan(on_device.inputs, mask.to(kGpu), nullptr),
          DevicePlan(on_device.inputs, AttendedBytes{attended}, nullptr)}) {
      const Buffer out(drawn.output_size() * sizeof(float), nullptr), logs(drawn.lse_size() * sizeof(float), nullptr);
      plan.run(on_device.inputs, out.as<float>(), logs.as<float>(), nullptr);
      std::vector<float> found(drawn.output_size()), found_lse(drawn.lse_size());
      out.copy_to(found.data(), nullptr);
      logs.copy_to(found_lse.data(), nullptr);
      expect_equal(expected, found, found_lse, 1e-4, 1e-3);
    }
  }
}

TEST_F(CudaDevice, MasksThatWereCombinedThereArePlanned) {
  for (const bool weighted : {false, true}) {
    for (const double density : {0.01, 0.3}) {
      Case c;
      c.rows = 40;
      c.keys = 3000;
      c.causal = true;
      c.weighted = weighted;
      const Mask a = random_mask(c, density, 1);
      c.weighted = false;
      const Mask window = Mask::intervals(a.shape().one_head(), [](RowId row) {
        const auto end = static_cast<std::int32_t>(2961 + row.query);
        return Interval{end - 100, end};
      });
      const Problem<BFloat16> drawn(c, 128);
      const AttentionResult expected = attention(drawn.inputs, merge(a, window, MergeRule::max), drawn.options());
      const OnDevice<BFloat16> on_device(drawn);
      const DevicePlan plan(on_device.inputs, merge(a.to(kGpu), window.to(kGpu), MergeRule::max), nullptr);
      EXPECT_EQ(plan.uses_tiles(), !weighted);
      expect_plan_computes(expected, plan, drawn, on_device, 0.03, 1e-3);
    }
  }
}

TEST_F(CudaDevice, BlocksOfBytesAndBandsArePlannedAsTheirMasksAre) {
  // 40 queries in 5 blocks of 8, 300 keys in 3 blocks of 100: a checkerboard. And the last 50 keys of each query.
  Case c;
  c.rows = 40;
  c.keys = 300;
  std::vector<std::uint8_t> blocks;
  for (int i = 0; i < 15; ++i) blocks.push_back(i % 2 == 0);
  std::vector<float> board, band;
  for (Index query = 0; query < c.rows; ++query) {
    for (Index key = 0; key < c.keys; ++key) {
      board.push_back(blocks[static_cast<std::size_t>(query / 8 * 3 + key / 100)]);
      band.push_back(key <= 260 + query && key > 210 + query ? 1.0f : 0.0f);
    }
  }
  const Buffer bytes = Buffer::copy_of(std::span<const std::uint8_t>(blocks), nullptr);
  const AttendedBytes attended{on_gpu(TensorView(nullptr, DType::u8, {1, 1, 5, 3}), bytes.as<std::uint8_t>()), 8, 100};
  const MaskShape shape{c.batch, c.heads, c.rows, c.keys};
  const auto mask_of_all = [&](const std::vector<float>& p) {
    return broadcast_to(Mask::dense({1, 1, c.rows, c.keys}, p), shape);
  };
  const Problem<Half> tiled(c, 64);
  const OnDevice<Half> on_tiles(tiled);
  const Problem<float> listed(c, 64);
  const OnDevice<float> on_lists(listed);
  for (const auto& [pattern, p] : {std::pair<Pattern, const std::vector<float>*>{attended, &board},
                                   {Band{.first_query = 260, .width = 50}, &band}}) {
    const Mask mask = mask_of_all(*p);
    const DevicePlan tiles(on_tiles.inputs, pattern, nullptr), lists(on_lists.inputs, pattern, nullptr);
    EXPECT_TRUE(tiles.uses_tiles());
    EXPECT_FALSE(lists.uses_tiles());
    expect_plan_computes(attention(tiled.inputs, mask), tiles, tiled, on_tiles, 0.004, 3e-3);
    expect_plan_computes(attention(listed.inputs, mask), lists, listed, on_lists, 1e-4, 1e-3);
  }
}

TEST_F(CudaDevice, PatternsThatDoNotFitAreRefusedByName) {
  Case c;
  c.rows = 20;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const auto plan = [&](const Pattern& pattern) { DevicePlan(on_device.inputs, pattern, nullptr); };
  const auto bytes = [](std::initializer_list<Index> shape) {
    return on_gpu(TensorView(nullptr, DType::u8, shape), nullptr);
  };
  using reticle::testing::message_of;
  EXPECT_EQ(message_of<ShapeError>([&] {
              plan(AttendedBytes{bytes({2, 3, 20, 200})});
            }),
            "attention: mask U8 (2, 3, 20, 200); expected BOOL (2, 4, 20, 200) with neighbours along the last "
            "dimension, and a dimension of 1 where a pattern is shared");
  EXPECT_EQ(message_of<ValueError>([&] {
              plan(AttendedBytes{bytes({1, 1, 1, 1}), 0, 200});
            }),
            "attention: block_queries is 0; expected 1 to 1073741823");
  EXPECT_EQ(message_of<ValueError>([&] { plan(Band{.first_query = -1}); }),
            "attention: first_query is -1; expected 0 to 1073741823");
  const Mask shorter = Mask::intervals({2, 4, 20, 199}, [](RowId) { return Interval{0, 2}; });
  EXPECT_THROW(plan(shorter.to(kGpu)), ShapeError);
}

TEST_F(CudaSmall, Plans) {
  const Case c = small(40);
  const Mask mask = random_mask(c, 0.3, 1);
  const Problem<BFloat16> drawn(c, 64);
  const OnDevice<BFloat16> on_device(drawn);
  expect_plan_computes(attention(drawn.inputs, mask, drawn.options()),
                       DevicePlan(on_device.inputs, mask.to(kGpu), nullptr), drawn, on_device, 0.03, 3e-3);
}

}  // namespace
}  // namespace reticle::cuda
