// Attention and its gradients against float64, over problems drawn at random: every dtype, layout, grouping of heads,
// kind and sharing of masks, p, soft cap, sinks, attention masks and causality. RETICLE_RANDOM_PROBLEMS says how many
// (a few hundred where it is not set), RETICLE_RANDOM_FIRST which is the first: a problem is its number.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/backward.hpp>

#include "support/attention.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

std::uint32_t setting(const char* name, std::uint32_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : static_cast<std::uint32_t>(std::strtoul(value, nullptr, 10));
}

/// A (b, h, n, d) view of normal values, laid out in one of four ways.
struct Laid {
  Tensor storage;
  TensorView view;

  Laid(DType dtype, Index b, Index h, Index n, Index d, int layout, std::mt19937& random) {
    switch (layout) {
      case 0:
        storage = random_tensor(dtype, {b, h, n, d}, random);
        view = storage.view();
        break;
      case 1:  // as projections leave it
        storage = random_tensor(dtype, {b, n, h, d}, random);
        view = storage.view().permute({0, 2, 1, 3});
        break;
      case 2:  // a part of a cache
        storage = random_tensor(dtype, {b, h, n + 3, d + 2}, random);
        view = storage.view().slice(2, 2, n + 2).slice(3, 1, d + 1);
        break;
      default:  // elements apart
        storage = random_tensor(dtype, {b, h, d, n}, random);
        view = storage.view().permute({0, 1, 3, 2});
        break;
    }
  }
};

struct Problem {
  explicit Problem(std::uint32_t number)
      : random(number),
        dtype(one_of(std::array{DType::f32, DType::f32, DType::f16, DType::bf16})),
        s(shapes()),
        queries(dtype, s.batch, s.heads, s.queries, s.head_dim, below(4), random),
        keys(dtype, s.batch, s.kv_heads, s.keys, s.head_dim, below(4), random),
        values(dtype, s.batch, s.kv_heads, s.keys, s.value_dim, below(4), random),
        d_output(random_tensor(DType::f32, {s.batch, s.heads, s.queries, s.value_dim}, random)) {
    inputs.queries = queries.view;
    inputs.keys = keys.view;
    inputs.values = values.view;
    inputs.scaling =
        below(8) < 5 ? 1 / std::sqrt(static_cast<float>(s.head_dim)) : one_of(std::array{0.3f, -0.2f, 0.0f});
    inputs.causal = below(2) == 0;
    if (below(3) == 0) draw_attention_mask();
    if (below(4) == 0) options.soft_cap = 0.5f + static_cast<float>(below(40)) / 4;
    if (below(4) == 0) {
      for (Index head = 0; head < s.heads; ++head) sinks.push_back(static_cast<float>(below(80)) / 10 - 4);
      options.sink_logits = sinks;
    }
    std::vector<NamedMask> masks = random_masks(inputs.shape(), random);
    NamedMask& drawn = masks[static_cast<std::size_t>(below(static_cast<int>(masks.size())))];
    mask = std::move(drawn.mask);
    name = "problem " + std::to_string(number) + ": " + drawn.name + " " + inputs.shape().describe() + " of " +
           inputs.queries.describe() + ", keys " + inputs.keys.describe() + (inputs.causal ? ", causal" : "") +
           (inputs.attention_mask ? ", attention mask" : "") + (options.soft_cap ? ", soft cap" : "") +
           (sinks.empty() ? "" : ", sinks");
  }

  int below(int n) { return static_cast<int>(random() % static_cast<std::uint32_t>(n)); }
  template <class T, std::size_t n>
  T one_of(const std::array<T, n>& choices) {
    return choices[random() % n];
  }

  std::mt19937 random;
  DType dtype;
  Shapes s;
  Laid queries, keys, values;
  Tensor d_output;
  Tensor attention_mask;
  std::vector<float> sinks;
  AttentionInputs inputs;
  AttentionOptions options;
  Mask mask;
  std::string name;

 private:
  Shapes shapes() {
    const std::array<Index, 10> sizes{1, 2, 3, 8, 9, 16, 24, 32, 64, 96};
    Shapes drawn;
    drawn.batch = 1 + below(2);
    drawn.kv_heads = 1 + below(3);
    drawn.heads = drawn.kv_heads * one_of(std::array<Index, 5>{1, 1, 2, 3, 4});
    drawn.queries = below(12) == 0 ? 0 : 1 + (below(2) == 0 ? below(4) : below(40));
    drawn.keys = below(12) == 0 ? 0 : 1 + (below(4) == 0 ? below(8) : below(150));
    drawn.head_dim = one_of(sizes);
    drawn.value_dim = below(3) == 0 ? one_of(sizes) : drawn.head_dim;
    return drawn;
  }
  void draw_attention_mask() {
    const auto extent = [&](Index size) { return below(2) == 0 ? Index{1} : size; };
    attention_mask =
        random_tensor(below(3) == 0 ? dtype : DType::f32,
                      {extent(s.batch), extent(s.heads), extent(s.queries), below(6) == 0 ? 1 : s.keys}, random);
    const bool whole_f32 = attention_mask.view().dtype == DType::f32;
    for (Index i = 0; whole_f32 && i < attention_mask.view().elements(); ++i) {
      if (below(4) == 0)
        attention_mask.span<float>()[static_cast<std::size_t>(i)] =
            below(2) == 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::lowest();
    }
    inputs.attention_mask = attention_mask.view();
  }
};

/// Sums of d(loss) over float64 weights. `output` is what the backward pass is given, rounded to its dtype.
struct ReferenceGradients {
  std::vector<double> queries, keys, values;
};

ReferenceGradients reference_gradients(const Problem& problem, const Reference& forward, const TensorView& output) {
  const AttentionInputs& in = problem.inputs;
  const Index d = in.head_dim(), dv = in.values.size(3), keys = in.keys_length(), queries = in.queries_length();
  const auto at = [](Index i) { return static_cast<std::size_t>(i); };
  ReferenceGradients sums{std::vector<double>(at(in.batch() * in.heads() * queries * d)),
                          std::vector<double>(at(in.batch() * in.kv_heads() * keys * d)),
                          std::vector<double>(at(in.batch() * in.kv_heads() * keys * dv))};
  const auto upstream = problem.d_output.span<float>();
  for (Index row = 0; row < in.shape().rows(); ++row) {
    const RowId id = in.shape().row_of_logical(row);
    const Index kv_head = in.kv_head(id.head), kv = id.batch * in.kv_heads() + kv_head;
    double through_output = 0;  // d_output . output, what every weight shares
    for (Index j = 0; j < dv; ++j)
      through_output +=
          static_cast<double>(upstream[at(row * dv + j)]) * element(output, id.batch, id.head, id.query, j);
    for (Index key = 0; key < keys; ++key) {
      const double weight = forward.weights[at(row * keys + key)];
      if (weight == 0) continue;
      double product = 0, score = 0;
      for (Index j = 0; j < dv; ++j) {
        const auto up = static_cast<double>(upstream[at(row * dv + j)]);
        product += up * element(in.values, id.batch, kv_head, key, j);
        sums.values[at((kv * keys + key) * dv + j)] += weight * up;
      }
      for (Index i = 0; i < d; ++i)
        score += element(in.queries, id.batch, id.head, id.query, i) * element(in.keys, id.batch, kv_head, key, i);
      double slope = weight * (product - through_output) * static_cast<double>(in.scaling);
      if (problem.options.soft_cap) {
        const double bent =
            std::tanh(score * static_cast<double>(in.scaling) / static_cast<double>(*problem.options.soft_cap));
        slope *= 1 - bent * bent;
      }
      for (Index i = 0; i < d; ++i) {
        sums.queries[at(row * d + i)] += slope * element(in.keys, id.batch, kv_head, key, i);
        sums.keys[at((kv * keys + key) * d + i)] += slope * element(in.queries, id.batch, id.head, id.query, i);
      }
    }
  }
  return sums;
}

/// The largest difference, in parts of 1 + the largest value.
double difference(const Tensor& found, const std::vector<double>& expected) {
  const Tensor floats = Tensor::copy(found, DType::f32);
  const auto values = floats.span<float>();
  double largest = 0, size = 1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    size = std::max(size, std::abs(expected[i]));
    if (static_cast<double>(values[i]) == expected[i]) continue;  // infinities of rows without entries
    const double apart = std::abs(static_cast<double>(values[i]) - expected[i]);
    largest = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(largest, apart);
  }
  return values.size() == expected.size() ? largest / size : std::numeric_limits<double>::infinity();
}

TEST(AttentionOfRandomProblems, AgreesWithFloat64ForwardAndBackward) {
  const std::uint32_t first = setting("RETICLE_RANDOM_FIRST", 0), count = setting("RETICLE_RANDOM_PROBLEMS", 300);
  double worst[3] = {};  // of f32, f16, bf16
  for (std::uint32_t number = first; number < first + count; ++number) {
    const Problem problem(number);
    const Context context(1 + static_cast<int>(number % 2));
    const Reference expected = reference_attention(problem.inputs, problem.mask, problem.options);
    const AttentionResult found = attention(problem.inputs, problem.mask, problem.options, context);
    const AttentionGradients gradients = attention_backward(problem.inputs, problem.mask, found.output, found.lse,
                                                            problem.d_output, problem.options, context);
    const ReferenceGradients slopes = reference_gradients(problem, expected, found.output);
    const int kind = problem.dtype == DType::f32 ? 0 : problem.dtype == DType::f16 ? 1 : 2;
    const double tolerance = std::array{5e-5, 1e-3, 1e-2}[static_cast<std::size_t>(kind)];
    const std::pair<const char*, double> differences[] = {{"output", difference(found.output, expected.output)},
                                                          {"lse", difference(found.lse, expected.lse)},
                                                          {"d_queries", difference(gradients.queries, slopes.queries)},
                                                          {"d_keys", difference(gradients.keys, slopes.keys)},
                                                          {"d_values", difference(gradients.values, slopes.values)}};
    for (const auto& [what, apart] : differences) {
      EXPECT_LE(apart, tolerance) << what << " of " << problem.name;
      worst[kind] = std::max(worst[kind], apart);
    }
    if (HasFailure()) return;
  }
  RecordProperty("problems", static_cast<int>(count));
  if (count > 1000)
    std::printf("%u problems: largest differences %.1e (F32), %.1e (F16), %.1e (BF16)\n", count, worst[0], worst[1],
                worst[2]);
}

}  // namespace
}  // namespace reticle::testing
