// The arrays of a TileState as the kernels read and write them, once per instruction set. Internal to its source.
#pragma once

#include <reticle/attention/bf16_kernel.hpp>
#include <reticle/core/base/machine.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// The arrays of a TileState, as the kernels read and write them.
struct TileArrays {
  Index head_dim, value_dim, rows;
  float *max, *sum;
  const float* queries;
  float *scores, *output;
  Bf16Product product;
  const Bf16Pair* query_pairs;
  Bf16Pair* weight_pairs;
  float scaling;  // of scores, unless the product is exact
};

}  // namespace reticle
