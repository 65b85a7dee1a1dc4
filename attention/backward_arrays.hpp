// The arrays of a BackwardTile as the kernels read and write them, once per instruction set. Internal to its source.
#pragma once

#include <reticle/core/base/types.hpp>

namespace reticle {

/// The arrays of a BackwardTile, as the kernels read and write them.
struct BackwardArrays {
  Index head_dim, value_dim, query_stride, value_stride, rows;
  const float *queries, *d_outputs, *query_rows, *d_output_rows, *lse, *delta;
  float *weights, *d_scores, *d_queries, *d_keys, *d_values;
};

}  // namespace reticle
