// One step of streaming softmax over up to kKeysPerStep keys of one row. Internal to the executor.
#pragma once

#include <limits>

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

inline constexpr Index kKeysPerStep = 256;

/// Max and sum of the weights so far; the unnormalised output stands beside it.
struct RowState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

/// Folds `count` keys into (state, output): with m the new maximum, weight_i = exp(scores_i - m) * inverse_p_i; output
/// is rescaled to m and weight_i * values[indices_i] added. `scores` is overwritten with the weights. inverse_p null:
/// all 1. values (n, dv) F32, F16 or BF16 with stride 1 along dv. A NaN or +infinite score makes state.sum NaN.
void fold_keys(float* scores, const float* inverse_p, const TensorView& values, const std::int32_t* indices,
               Index count, RowState& state, float* output);

}  // namespace reticle
