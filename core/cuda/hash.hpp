// Scores by learned hash codes in device memory.
#pragma once

#include <memory>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/ops/hash_codes.hpp>

namespace reticle::cuda {

/// Codes of keys by layer, kept so that a decode step codes new ones only. Memory: bits / 8 bytes per key and query
/// head and layer, and 4 per key and row; the weights.
class HashScorer {
 public:
  /// (b * hq * sq, sk) in device memory, until the next call: the bits that a key's code shares with the query's less
  /// the others, -infinity for keys that causality forbids. Keys are those of the layer's last call and new ones behind
  /// them; `rows` and `most_keys` are the most there will be. Three launches; waits when a layer's weights come first.
  /// ShapeError when the weights are for other heads; DeviceError for MLPs that are too wide.
  float* score(const AttentionInputs& inputs, const LearnedHash& hash, Index rows, Index most_keys, Stream stream);
  /// Forgets the codes: before the keys of another sequence.
  void reset();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
