#include <cmath>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/llama/self_attention.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"
#include "support/message_of.hpp"
#include "support/models.hpp"

namespace reticle::testing {
namespace {

constexpr Index kHidden = 6, kHeads = 4, kKvHeads = 2, kHeadDim = 4;

/// A layer with random weights.
struct Layer {
  Tensor q, k, v, o;

  explicit Layer(std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto make = [&](Index rows, Index columns) {
      return random_tensor(DType::f32, {rows, columns}, random, 0.4f);
    };
    q = make(kHeads * kHeadDim, kHidden);
    k = make(kKvHeads * kHeadDim, kHidden);
    v = make(kKvHeads * kHeadDim, kHidden);
    o = make(kHidden, kHeads * kHeadDim);
  }
  SelfAttention attention() const { return {kHeadDim, Rope(kHeadDim, 100, std::nullopt), {q, k, v, o}}; }
};

Tensor random_x(Index tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  return random_tensor(DType::f32, {tokens, kHidden}, random);
}

using Rows = std::vector<std::vector<double>>;

/// x W^T.
Rows projected(const Rows& x, const Tensor& weight) {
  Rows y;
  for (const auto& row : x) {
    y.emplace_back();
    for (Index o = 0; o < weight.view().size(0); ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < row.size(); ++i)
        sum += row[i] * static_cast<double>(*weight.view().at<float>(o, static_cast<Index>(i)));
      y.back().push_back(sum);
    }
  }
  return y;
}

/// Heads of 4 at positions 0, 1, ...: frequencies 1 and 100^(-1/2) of the pairs (0, 2) and (1, 3).
void rotate(Rows& x) {
  for (std::size_t t = 0; t < x.size(); ++t) {
    for (std::size_t head = 0; head < x[t].size(); head += 4) {
      for (const std::size_t pair : {0u, 1u}) {
        const double angle = static_cast<double>(t) * (pair == 0 ? 1 : 0.1), a = x[t][head + pair],
                     b = x[t][head + pair + 2];
        x[t][head + pair] = a * std::cos(angle) - b * std::sin(angle);
        x[t][head + pair + 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

/// The layer over one whole sequence, in plain loops.
Rows reference(const Layer& layer, const TensorView& x) {
  Rows rows;
  for (Index t = 0; t < x.size(0); ++t) {
    rows.emplace_back();
    for (Index i = 0; i < kHidden; ++i) rows.back().push_back(static_cast<double>(*x.at<float>(t, i)));
  }
  Rows q = projected(rows, layer.q), k = projected(rows, layer.k);
  const Rows v = projected(rows, layer.v);
  rotate(q);
  rotate(k);
  Rows mixed(rows.size(), std::vector<double>(kHeads * kHeadDim, 0));
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t head = 0; head < kHeads; ++head) {
      const std::size_t own = head * 4, of_kv = head / 2 * 4;
      std::vector<double> weights;
      double sum = 0;
      for (std::size_t j = 0; j <= t; ++j) {
        double score = 0;
        for (std::size_t i = 0; i < 4; ++i) score += q[t][own + i] * k[j][of_kv + i];
        weights.push_back(std::exp(score / 2));  // sqrt(head_dim)
        sum += weights.back();
      }
      for (std::size_t j = 0; j <= t; ++j) {
        for (std::size_t i = 0; i < 4; ++i) mixed[t][own + i] += weights[j] / sum * v[j][of_kv + i];
      }
    }
  }
  return projected(mixed, layer.o);
}

TEST(SelfAttention, ProjectsRotatesAttendsCausallyAndProjects) {
  const Layer layer(1);
  const Tensor x = random_x(12, 2);
  const SelfAttentionTape tape = layer.attention().forward(x, std::vector<Index>{0, 7, 7, 12});
  for (const auto& [begin, end] : {std::pair<Index, Index>{0, 7}, {7, 12}}) {  // packed sequences see themselves alone
    const Rows expected = reference(layer, x.view().slice(0, begin, end));
    for (Index t = begin; t < end; ++t) {
      for (Index i = 0; i < kHidden; ++i)
        ASSERT_NEAR(*tape.output.view().at<float>(t, i),
                    expected[static_cast<std::size_t>(t - begin)][static_cast<std::size_t>(i)], 1e-5)
            << t << ", " << i;
    }
  }
}

TEST(SelfAttention, NoTokensGiveNone) {
  const Layer layer(1);
  const Tensor x(DType::f32, {0, kHidden});
  const SelfAttentionTape tape = layer.attention().forward(x, std::vector<Index>{0});
  EXPECT_EQ(tape.output.view().size(0), 0);
}

TEST(SelfAttention, GradientsAgreeWithFiniteDifferences) {
  Layer layer(3);
  Tensor x = random_x(9, 4);
  const Tensor dy = random_x(9, 5);
  const std::vector<Index> cu_seqlens{0, 5, 9};
  const auto loss = [&] {
    double sum = 0;
    for (std::size_t i = 1; i < cu_seqlens.size(); ++i) {
      const Rows y = reference(layer, x.view().slice(0, cu_seqlens[i - 1], cu_seqlens[i]));
      for (std::size_t t = 0; t < y.size(); ++t) {
        for (std::size_t j = 0; j < kHidden; ++j)
          sum += y[t][j] * static_cast<double>(
                               *dy.view().at<float>(cu_seqlens[i - 1] + static_cast<Index>(t), static_cast<Index>(j)));
      }
    }
    return sum;
  };
  const SelfAttention attention = layer.attention();
  const SelfAttentionGradients gradients = attention.backward(attention.forward(x, cu_seqlens), dy);
  const auto expect_slopes = [&](Tensor& tensor, const Tensor& gradient, const char* name) {
    const auto values = tensor.span<float>();
    ASSERT_EQ(values.size(), gradient.span<float>().size());
    for (std::size_t i = 0; i < values.size(); i += 5) {
      const float at = values[i], high = at + 1e-3f, low = at - 1e-3f;
      values[i] = high;
      const double above = loss();
      values[i] = low;
      const double slope = (above - loss()) / (static_cast<double>(high) - static_cast<double>(low));
      values[i] = at;
      EXPECT_NEAR(gradient.span<float>()[i], slope, 1e-4 + 1e-4 * std::abs(slope)) << name << " " << i;
    }
  };
  expect_slopes(x, gradients.x, "x");
  expect_slopes(layer.q, gradients.q_proj, "q_proj");
  expect_slopes(layer.k, gradients.k_proj, "k_proj");
  expect_slopes(layer.v, gradients.v_proj, "v_proj");
  expect_slopes(layer.o, gradients.o_proj, "o_proj");
}

TEST(SelfAttention, TokensThroughACacheGiveTheRowsOfTheWholeSequence) {
  const Layer layer(6);
  const SelfAttention attention = layer.attention();
  const Tensor x = random_x(20, 7);
  const Rows expected = reference(layer, x);
  KvCache cache({1, kKvHeads, kHeadDim, kHeadDim, 20, DType::f32});
  const AttendedSequence sequence{&cache, 0, Stage::prefill, nullptr};
  Index at = 0;
  for (const Index count : {6, 1, 3, 0, 10}) {
    cache.extend(std::vector<std::int32_t>(static_cast<std::size_t>(count)));
    const Tensor y =
        attention.extend(x.view().slice(0, at, at + count), std::vector<Index>{0, count}, {&sequence, 1}, nullptr);
    for (Index t = 0; t < count; ++t) {
      for (Index i = 0; i < kHidden; ++i)
        ASSERT_NEAR(*y.view().at<float>(t, i), expected[static_cast<std::size_t>(at + t)][static_cast<std::size_t>(i)],
                    1e-5);
    }
    at += count;
  }
}

TEST(SelfAttention, APipelineChoosesTheKeys) {
  const Layer layer(8);
  const SelfAttention attention = layer.attention();
  const Tensor x = random_x(8, 9);
  const SparseAttention sparse =
      SparseAttention::by_stage(pipeline_of(R"({"type": "local", "window_size": 1})"), pipeline_of(""));
  KvCache cache({1, kKvHeads, kHeadDim, kHeadDim, 8, DType::f32});
  cache.extend(std::vector<std::int32_t>(8));
  SequenceState state;
  const AttendedSequence sequence{&cache, 0, Stage::prefill, &state};
  const Tensor y = attention.extend(x, std::vector<Index>{0, 8}, {&sequence, 1}, &sparse);
  // Of one key the weight is 1: a token's values go straight to the output projection, as a sequence of itself.
  for (Index t = 0; t < 8; ++t) {
    const Rows alone = reference(layer, x.view().slice(0, t, t + 1));
    for (Index i = 0; i < kHidden; ++i)
      ASSERT_NEAR(*y.view().at<float>(t, i), alone[0][static_cast<std::size_t>(i)], 1e-5);
  }
}

TEST(SelfAttention, RefusesWeightsThatDoNotMakeHeads) {
  const Layer layer(10);
  const Rope rope(kHeadDim, 100, std::nullopt);
  EXPECT_EQ(message_of<ShapeError>([&] {
              SelfAttention(kHeadDim, rope, {layer.q, layer.k, layer.v, layer.q});
            }),
            "self attention: q_proj F32 (16, 6), k_proj F32 (8, 6), v_proj F32 (8, 6) and o_proj F32 (16, 6) do not "
            "make heads of 4");
  EXPECT_THROW(SelfAttention(3, Rope(6, 100, std::nullopt), {layer.q, layer.k, layer.v, layer.o}), ShapeError);
  EXPECT_THROW(SelfAttention(kHeadDim, Rope(8, 100, std::nullopt), {layer.q, layer.k, layer.v, layer.o}), ShapeError);
  const Tensor x = random_x(4, 1);
  EXPECT_THROW(layer.attention().forward(x, std::vector<Index>{0, 5}), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
