// Attention problems for the kernels of the GPU.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/cuda/decode_block.hpp>
#include <reticle/attention/executor.hpp>

namespace reticle::cuda {

struct Case {
  Index batch = 2, heads = 4, kv_heads = 2, rows = 3, keys = 200;
  int parts = 1;  // of decoding
  bool weighted = false, sinks = false, causal = false, biased = false;
  float soft_cap = 0;
};

inline Mask random_mask(const Case& c, double density, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> draw;
  std::vector<float> p(static_cast<std::size_t>(c.batch * c.heads * c.rows * c.keys));
  for (float& value : p) value = draw(random) < density ? (c.weighted ? 0.05f + 0.95f * draw(random) : 1.0f) : 0.0f;
  return Mask::dense({c.batch, c.heads, c.rows, c.keys}, p);
}

/// A weighted one as sampling leaves it: p is 1, or one of `samples` that its row has.
inline Mask sampled_mask(const Case& c, double density, int samples, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> draw;
  std::vector<float> p;
  for (Index row = 0; row < c.batch * c.heads * c.rows; ++row) {
    std::vector<float> of_row(static_cast<std::size_t>(samples) + 1, 1.0f);
    for (int i = 0; i < samples; ++i) of_row[static_cast<std::size_t>(i)] = 0.05f + 0.9f * draw(random);
    for (Index key = 0; key < c.keys; ++key)
      p.push_back(draw(random) < density ? of_row[random() % of_row.size()] : 0.0f);
  }
  return Mask::dense({c.batch, c.heads, c.rows, c.keys}, p);
}

/// Random tensors of a case; keys and values beside each other, token by token, as caches lay them out.
template <class T>
class Problem {
 public:
  Problem(const Case& c, Index head_dim)
      : case_(c),
        queries_(drawn({c.batch, c.heads, c.rows, head_dim}, 2)),
        kv_(drawn({c.batch, c.keys, 2, c.kv_heads, head_dim}, 1)),
        bias_(DType::f32, {1, c.heads, c.rows, c.biased ? c.keys : 0}) {
    const auto part_of = [&](Index which) {
      TensorView view = kv_.view();
      view.data = kv_.view().template at<T>(0, 0, which, 0, 0);
      view.rank = 4;
      view.shape = {c.batch, c.kv_heads, c.keys, head_dim};
      view.strides = {c.keys * 2 * c.kv_heads * head_dim, head_dim, 2 * c.kv_heads * head_dim, 1};
      return view;
    };
    inputs.queries = queries_.view();
    inputs.keys = part_of(0);
    inputs.values = part_of(1);
    inputs.scaling = 0.3f;
    inputs.causal = c.causal;
    if (c.biased) {
      std::normal_distribution<float> draw;
      for (float& x : bias_.span<float>()) x = random_() % 8 == 0 ? -std::numeric_limits<float>::max() : draw(random_);
      inputs.attention_mask = bias_.view();
    }
    for (Index head = 0; c.sinks && head < c.heads; ++head) sinks.push_back(static_cast<float>(head) - 1);
  }

  AttentionOptions options() const {
    AttentionOptions options;
    options.sink_logits = sinks;
    if (case_.soft_cap > 0) options.soft_cap = case_.soft_cap;
    return options;
  }
  std::size_t lse_size() const { return static_cast<std::size_t>(case_.batch * case_.heads * case_.rows); }
  std::size_t output_size() const { return static_cast<std::size_t>(queries_.view().elements()); }

  const Tensor& queries() const { return queries_; }
  const Tensor& kv() const { return kv_; }
  const Tensor& bias() const { return bias_; }

  AttentionInputs inputs;
  std::vector<float> sinks;

 private:
  Tensor drawn(std::initializer_list<Index> shape, float size) {
    std::normal_distribution<float> draw(0, size);
    Tensor tensor(dtype_of<T>, shape);
    for (T& x : tensor.span<T>()) x = from_float<T>(draw(random_));
    return tensor;
  }

  std::mt19937 random_{7};
  Case case_;
  Tensor queries_, kv_, bias_;
};

template <class T>
void expect_equal(const AttentionResult& expected, const std::vector<T>& output, const std::vector<float>& lse,
                  double tolerance, double lse_tolerance) {
  const auto wanted = expected.output.span<T>();
  const auto wanted_lse = expected.lse.span<float>();
  for (std::size_t i = 0; i < output.size(); ++i)
    ASSERT_NEAR(to_float(output[i]), to_float(wanted[i]), tolerance) << "element " << i;
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(wanted_lse[i])) {
      ASSERT_EQ(lse[i], wanted_lse[i]) << "row " << i;
    } else {
      ASSERT_NEAR(lse[i], wanted_lse[i], lse_tolerance) << "row " << i;
    }
  }
}

/// (n, h, d) F32, of (1, h, n, d).
inline Tensor by_token(const TensorView& tensor) {
  const Index heads = tensor.size(1), count = tensor.size(2), d = tensor.size(3);
  Tensor out(DType::f32, {count, heads, d});
  float* to = out.span<float>().data();
  for (Index i = 0; i < count; ++i) {
    for (Index head = 0; head < heads; ++head, to += d)
      load_row(head_matrix(tensor, 0, head), i, 1, {to, static_cast<std::size_t>(d)});
  }
  return out;
}

}  // namespace reticle::cuda
