// Collisions under locality-sensitive hashing (LSH), in device memory.
#pragma once

#include <cstdint>
#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

/// Keeps the codes of keys by layer, so that a decode step codes only new keys. Memory: tables * bits / 8 bytes per
/// key, KV head and layer, 4 per key and row, and the projections.
class CollisionScorer {
 public:
  /// Scores (b * hq * sq, sk) in device memory, valid until the next call: the probability of a collision for keys that
  /// collide with the query, 0 for others and for keys that causality forbids. Keys must be those of the layer's last
  /// call, with new ones appended; `rows` and `most_keys` are upper limits for all calls. Means and norms leave out
  /// keys whose byte in `reachable` (b * hkv, keys) is 0; null: all keys count. Four launches; for a layer's first keys
  /// one more, and waiting for the projections. DeviceError for a head_dim above 256, recorded projections, or rows
  /// that are not contiguous.
  float* score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys,
               const std::uint8_t* reachable, Stream stream);
  /// Forgets the codes; to be called before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
