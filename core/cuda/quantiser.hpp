// Scores of product-quantised keys, in device memory.
#pragma once

#include <cstdint>
#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

/// Keeps codebooks and codes of keys by layer, so that a decode step encodes only new keys. Memory: 2 bytes per part,
/// key and KV head, and 4 per key and row.
class QuantisedScorer {
 public:
  /// Scores (b * hq * sq, sk) in device memory, valid until the next call: sums of entries of the query's table,
  /// -infinity for keys before recipe.init_offset and for keys that causality forbids. Keys must be those of the
  /// layer's last call, with new ones appended; `rows` and `most_keys` are upper limits for all calls. Codebooks are
  /// trained on the CPU, from the first keys of a sequence, without those whose byte in `reachable` (b * hkv, keys) is
  /// 0 (null: all keys): that call copies the keys to the host and waits; other calls are two launches. DeviceError for
  /// tables that are too large.
  float* score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys,
               const std::uint8_t* reachable, Stream stream);
  /// Forgets codebooks and codes; to be called before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
