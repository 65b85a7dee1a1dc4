// One step of streaming softmax over up to kKeysPerStep keys that a few rows share. Internal to the executor.
#pragma once

#include <limits>

#include <reticle/core/ops/dot.hpp>

namespace reticle {

inline constexpr Index kKeysPerStep = 256;

/// Rows that are folded together: each value is loaded once for all of them.
inline constexpr Index kRowsPerStep = 4;

/// Maximum score and sum of weights so far, and the unnormalised output (dv).
struct RowState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  float* output = nullptr;
};

/// Folds `count` keys into the states of `rows` rows: with m a row's new maximum, weight_i = exp(scores_i - m) *
/// inverse_p_i; the output is rescaled to m, and weight_i * values[indices_i] is added. `scores` (rows, kKeysPerStep)
/// is overwritten with the weights; inverse_p has the same layout, null: all 1. values (n, dv) F32, F16 or BF16 with
/// stride 1 along dv. A NaN or +infinite score makes state.sum NaN.
void fold_keys(float* scores, Index rows, const float* inverse_p, const TensorView& values, const std::int32_t* indices,
               Index count, RowState* states, const UpcomingRows& next = {});

/// Sets the scores of keys whose bit `row` of `attended` is not set to -infinity.
void drop_unattended(float* scores, const std::uint64_t* attended, Index row, Index count);

}  // namespace reticle
