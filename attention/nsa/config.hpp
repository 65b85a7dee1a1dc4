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
  Index kernel_size = 32;    // tokens per compressed token
  Index kernel_stride = 16;  // tokens between the beginnings of windows; divides kernel_size and block_size
  Index block_size = 64;     // tokens per selected block
  Index topk = 16;           // blocks that a query selects, including those of the next two fields
  Index init_blocks = 1;     // first blocks, always selected
  Index local_blocks = 2;    // the query's own block and those before it, always selected
  Index window_size = 512;   // tokens before the query's own that the window branch sees

  /// ConfigError that names the field and the rule.
  void validate() const;
  /// The number of compressed tokens of a sequence; only complete windows count.
  Index compressed_length(Index tokens) const {
    return tokens < kernel_size ? 0 : (tokens - kernel_size) / kernel_stride + 1;
  }
};

}  // namespace reticle
