#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/hash_codes.hpp>

#include "support/attention.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

/// Weight tensors by name.
struct Weights {
  std::map<std::string, Tensor> tensors;

  HashMlp mlp(const std::string& prefix, Index heads, Index head_dim,
              HashActivation activation = HashActivation::relu) const {
    return {[&](const std::string& name) -> std::optional<TensorView> {
              const auto found = tensors.find(name);
              if (found == tensors.end()) return std::nullopt;
              return found->second.view();
            },
            prefix, activation, heads, head_dim};
  }
};

std::uint64_t code_of(const HashMlp& mlp, Index head, const std::vector<float>& vector) {
  std::uint64_t word = ~std::uint64_t{0};
  mlp.code(head, vector, {&word, 1});
  return word;
}

TEST(HashMlp, OneLinearMapGivesTheSignsOfItsOutputs) {
  Weights weights;
  // Two heads, two inputs, three outputs.
  weights.tensors.emplace("q_matrix.0", tensor_of({2, 2, 3}, {1, 0, 1, 0, 1, 1, -1, 0, 0, 0, -1, 0}));
  weights.tensors.emplace("q_bias.0", tensor_of({2, 3}, {0, 0, -5, 0, 0, 0}));
  const HashMlp mlp = weights.mlp("q", 2, 2);
  EXPECT_EQ(mlp.layers(), 1);
  EXPECT_EQ(mlp.bits(), 3);
  EXPECT_EQ(mlp.hidden(), 0);
  EXPECT_EQ(mlp.heads(), 2);
  EXPECT_EQ(mlp.head_dim(), 2);
  // Outputs of head 0: x, y, x + y - 5; of head 1: -x, -y, 0.
  EXPECT_EQ(code_of(mlp, 0, {1, -1}), 0b001u);
  EXPECT_EQ(code_of(mlp, 0, {2, 4}), 0b111u);
  EXPECT_EQ(code_of(mlp, 0, {2, 3}), 0b011u) << "an output of zero is not positive";
  EXPECT_EQ(code_of(mlp, 1, {2, 4}), 0b000u);
  EXPECT_EQ(code_of(mlp, 1, {-2, 4}), 0b001u);
}

TEST(HashMlp, AppliesTheActivationBetweenLinearMaps) {
  Weights weights;
  weights.tensors.emplace("k_matrix.0", tensor_of({1, 1, 2}, {1, -1}));
  weights.tensors.emplace("k_bias.0", tensor_of({1, 2}, {0, 0}));
  weights.tensors.emplace("k_matrix.1", tensor_of({1, 2, 2}, {1, 0, 1, 1}));
  weights.tensors.emplace("k_bias.1", tensor_of({1, 2}, {-3, 0}));
  const HashMlp mlp = weights.mlp("k", 1, 1);
  EXPECT_EQ(mlp.layers(), 2);
  EXPECT_EQ(mlp.hidden(), 2);
  // max(x, 0) + max(-x, 0) - 3 = |x| - 3, and max(-x, 0).
  EXPECT_EQ(code_of(mlp, 0, {4}), 0b01u);
  EXPECT_EQ(code_of(mlp, 0, {-4}), 0b11u);
  EXPECT_EQ(code_of(mlp, 0, {2}), 0b00u);
  EXPECT_EQ(code_of(mlp, 0, {-2}), 0b10u);
}

TEST(HashMlp, ActivationsHaveTheirPublishedValues) {
  EXPECT_EQ(hash_activation(HashActivation::relu, -2), 0);
  EXPECT_EQ(hash_activation(HashActivation::relu, 2), 2);
  EXPECT_NEAR(hash_activation(HashActivation::silu, 1), 0.7310586f, 1e-6f);
  EXPECT_NEAR(hash_activation(HashActivation::gelu, 1), 0.8413447f, 1e-6f);
  EXPECT_NEAR(hash_activation(HashActivation::gelu, -1), -0.1586553f, 1e-6f);
  EXPECT_NEAR(hash_activation(HashActivation::tanh, 0.5f), 0.4621172f, 1e-6f);
}

TEST(HashMlp, WeightsThatDoNotFitAreRefused) {
  Weights weights;
  const auto refusal = [&](Index heads, Index head_dim) {
    return message_of<ShapeError>([&] { weights.mlp("q", heads, head_dim); });
  };
  EXPECT_EQ(refusal(1, 2), "hash weights: there is no tensor \"q_matrix.0\"");
  weights.tensors.emplace("q_matrix.0", Tensor(DType::f32, {1, 2, 3}));
  EXPECT_EQ(refusal(1, 2), "hash weights: there is no tensor \"q_bias.0\"");
  weights.tensors.emplace("q_bias.0", Tensor(DType::f32, {1, 4}));
  EXPECT_EQ(refusal(1, 2),
            "q_matrix.0 and q_bias.0: F32 (1, 2, 3) and F32 (1, 4); expected (1 query heads, 2 in, out) and (1, out)");
  weights.tensors.insert_or_assign("q_bias.0", Tensor(DType::f32, {1, 3}));
  EXPECT_EQ(refusal(1, 2), "nothing was thrown");
  EXPECT_NE(refusal(2, 2), "nothing was thrown");
  EXPECT_NE(refusal(1, 5), "nothing was thrown");
}

/// An MLP whose codes are the signs of a vector's elements: `bits` of them, repeated over the head_dim.
HashMlp signs(Index heads, Index head_dim, Index bits) {
  Weights weights;
  std::vector<float> matrix(static_cast<std::size_t>(heads * head_dim * bits));
  for (Index head = 0; head < heads; ++head) {
    for (Index bit = 0; bit < bits; ++bit)
      matrix[static_cast<std::size_t>((head * head_dim + bit % head_dim) * bits + bit)] = 1;
  }
  weights.tensors.emplace("x_matrix.0", tensor_of({heads, head_dim, bits}, matrix));
  weights.tensors.emplace("x_bias.0",
                          tensor_of({heads, bits}, std::vector<float>(static_cast<std::size_t>(heads * bits))));
  return weights.mlp("x", heads, head_dim);
}

HashCodes sign_codes(Index heads, Index head_dim, Index bits) {
  HashCodes codes;
  codes.set_weights(signs(heads, head_dim, bits), signs(heads, head_dim, bits));
  return codes;
}

std::vector<float> scores_of(const HashCodes& codes, const AttentionInputs& inputs, RowId row) {
  std::vector<float> scores(static_cast<std::size_t>(inputs.keys_length()));
  codes.score(inputs, row, scores.data());
  return scores;
}

TEST(HashCodes, ScoreSharedBitsMinusOthers) {
  const OwnedInputs owned({2, 4, 2, 3, 20, 5, 5}, 3);
  for (const Index bits : {1, 5, 64, 65, 130}) {
    HashCodes codes = sign_codes(4, 5, bits);
    codes.update(owned.inputs, Context(2));
    const RowId row{1, 3, 2};
    const std::vector<float> scores = scores_of(codes, owned.inputs, row);
    for (Index key = 0; key < 20; ++key) {
      int score = 0;
      for (Index bit = 0; bit < bits; ++bit) {
        const bool of_query = element(owned.inputs.queries, 1, 3, 2, bit % 5) > 0,
                   of_key = element(owned.inputs.keys, 1, 1, key, bit % 5) > 0;
        score += of_query == of_key ? 1 : -1;
      }
      EXPECT_EQ(scores[static_cast<std::size_t>(key)], static_cast<float>(score)) << bits << " bits, key " << key;
    }
  }
}

TEST(HashCodes, AddTheAttentionMaskAndForbidWhatCausalityDoes) {
  WrittenInputs written({1, 1, 2, 2}, {1, 1, 1, -1}, {1, 1, 4, 2}, {1, 1, 1, -1, -1, -1, 1, 1});
  written.inputs.causal = true;
  written.forbid({1});
  HashCodes codes = sign_codes(1, 2, 2);
  codes.update(written.inputs, Context(1));
  EXPECT_EQ(scores_of(codes, written.inputs, {0, 0, 0}), (std::vector<float>{2, kForbidden, -2, kForbidden}));
  EXPECT_EQ(scores_of(codes, written.inputs, {0, 0, 1}), (std::vector<float>{0, kForbidden, 0, 0}));
}

TEST(HashCodes, HashOnlyNewKeysAndFollowTheSequence) {
  const OwnedInputs owned({2, 2, 1, 6, 20, 8, 8}, 5);
  HashCodes stepwise = sign_codes(2, 8, 16), whole = sign_codes(2, 8, 16);
  for (Index step = 0; step < 6; ++step) stepwise.update(owned.inputs.rows(step, step + 1), Context(1));
  whole.update(owned.inputs, Context(1));
  EXPECT_EQ(stepwise.keys_hashed(), 2 * 2 * 20);
  const std::vector<float> expected = scores_of(whole, owned.inputs, {1, 0, 3});
  EXPECT_EQ(scores_of(stepwise, owned.inputs, {1, 0, 3}), expected);
  stepwise.truncate(17);
  stepwise.update(owned.inputs, Context(1));
  EXPECT_EQ(stepwise.keys_hashed(), 2 * 2 * 23);
  EXPECT_EQ(scores_of(stepwise, owned.inputs, {1, 0, 3}), expected);
  stepwise.select(std::vector<Index>{1});
  AttentionInputs second = owned.inputs;
  for (TensorView* view : {&second.queries, &second.keys, &second.values}) *view = view->slice(0, 1, 2);
  EXPECT_EQ(scores_of(stepwise, second, {0, 0, 3}), expected);
}

TEST(HashCodes, WeightsOfOtherHeadsOrUnequalBitsAreRefused) {
  HashCodes codes;
  EXPECT_TRUE(codes.empty());
  EXPECT_EQ(message_of<ShapeError>([&] { codes.set_weights(signs(2, 8, 16), signs(2, 8, 15)); }),
            "hash weights: queries have 16 bits and keys 15; expected as many");
  EXPECT_TRUE(codes.empty());
  codes.set_weights(signs(2, 8, 16), signs(2, 8, 16));
  EXPECT_FALSE(codes.empty());
  const OwnedInputs owned({1, 4, 2, 1, 5, 8, 8}, 5);
  EXPECT_EQ(message_of<ShapeError>([&] { codes.update(owned.inputs, Context(1)); }),
            "hash weights: are of 2 query heads of 8; queries are F32 (1, 4, 1, 8)");
}

}  // namespace
}  // namespace reticle::testing
