// Scores of product-quantised keys in device memory.
#pragma once

#include <cstdint>
#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/ops/product_quantiser.hpp>

namespace reticle::cuda {

/// Codebooks and codes of keys by layer, kept so that a decode step encodes new keys only. Memory: 2 bytes per part and
/// key of a KV head, 4 per key and row.
class QuantisedScorer {
 public:
  /// (b * hq * sq, sk) in device memory, until the next call: sums of the query's table, -infinity for keys before
  /// recipe.init_offset and those that causality forbids. Keys are those of the layer's last call and new ones behind
  /// them; `rows` and `most_keys` are the most there will be. Codebooks are the CPU's, from those first keys of a
  /// sequence whose byte in `reachable` (b * hkv, keys), if it is given, is not 0: that call copies them to the host
  /// and waits; others are two launches. DeviceError for tables that are too large.
  float* score(const AttentionInputs& inputs, const PqRecipe& recipe, Index rows, Index most_keys,
               const std::uint8_t* reachable, Stream stream);
  /// Forgets codebooks and codes: before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
