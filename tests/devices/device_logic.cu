// Runs the logic that CPU and GPU share as device code: random numbers, the order of selection, row operations, number
// formats, merging of states. What it computes is tested on the CPU, where the same functions run; this keeps it
// compilable for every listed architecture.
#include <reticle/attention/state.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/mask/run.hpp>
#include <reticle/core/ops/order_key.hpp>

namespace reticle {

__global__ void shared_logic(const float* scores, float* out, std::uint64_t seed) {
  const auto i = static_cast<std::uint32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  Philox random(seed, 0, 0, 0, i);
  const float p = static_cast<float>(random.below(1000)) / 1000.0f;
  const float combined = row_op::Add::p(p, 0.5f) + row_op::Independent::p(p, 0.5f) + row_op::Intersect::p(p, 0.5f) +
                         row_op::Subtract::p(p, 0.5f) + row_op::Max::p(p, 0.5f);
  const StateMerge merged = merge_states(scores[i], combined);
  out[i] = to_float(from_float<Half>(merged.lse)) + to_float(from_float<BFloat16>(merged.a)) +
           static_cast<float>(order_key(scores[i]));
}

}  // namespace reticle
