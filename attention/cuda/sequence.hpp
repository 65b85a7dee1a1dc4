// The state of a sequence whose tensors lie on a GPU.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle::cuda {

/// Copies of a layer's keys and values in host memory, for maskers that choose on the host. Copied in full when a
/// sequence begins and then token by token, with spare capacity.
class HostCopies {
 public:
  /// Copies new tokens; keys() and values() are valid until the next call. Waits for context.stream.
  void follow(const AttentionInputs& inputs, const Context& context);
  TensorView keys() const { return keys_.view().slice(2, 0, known_); }
  TensorView values() const { return values_.view().slice(2, 0, known_); }
  /// Forgets keys from position `keys` on; they are copied again.
  void truncate(Index keys) { known_ = std::min(known_, keys); }

 private:
  Tensor keys_, values_;
  Index known_ = 0;
};

/// Inputs with their tensors copied to the host. `copies` must outlive them.
class HostInputs {
 public:
  HostInputs(const AttentionInputs& inputs, HostCopies& copies, const Context& context);
  const AttentionInputs& inputs() const { return inputs_; }

 private:
  Tensor queries_, attention_mask_;
  std::vector<Tensor> extras_;
  std::vector<NamedTensor> named_;
  AttentionInputs inputs_;
};

/// The state of all layers of one sequence, or of a batch of sequences.
class DeviceSequence {
 public:
  HostCopies& copies(int layer) { return copies_[layer]; }
  /// The decoder that chooses a step's keys on the GPU and attends to them, for at least this many rows and keys; a
  /// larger one is made when there are more.
  SparseDecoder& decoder(Index rows, Index keys, Stream stream);
  /// Same as SequenceState's functions. Data derived from keys is computed again from the keys that are left.
  void truncate(Index keys);
  void select() { reset(); }
  void reset();

 private:
  std::map<int, HostCopies> copies_;
  std::optional<SparseDecoder> decoder_;
  Index rows_ = 0, max_keys_ = 0;
};

}  // namespace reticle::cuda
