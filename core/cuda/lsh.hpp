// Collisions under locality-sensitive hashing in device memory.
#pragma once

#include <cstdint>
#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/ops/lsh.hpp>

namespace reticle::cuda {

/// Codes of keys by layer, kept so that a decode step codes new ones only. Memory: tables * bits / 8 bytes per key of a
/// KV head and layer, and 4 per key and row; the projections.
class CollisionScorer {
 public:
  /// (b * hq * sq, sk) in device memory, until the next call: the probability of colliding for keys that collide with
  /// the query, 0 for others and those that causality forbids. Keys are those of the layer's last call and new ones
  /// behind them; `rows` and `most_keys` are the most there will be. What is made of many keys leaves those out whose
  /// byte in `reachable` (b * hkv, keys), if it is given, is 0. Four launches; one more, and waiting for the
  /// projections, when a layer's first keys come. DeviceError for a head_dim above 256, recorded projections, or rows
  /// that are not contiguous.
  float* score(const AttentionInputs& inputs, const LshRecipe& recipe, Index rows, Index most_keys,
               const std::uint8_t* reachable, Stream stream);
  /// Forgets the codes: before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
