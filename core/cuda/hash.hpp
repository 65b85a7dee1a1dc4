// Scores from learned hash codes, in device memory.
#pragma once

#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

/// Keeps the codes of keys by layer, so that a decode step codes only new keys. Memory: bits / 8 bytes per key, query
/// head and layer, 4 per key and row, and the weights.
class HashScorer {
 public:
  /// Scores (b * hq * sq, sk) in device memory, valid until the next call: the number of bits in which a key's code
  /// agrees with the query's, minus the number in which it differs; -infinity for keys that causality forbids. Keys
  /// must be those of the layer's last call, with new ones appended; `rows` and `most_keys` are upper limits for all
  /// calls. Three launches; waits when a layer's weights are used for the first time. ShapeError when the weights are
  /// for other heads; DeviceError for MLPs that are too wide.
  float* score(const AttentionInputs& inputs, const Rule& rule, Index rows, Index most_keys, Stream stream);
  /// Forgets the codes; to be called before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
