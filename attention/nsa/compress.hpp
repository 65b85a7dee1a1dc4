// Compresses windows of keys or values: the first branch of Native Sparse Attention.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// The learned parameters of compression; F32.
struct CompressionWeights {
  /// None for avgpool; (heads, kernel_size) for weightedpool; (heads, kernel_size * head_dim, head_dim) for linear,
  /// where row k * head_dim + i is for element i of the window's token k.
  std::optional<TensorView> weight;
  /// Added to the tokens of every window: (heads, kernel_size, head_dim).
  std::optional<TensorView> position_embedding;
};

/// The tokens of several sequences, concatenated.
struct Packed {
  Tensor data;                    // (tokens, heads, head_dim)
  std::vector<Index> cu_seqlens;  // (sequences + 1)
};

/// Compressed token i of a sequence is the mean, weighted sum, or linear map of its tokens x[i * kernel_stride + k], k
/// < kernel_size, to which the position embedding is added. x (tokens, heads, head_dim) F32. A trailing partial window
/// is dropped, so a sequence shorter than kernel_size gives no compressed tokens. ShapeError, naming the tensor.
RETICLE_API Packed compress(const TensorView& x, std::span<const Index> cu_seqlens, const CompressionWeights& weights,
                            const NsaConfig& config, const Context& context = {});

struct CompressionGradients {
  Tensor x;
  std::optional<Tensor> weight, position_embedding;  // present where there are such weights
};
/// Gradients of compress, for dy (compressed tokens, heads, head_dim) F32.
RETICLE_API CompressionGradients compress_backward(const TensorView& x, std::span<const Index> cu_seqlens,
                                                   const CompressionWeights& weights, const NsaConfig& config,
                                                   const TensorView& dy, const Context& context = {});

}  // namespace reticle
