// The GPU's gradients, run on the CPU: the same source, its threads and blocks taking turns.
#include <memory>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/cuda/backward_block.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

#include "cuda/problem.hpp"

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

  const Csr by_row = to_csr(mask), by_key = to_csr(transpose(mask));
  const std::vector<float> unset(static_cast<std::size_t>(c.batch * c.heads * c.keys * head_dim), std::nanf(""));
  std::vector<float> d_queries(drawn.output_size(), std::nanf("")), d_keys(unset), d_values(unset),
      delta(drawn.lse_size(), std::nanf(""));
  BackwardProblem problem;
  problem.queries = inputs.queries.data;
  problem.keys = inputs.keys.data;
  problem.values = inputs.values.data;
  problem.output = result.output.view().data;
  problem.d_output = d_output.view().data;
  problem.query_strides = strides_of(inputs.queries);
  problem.key_strides = strides_of(inputs.keys);
  problem.value_strides = strides_of(inputs.values);
  problem.output_strides = strides_of(result.output.view());
  problem.d_output_strides = strides_of(d_output.view());
  problem.heads = static_cast<int>(c.heads);
  problem.kv_heads = static_cast<int>(c.kv_heads);
  problem.rows = static_cast<int>(c.rows);
  problem.key_count = static_cast<int>(c.keys);
  problem.by_row = {by_row.row_ptr.data(), by_row.indices.data(), by_row.p.empty() ? nullptr : by_row.p.data()};
  problem.by_key = {by_key.row_ptr.data(), by_key.indices.data(), by_key.p.empty() ? nullptr : by_key.p.data()};
  problem.scaling = inputs.scaling;
  problem.soft_cap = c.soft_cap;
  problem.lse = result.lse.span<float>().data();
  problem.delta = delta.data();
  problem.d_queries = d_queries.data();
  problem.d_keys = d_keys.data();
  problem.d_values = d_values.data();
  const HostBlock block(kBackwardThreads);
  const auto shared = std::make_unique<BackwardShared<head_dim>>();
  for (int row = 0; row < c.batch * c.heads * c.rows; ++row)
    differentiate<T, head_dim, false>(block, *shared, problem, row);
  for (int key = 0; key < c.batch * c.kv_heads * c.keys; ++key)
    differentiate<T, head_dim, true>(block, *shared, problem, key);

  const auto expect_near = [&](const Tensor& wanted, const std::vector<float>& found, const char* name) {
    const auto values = wanted.span<float>();
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(found[i], values[i], tolerance * (1 + std::abs(values[i]))) << name << ", element " << i;
  };
  expect_near(expected.queries, d_queries, "queries");
  expect_near(expected.keys, d_keys, "keys");
  expect_near(expected.values, d_values, "values");
}

TEST(CudaBackward, ComputesWhatTheCpuComputes) {
  for (const double density : {0.0, 0.02, 0.3, 1.0}) {
    Case c;
    compare_with_cpu<float, 64>(c, random_mask(c, density, 3), 3e-5);
  }
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

TEST(CudaBackward, WeightsSinksAndSoftCap) {
  Case c;
  c.weighted = c.sinks = true;
  c.soft_cap = 2;
  compare_with_cpu<float, 64>(c, random_mask(c, 0.1, 8), 3e-5);
}

}  // namespace
}  // namespace reticle::cuda
