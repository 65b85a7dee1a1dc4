// The GPU's gradients, run on the CPU: the same source, its threads and blocks taking turns.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/backward_tile_block.hpp>
#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

template <class T, int head_dim>
void compare_with_cpu(const Case& c, const Mask& mask, double tolerance) {
  const Problem<T> drawn(c, head_dim);
  const AttentionInputs& inputs = drawn.inputs;
  const AttentionResult result = attention(inputs, mask, drawn.options());
  std::mt19937 random(11);
  std::normal_distribution<float> draw;
  Tensor d_output(dtype_of<T>, {c.batch, c.heads, c.rows, head_dim});
  for (T& x : d_output.span<T>()) x = from_float<T>(draw(random));
  const AttentionGradients expected =
      attention_backward(inputs, mask, result.output.view(), result.lse.view(), d_output.view(), drawn.options());

  const std::vector<float> unset(static_cast<std::size_t>(c.batch * c.heads * c.keys * head_dim), std::nanf(""));
  std::vector<float> d_queries, d_keys, d_values, delta;
  const auto fill = [&](auto problem) {
    d_queries.assign(drawn.output_size(), std::nanf(""));
    d_keys = d_values = unset;
    delta.assign(drawn.lse_size(), std::nanf(""));
    static_cast<BackwardInputs&>(problem) = backward_inputs(inputs, result.output.view(), d_output.view());
    problem.soft_cap = c.soft_cap;
    problem.lse = result.lse.span<float>().data();
    problem.delta = delta.data();
    problem.d_queries = d_queries.data();
    problem.d_keys = d_keys.data();
    problem.d_values = d_values.data();
    return problem;
  };
  const auto expect_near = [&](const Tensor& wanted, const std::vector<float>& found, double allowed,
                               const char* name) {
    const auto values = wanted.span<float>();
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(found[i], values[i], allowed * (1 + std::abs(values[i]))) << name << ", element " << i;
  };
  const auto expect_gradients = [&](double allowed) {
    expect_near(expected.queries, d_queries, allowed, "queries");
    expect_near(expected.keys, d_keys, allowed, "keys");
    expect_near(expected.values, d_values, allowed, "values");
  };

  {
    SCOPED_TRACE("lists");
    const Mask attended = c.causal ? restrict_causal(mask) : mask;
    const Csr by_row = to_csr(attended), by_key = to_csr(transpose(attended));
    auto problem = fill(BackwardProblem{});
    problem.by_row = {by_row.row_ptr.data(), by_row.indices.data(), by_row.p.empty() ? nullptr : by_row.p.data()};
    problem.by_key = {by_key.row_ptr.data(), by_key.indices.data(), by_key.p.empty() ? nullptr : by_key.p.data()};
    const auto shared = std::make_unique<BackwardShared<head_dim>>();
    for (int row = 0; row < c.batch * c.heads * c.rows; ++row)
      run_block(kBackwardThreads, *shared,
                [&](const auto& block) { differentiate<T, head_dim, false>(block, *shared, problem, row); });
    for (int key = 0; key < c.batch * c.kv_heads * c.keys; ++key)
      run_block(kBackwardThreads, *shared,
                [&](const auto& block) { differentiate<T, head_dim, true>(block, *shared, problem, key); });
    expect_gradients(tolerance);
  }
  if constexpr (!std::is_same_v<T, float> && head_dim <= 128) {
    SCOPED_TRACE("tiles");
    const BlockPlan plan = plan_blocks(mask, c.kv_heads, c.causal).value();
    const BlockPlanByKeys transposed = by_keys(plan, mask.shape(), c.kv_heads);
    auto problem = fill(TileBackwardProblem{});
    problem.plan = plan.lists();
    problem.starts = transposed.starts.data();
    problem.tiles_of_keys = transposed.tiles.data();
    const auto shared = std::make_unique<BackwardTileShared<T, head_dim>>();
    const auto differentiate_by = [&](const auto& block, auto key, int item) {
      constexpr bool kByKey = decltype(key)::value;
      c.biased ? differentiate_tile<T, head_dim, kByKey, true>(block, *shared, problem, item)
               : differentiate_tile<T, head_dim, kByKey, false>(block, *shared, problem, item);
    };
    for (int tile = 0; tile < static_cast<int>(plan.tiles.size()); ++tile)
      run_block(kBackwardThreads, *shared,
                [&](const auto& block) { differentiate_by(block, std::false_type(), tile); });
    for (int item = 0; item + 1 < static_cast<int>(transposed.starts.size()); ++item)
      run_block(kBackwardThreads, *shared, [&](const auto& block) { differentiate_by(block, std::true_type(), item); });
    expect_gradients(std::is_same_v<T, BFloat16> ? 0.03 : 0.004);  // weights and dS are rounded to T
  }
}

TEST(CudaBackward, ComputesWhatTheCpuComputes) {
  for (const double density : {0.0, 0.02, 0.3, 1.0}) {
    Case c;
    compare_with_cpu<float, 64>(c, random_mask(c, density, 3), 3e-5);
  }
}

TEST(CudaBackward, AttentionMasksAddAndForbid) {
  Case c;
  c.biased = true;
  compare_with_cpu<float, 64>(c, random_mask(c, 0.3, 3), 3e-5);
  compare_with_cpu<BFloat16, 64>(c, random_mask(c, 0.3, 3), 1e-4);
  c.rows = 40;
  c.soft_cap = 2;
  compare_with_cpu<Half, 128>(c, sampled_mask(c, 0.1, 2, 3), 1e-4);
}

TEST(CudaBackward, EveryDtypeAndHeadSize) {
  Case c;
  c.keys = 60;
  const Mask mask = random_mask(c, 0.2, 5);
  compare_with_cpu<float, 128>(c, mask, 3e-5);
  compare_with_cpu<float, 256>(c, mask, 3e-5);
  compare_with_cpu<BFloat16, 64>(c, mask, 1e-4);
  compare_with_cpu<BFloat16, 128>(c, mask, 1e-4);
  compare_with_cpu<BFloat16, 256>(c, mask, 1e-4);
  compare_with_cpu<Half, 64>(c, mask, 1e-4);
  compare_with_cpu<Half, 128>(c, mask, 1e-4);
}

TEST(CudaBackward, TilesOfWholeAndPartialBlocksSharedHeadsAndCausality) {
  for (const Index group : {1, 3, 8}) {
    Case c;
    c.batch = 1;
    c.heads = 2 * group;
    c.rows = 90;
    compare_with_cpu<Half, 64>(c, random_mask(c, 0.1, 3), 1e-4);
    c.causal = true;
    c.rows = c.keys = 150;
    compare_with_cpu<Half, 64>(c, Mask::full({c.batch, c.heads, c.rows, c.keys}), 1e-4);
  }
  Case c;
  c.batch = 1;
  c.rows = 70;
  c.sinks = true;
  c.soft_cap = 2;
  compare_with_cpu<BFloat16, 128>(c, random_mask(c, 0.5, 4), 1e-4);
  compare_with_cpu<Half, 64>(c, Mask::empty({c.batch, c.heads, c.rows, c.keys}), 1e-4);
}

TEST(CudaThreads, GradientsWaitForWhatTheyRead) {
  for (const Execution how : {Execution::threads, Execution::threads_late}) {
    const ExecutedBy threads(how);
    Case c;
    c.batch = c.kv_heads = 1;
    c.heads = 2;
    c.rows = 20;
    c.keys = 70;
    compare_with_cpu<Half, 64>(c, random_mask(c, 0.3, 3), 1e-4);
  }
}

TEST(CudaBackward, WeightsSinksAndSoftCap) {
  Case c;
  c.weighted = c.sinks = true;
  c.soft_cap = 2;
  compare_with_cpu<float, 64>(c, random_mask(c, 0.1, 8), 3e-5);
  c.rows = 40;
  for (const int samples : {1, 3}) compare_with_cpu<Half, 64>(c, sampled_mask(c, 0.2, samples, 8), 1e-4);
}

}  // namespace
}  // namespace reticle::cuda
