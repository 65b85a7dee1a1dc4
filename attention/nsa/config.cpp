#include <string>

#include <reticle/attention/nsa/config.hpp>
#include <reticle/core/base/error.hpp>

namespace reticle {

void NsaConfig::validate() const {
  const auto demand = [](bool holds, const char* field, Index value, const std::string& rule) {
    if (!holds) throw ConfigError(std::string(field) + ": " + std::to_string(value) + "; expected " + rule);
  };
  constexpr Index kLargest = Index{1} << 24;
  const auto positive = [](Index value) { return value >= 1 && value <= kLargest; };
  demand(positive(kernel_size), "kernel_size", kernel_size, "a number in [1, 2^24]");
  demand(positive(kernel_stride) && kernel_size % kernel_stride == 0, "kernel_stride", kernel_stride,
         "a divisor of kernel_size, " + std::to_string(kernel_size));
  demand(positive(block_size) && block_size % kernel_stride == 0, "block_size", block_size,
         "a multiple of kernel_stride, " + std::to_string(kernel_stride));
  demand(init_blocks >= 0 && init_blocks <= kLargest, "init_blocks", init_blocks, "a number in [0, 2^24]");
  demand(positive(local_blocks), "local_blocks", local_blocks, "a number in [1, 2^24]");
  demand(positive(topk) && topk >= init_blocks + local_blocks, "topk", topk,
         "at least init_blocks + local_blocks, " + std::to_string(init_blocks + local_blocks));
  demand(window_size >= 0 && window_size <= kLargest, "window_size", window_size, "a number in [0, 2^24]");
}

}  // namespace reticle
