// The configuration of Native Sparse Attention (Yuan et al. 2025): how much each of its three branches sees.
#pragma once

#include <optional>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// How a window of keys (or values) becomes one compressed key.
enum class Compression : std::uint8_t {
  avgpool,       // their mean
  weightedpool,  // a learned weighted sum, w (heads, kernel_size)
  linear,        // a learned linear map of all of them, w (heads, kernel_size * head_dim, head_dim)
};

struct RETICLE_API NsaConfig {
  Compression compress_type = Compression::weightedpool;
  Index kernel_size = 32, kernel_stride = 16, block_size = 64, topk = 16, init_blocks = 1, local_blocks = 2;
  Index window_size = 512;

  static constexpr const char* docs[] = {
      "how a window of keys (or values) becomes a compressed one",
      "tokens in a compressed key",
      "tokens from one compressed key to the next; divides kernel_size and block_size",
      "tokens in a selected block",
      "blocks that a query selects, init_blocks and local_blocks included",
      "first blocks, always selected",
      "the query's own block and those before it, always selected",
      "tokens before the query's own that the window branch sees"};

  /// ConfigError that names the field and the rule.
  void validate() const;
  /// The number of compressed tokens of a sequence; only complete windows count.
  Index compressed_length(Index tokens) const {
    return tokens < kernel_size ? 0 : (tokens - kernel_size) / kernel_stride + 1;
  }
};

}  // namespace reticle
