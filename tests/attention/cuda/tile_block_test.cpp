// The GPU's prefill kernel, run on the CPU: the same source, with the tensor cores' products taken by their layout.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/wide_tile_block.hpp>
#include <reticle/attention/executor.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
void compare_with_cpu(const Case& c, const Mask& mask, double tolerance) {
  const Problem<T> drawn(c, head_dim);
  const AttentionInputs& inputs = drawn.inputs;
  const AttentionResult expected = attention(inputs, mask, drawn.options());
  std::vector<T> output(drawn.output_size());
  std::vector<float> lse(drawn.lse_size());
  auto problem = problem_of<TileProblem>(inputs, output.data(), lse.data(), c.soft_cap,
                                         drawn.sinks.empty() ? nullptr : drawn.sinks.data());
  problem.key_count = static_cast<int>(c.keys);
  const auto expect_of_tiles = [&](int tile_rows, auto&& attend) {
    SCOPED_TRACE("tiles of " + std::to_string(tile_rows) + " rows");
    std::fill(output.begin(), output.end(), from_float<T>(std::nanf("")));
    std::fill(lse.begin(), lse.end(), std::nanf(""));
    const BlockPlan plan = plan_blocks(mask, c.kv_heads, inputs.causal, tile_rows).value();
    problem.plan = plan.lists();
    for (const Tile& tile : plan.tiles) attend(tile);
    expect_equal(expected, output, lse, tolerance, 2e-3);
  };
  problem.bias = BiasView::of(inputs.attention_mask);
  const auto shared = std::make_unique<TileShared<T, head_dim>>();
  expect_of_tiles(kTileRowCount, [&](const Tile& tile) {
    run_block(kTileThreads, *shared, [&](const auto& block) {
      c.biased ? attend_tile<T, head_dim, true>(block, *shared, problem, tile)
               : attend_tile<T, head_dim, false>(block, *shared, problem, tile);
    });
  });
  const auto wide = std::make_unique<WideTileShared<T, head_dim>>();
  expect_of_tiles(kWideTileRows, [&](const Tile& tile) {
    run_block(kWideTileThreads, *wide, [&](const auto& block) {
      c.biased ? attend_wide_tile<T, head_dim, true>(block, *wide, problem, tile)
               : attend_wide_tile<T, head_dim, false>(block, *wide, problem, tile);
    });
  });
}

TEST(CudaTile, ComputesWhatTheCpuComputes) {
  for (const double density : {0.02, 0.5, 1.0}) {
    Case c;
    c.rows = 70;
    compare_with_cpu<BFloat16, 64>(c, random_mask(c, density, 3), 0.03);
    compare_with_cpu<Half, 64>(c, random_mask(c, density, 3), 0.004);
  }
}

TEST(CudaTile, EveryHeadSizeAndGroup) {
  for (const Index group : {1, 2, 3, 8}) {
    Case c;
    c.batch = 1;
    c.heads = 2 * group;
    c.rows = 40;
    compare_with_cpu<BFloat16, 128>(c, random_mask(c, 0.3, 5), 0.03);
  }
  Case c;
  c.batch = 1;
  c.rows = 3;
  compare_with_cpu<Half, 128>(c, random_mask(c, 0.3, 5), 0.004);
}

TEST(CudaTile, MoreBlocksOfKeysThanAreKeptAtOnce) {
  Case c;
  c.batch = 1;
  c.rows = 150;
  c.keys = 1000;
  compare_with_cpu<BFloat16, 64>(c, Mask::full({c.batch, c.heads, c.rows, c.keys}), 0.03);
  compare_with_cpu<Half, 128>(c, random_mask(c, 0.2, 12), 0.004);
}

TEST(CudaTile, CausalityOfDenseAndBlockMasks) {
  Case c;
  c.causal = true;
  c.rows = c.keys = 190;
  compare_with_cpu<Half, 64>(c, Mask::full({c.batch, c.heads, c.rows, c.keys}), 0.004);
  c.rows = 20;
  compare_with_cpu<Half, 64>(c, random_mask(c, 0.7, 6), 0.004);
}

TEST(CudaTile, SinksAndSoftCap) {
  Case c;
  c.rows = 33;
  c.sinks = true;
  c.soft_cap = 2;
  compare_with_cpu<Half, 64>(c, random_mask(c, 0.2, 8), 0.004);
}

TEST(CudaTile, SampledKeysWeighMore) {
  for (const int samples : {1, 2, 4}) {
    Case c;
    c.rows = 70;
    compare_with_cpu<Half, 64>(c, sampled_mask(c, 0.3, samples, 8), 0.008);
  }
  Case c;
  c.batch = 1;
  c.rows = c.keys = 130;
  c.causal = c.sinks = true;
  c.soft_cap = 2;
  compare_with_cpu<BFloat16, 128>(c, sampled_mask(c, 0.9, 1, 8), 0.05);
  // All heads alike: words are of queries. Whole blocks that are sampled, too.
  const std::vector<float> p(static_cast<std::size_t>(c.rows * c.keys), 0.25f);
  compare_with_cpu<Half, 64>(c, Mask::dense(MaskShape{1, c.heads, c.rows, c.keys}.one_head(), p), 0.008);
}

TEST(CudaTile, AttentionMasksAddAndForbid) {
  for (const double density : {0.1, 1.0}) {
    Case c;
    c.rows = 70;
    c.biased = true;
    compare_with_cpu<Half, 64>(c, random_mask(c, density, 8), 0.008);
    c.soft_cap = 2;
    c.sinks = true;
    compare_with_cpu<BFloat16, 128>(c, sampled_mask(c, density, 1, 8), 0.05);
  }
}

TEST(CudaTile, RowsAndTilesWithoutKeysGiveZeroAndMinusInfinity) {
  Case c;
  c.rows = 65;
  compare_with_cpu<Half, 64>(c, Mask::empty({c.batch, c.heads, c.rows, c.keys}), 0);
  compare_with_cpu<Half, 64>(c, random_mask(c, 0.002, 9), 0.004);
  c.sinks = true;
  compare_with_cpu<Half, 64>(c, Mask::empty({c.batch, c.heads, c.rows, c.keys}), 0);
}

TEST(CudaThreads, TilesWaitForWhatTheyRead) {
  for (const Execution how : {Execution::threads, Execution::threads_late}) {
    const ExecutedBy threads(how);
    Case c;
    c.batch = 1;
    c.kv_heads = 1;
    c.rows = 33;  // two tiles of 64 rows; a wide one that is full but for a row, and one that is not
    c.keys = 400;
    compare_with_cpu<Half, 64>(c, random_mask(c, 0.2, 12), 0.004);
  }
}

}  // namespace
}  // namespace reticle::cuda
