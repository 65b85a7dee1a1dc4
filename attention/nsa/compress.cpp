#include <algorithm>
#include <string>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/rope.hpp>
#include <reticle/attention/nsa/compress.hpp>

namespace reticle {
namespace {

/// The windows of all heads, as forward and backward read them.
class Windows {
 public:
  Windows(const TensorView& x, std::span<const Index> cu_seqlens, const CompressionWeights& weights,
          const NsaConfig& config)
      : x_(x), weights_(weights), config_(config) {
    config.validate();
    require_rank(x, 3, "compress: x");
    require_on(x, Device::Kind::cpu, "compress: x");
    require_offsets(cu_seqlens, x.size(0), "compress: cu_seqlens");
    require(x, "compress: x", {x.size(0), heads(), width()});
    const Index k = config.kernel_size;
    if (config.compress_type == Compression::avgpool) {
      if (weights.weight) throw ShapeError("compress: avgpool takes no weight; given is " + weights.weight->describe());
    } else {
      if (!weights.weight) throw ShapeError("compress: weightedpool and linear need a weight");
      if (config.compress_type == Compression::weightedpool) {
        require(*weights.weight, "compress: weight", {heads(), k});
      } else {
        require(*weights.weight, "compress: weight", {heads(), k * width(), width()});
      }
    }
    if (weights.position_embedding)
      require(*weights.position_embedding, "compress: position_embedding", {heads(), k, width()});
    for (std::size_t i = 1; i < cu_seqlens.size(); ++i) {
      for (Index w = 0; w < config.compressed_length(cu_seqlens[i] - cu_seqlens[i - 1]); ++w)
        first_.push_back(cu_seqlens[i - 1] + w * config.kernel_stride);
      cu_seqlens_.push_back(static_cast<Index>(first_.size()));
    }
  }

  Index heads() const { return x_.size(1); }
  Index width() const { return x_.size(2); }
  Index count() const { return static_cast<Index>(first_.size()); }
  const std::vector<Index>& cu_seqlens() const { return cu_seqlens_; }
  /// The number of the token that is element k of a window.
  Index token(Index window, Index k) const { return first_[static_cast<std::size_t>(window)] + k; }
  const float* token_data(Index token, Index head) const { return x_.at<float>(token, head, 0); }
  /// (kernel_size, head_dim); null without position embedding.
  const float* embedding(Index head) const {
    return weights_.position_embedding ? weights_.position_embedding->at<float>(head, 0, 0) : nullptr;
  }
  /// The weight of a window's token k in pooling.
  float pool(Index head, Index k) const {
    return weights_.weight ? *weights_.weight->at<float>(head, k) : 1 / static_cast<float>(config_.kernel_size);
  }
  /// The windows as rows of a matrix, with the embedding added: (count, kernel_size * head_dim).
  Tensor rows(Index head) const {
    const Index k = config_.kernel_size, d = width();
    Tensor rows(DType::f32, {count(), k * d});
    float* to = rows.span<float>().data();
    for (Index window = 0; window < count(); ++window) {
      for (Index i = 0; i < k; ++i, to += d) {
        std::copy_n(token_data(token(window, i), head), d, to);
        if (embedding(head) != nullptr) add_scaled(embedding(head) + i * d, 1, d, to);
      }
    }
    return rows;
  }
  static void add_scaled(const float* from, float factor, Index count, float* to) {
    for (Index i = 0; i < count; ++i) to[i] += factor * from[i];
  }

 private:
  static void require(const TensorView& view, const char* name, std::initializer_list<Index> shape) {
    const TensorView wanted(nullptr, DType::f32, shape);
    if (view.dtype != DType::f32 || view.rank != wanted.rank || view.shape != wanted.shape || !view.contiguous())
      throw ShapeError(std::string(name) + ": is " + view.describe() + "; expected contiguous " + wanted.describe());
  }

  const TensorView& x_;
  const CompressionWeights& weights_;
  const NsaConfig& config_;
  std::vector<Index> first_, cu_seqlens_{0};
};

/// One head's (kernel_size * head_dim, head_dim), transposed to the (out, in) of `linear`.
Tensor transposed(const TensorView& weight, Index head) {
  const Index in = weight.size(1), out = weight.size(2);
  Tensor result(DType::f32, {out, in});
  float* to = result.span<float>().data();
  for (Index o = 0; o < out; ++o) {
    for (Index i = 0; i < in; ++i) *to++ = *weight.at<float>(head, i, o);
  }
  return result;
}

}  // namespace

Packed compress(const TensorView& x, std::span<const Index> cu_seqlens, const CompressionWeights& weights,
                const NsaConfig& config, const Context& context) {
  const Windows windows(x, cu_seqlens, weights, config);
  const Index heads = windows.heads(), d = windows.width(), k = config.kernel_size;
  Packed result{Tensor(DType::f32, {windows.count(), heads, d}), windows.cu_seqlens()};
  float* const to = result.data.span<float>().data();
  if (config.compress_type == Compression::linear) {
    for (Index head = 0; head < heads; ++head) {
      const Tensor y = linear(windows.rows(head), transposed(*weights.weight, head), context);
      for (Index window = 0; window < windows.count(); ++window)
        std::copy_n(y.view().at<float>(window, 0), d, to + (window * heads + head) * d);
    }
    return result;
  }
  context.for_each_chunk(windows.count(), 64, [&](Index, Index begin, Index end) {
    for (Index window = begin; window < end; ++window) {
      for (Index head = 0; head < heads; ++head) {
        float* y = to + (window * heads + head) * d;
        std::fill_n(y, d, 0.0f);
        for (Index i = 0; i < k; ++i) {
          const float weight = windows.pool(head, i);
          Windows::add_scaled(windows.token_data(windows.token(window, i), head), weight, d, y);
          if (windows.embedding(head) != nullptr) Windows::add_scaled(windows.embedding(head) + i * d, weight, d, y);
        }
      }
    }
  });
  return result;
}

CompressionGradients compress_backward(const TensorView& x, std::span<const Index> cu_seqlens,
                                       const CompressionWeights& weights, const NsaConfig& config, const TensorView& dy,
                                       const Context& context) {
  const Windows windows(x, cu_seqlens, weights, config);
  const Index heads = windows.heads(), d = windows.width(), k = config.kernel_size;
  const TensorView wanted(nullptr, DType::f32, {windows.count(), heads, d});
  if (dy.dtype != DType::f32 || dy.rank != 3 || dy.shape != wanted.shape || !dy.contiguous())
    throw ShapeError("compress_backward: dy is " + dy.describe() + "; expected contiguous " + wanted.describe());
  CompressionGradients gradients{zeros_like(x), std::nullopt, std::nullopt};
  if (weights.weight) gradients.weight = zeros_like(*weights.weight);
  if (weights.position_embedding) gradients.position_embedding = zeros_like(*weights.position_embedding);
  float* const dx = gradients.x.span<float>().data();
  // Heads share nothing, and each is summed in the order of its windows.
  context.for_each_chunk(heads, 1, [&](Index, Index head, Index) {
    float* const dpe =
        gradients.position_embedding ? gradients.position_embedding->span<float>().data() + head * k * d : nullptr;
    // Adds a gradient to a token of a window and to its position embedding.
    const auto add_to_tokens = [&](Index window, Index i, const float* from, float factor) {
      Windows::add_scaled(from, factor, d, dx + (windows.token(window, i) * heads + head) * d);
      if (dpe != nullptr) Windows::add_scaled(from, factor, d, dpe + i * d);
    };
    if (config.compress_type == Compression::linear) {
      Tensor head_dy(DType::f32, {windows.count(), d});
      for (Index window = 0; window < windows.count(); ++window)
        std::copy_n(dy.at<float>(window, head, 0), d, head_dy.span<float>().data() + window * d);
      const LinearGradients linear = linear_backward(windows.rows(head), transposed(*weights.weight, head), head_dy);
      float* dw = gradients.weight->span<float>().data() + head * k * d * d;
      for (Index in = 0; in < k * d; ++in) {
        for (Index out = 0; out < d; ++out) *dw++ = *linear.weight.view().at<float>(out, in);
      }
      for (Index window = 0; window < windows.count(); ++window) {
        for (Index i = 0; i < k; ++i) add_to_tokens(window, i, linear.x.view().at<float>(window, i * d), 1);
      }
      return;
    }
    std::vector<double> dw(static_cast<std::size_t>(k), 0);
    for (Index window = 0; window < windows.count(); ++window) {
      const float* g = dy.at<float>(window, head, 0);
      for (Index i = 0; i < k; ++i) {
        add_to_tokens(window, i, g, windows.pool(head, i));
        if (!gradients.weight) continue;
        const float* token = windows.token_data(windows.token(window, i), head);
        const float* embedding = windows.embedding(head);
        for (Index j = 0; j < d; ++j)
          dw[static_cast<std::size_t>(i)] +=
              static_cast<double>(g[j]) *
              static_cast<double>(token[j] + (embedding != nullptr ? embedding[i * d + j] : 0));
      }
    }
    if (gradients.weight) std::copy(dw.begin(), dw.end(), gradients.weight->span<float>().begin() + head * k);
  });
  return gradients;
}

}  // namespace reticle
