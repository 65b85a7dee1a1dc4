#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/nsa/compressed_attention.hpp>
#include <reticle/attention/nsa/cuda/block_scores.hpp>

#include "support/cuda/on_device.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

template <class T>
void expect_scores_of_the_cpu(Index heads, Index queries, Index first_query, Index head_dim) {
  const NsaConfig config;
  const Case c{1, heads, 2, queries, config.compressed_length(first_query + queries)};
  const Problem<T> drawn(c, head_dim);
  const Tensor q = by_token(drawn.inputs.queries), k = by_token(drawn.inputs.keys);
  const float scaling = drawn.inputs.scaling;
  const Tensor expected = reticle::block_scores(q, k, first_query, scaling, config);
  const CompressedAttention attended = compressed_attention(q, k, k, first_query, scaling, config);
  const Index blocks = expected.view().size(2);
  const auto wanted = expected.span<float>();
  const OnDevice<T> on_device(drawn);
  const Buffer lse = Buffer::copy_of(attended.lse.span<float>(), nullptr), scores(wanted.size_bytes(), nullptr);
  ASSERT_TRUE(block_scores_serve(on_device.inputs, config));
  block_scores(on_device.inputs, first_query, config, lse.as<float>(), blocks, scores.as<float>(), nullptr);
  const std::vector<float> found = on_host<float>(scores, wanted.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], wanted[i], 1e-3 * (1 + std::abs(wanted[i]))) << "score " << i << " of " << blocks;
}

TEST_F(CudaDevice, BlockScoresAreThoseOfTheCpu) {
  expect_scores_of_the_cpu<Half>(6, 70, 1000, 64);
  expect_scores_of_the_cpu<BFloat16>(8, 300, 0, 128);
  expect_scores_of_the_cpu<BFloat16>(128, 1, 4100, 64);  // a decode step, 64 query heads to a KV head
}

TEST_F(CudaSmall, BlockScores) { expect_scores_of_the_cpu<Half>(4, 20, 100, 64); }

TEST_F(CudaDevice, BlockScoresServeWhatThereAreKernelsFor) {
  const auto serve = [](Index heads, Index head_dim, DType dtype, const NsaConfig& config) {
    AttentionInputs inputs;
    inputs.queries = TensorView(nullptr, dtype, {1, heads, 1, head_dim});
    inputs.keys = inputs.values = TensorView(nullptr, dtype, {1, 1, 9, head_dim});
    return block_scores_serve(inputs, config);
  };
  EXPECT_TRUE(serve(64, 128, DType::bf16, {}));
  EXPECT_FALSE(serve(65, 128, DType::bf16, {}));
  EXPECT_FALSE(serve(4, 64, DType::f32, {}));
  EXPECT_FALSE(serve(4, 256, DType::f16, {}));
  EXPECT_TRUE(serve(4, 64, DType::f16, {.kernel_size = 1, .kernel_stride = 1, .block_size = 32}));
  EXPECT_FALSE(serve(4, 64, DType::f16, {.kernel_size = 1, .kernel_stride = 1, .block_size = 33}));
}

TEST_F(CudaDevice, BlockScoresRefuseWhatHasNoKernelByName) {
  using reticle::testing::message_of;
  const Problem<float> drawn(Case{}, 64);
  const Problem<Half> half(Case{}, 64);
  const OnDevice<float> floats(drawn);
  const OnDevice<Half> halves(half);
  const auto scores_of = [](const AttentionInputs& inputs, Index first_query, Index blocks) {
    return [=] { block_scores(inputs, first_query, {}, nullptr, blocks, nullptr, nullptr); };
  };
  EXPECT_EQ(message_of<DeviceError>(scores_of(floats.inputs, 0, 1)),
            "block scores: queries F32 (2, 4, 3, 64) and compressed keys F32 (2, 2, 200, 64); on a GPU these are F16 "
            "or BF16, head_dim is 64 or 128, a KV head has at most 64 query heads, and a block and a window have at "
            "most 33 strides");
  EXPECT_EQ(message_of<ValueError>(scores_of(halves.inputs, -1, 1)),
            "block scores: 3 queries from -1 on and 1 blocks; expected fewer than 2^30 positions");
  EXPECT_NO_THROW(scores_of(halves.inputs, 0, 0)()) << "no blocks are no scores";
}

}  // namespace
}  // namespace reticle::cuda
