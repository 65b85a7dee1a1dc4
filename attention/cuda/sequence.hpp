// What is kept of a sequence whose tensors lie on a GPU.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include <reticle/attention/cuda/attention.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle::cuda {

/// A layer's keys and values in the host's memory, for the maskers that choose there: copied once, when a sequence
/// begins, and then token by token, with room to grow.
class HostCopies {
 public:
  /// Brought up to date; valid until the next call. Waits for context.stream.
  void follow(const AttentionInputs& inputs, const Context& context);
  TensorView keys() const { return keys_.view().slice(2, 0, known_); }
  TensorView values() const { return values_.view().slice(2, 0, known_); }
  /// Keys from position `keys` on are copied again.
  void truncate(Index keys) { known_ = std::min(known_, keys); }

 private:
  Tensor keys_, values_;
  Index known_ = 0;
};

/// Inputs whose tensors were copied to the host. `copies` must outlive it.
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

/// The layers of one sequence, or batch of them.
class DeviceSequence {
 public:
  HostCopies& copies(int layer) { return copies_[layer]; }
  /// What chooses a step's keys on the GPU and attends to them, for so many rows and keys: made again when there are
  /// more.
  SparseDecoder& decoder(Index rows, Index keys, Stream stream);
  /// As SequenceState's. What choosing keeps is made again from the keys that are there.
  void truncate(Index keys);
  void select() { reset(); }
  void reset();

 private:
  std::map<int, HostCopies> copies_;
  std::optional<SparseDecoder> decoder_;
  Index rows_ = 0, most_keys_ = 0;
};

}  // namespace reticle::cuda
