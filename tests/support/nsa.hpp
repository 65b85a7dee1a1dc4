// Native Sparse Attention of extents that tests can count.
#pragma once

#include <reticle/attention/nsa/config.hpp>

namespace reticle::testing {

/// Compressed token i holds tokens 4 i to 4 i + 7, block j tokens 8 j to 8 j + 7.
inline constexpr NsaConfig kSmallNsa{
    .kernel_size = 8, .kernel_stride = 4, .block_size = 8, .topk = 4, .window_size = 10};

}  // namespace reticle::testing
