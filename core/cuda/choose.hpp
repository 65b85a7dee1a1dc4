// Masks as lists of keys in device memory, chosen there.
#pragma once

#include <memory>
#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

/// For every (batch, head, query): counts[i] keys at indices[i * list_size], ascending, in device memory.
struct KeyLists {
  const std::int32_t* indices = nullptr;
  const std::int32_t* counts = nullptr;
  const float* p = nullptr;  // of every entry, laid out alike; null: 1
  Index list_size = 0;
};

/// Those of all rows of a shape as a Mask on the GPU: a copy, queued on the stream.
RETICLE_API Mask mask_of_lists(const MaskShape& shape, const KeyLists& lists, Stream stream);
/// Entries of the lists of so many rows. Waits for the stream.
RETICLE_API Index entries_of_lists(const KeyLists& lists, Index rows, Stream stream);

/// Takes rows through chains of rules on the device: what the maskers that say such rules choose on the CPU, where the
/// scores agree bit for bit. A launch, one more for exact scores and two for those of pages; no waiting. Memory, made
/// once: 16 bytes per key and row. Bounds of pages and hash codes are kept by layer, so that a decode step reads new
/// keys only: 8 bytes per element of head_dim and page, bits / 8 bytes per key and query head, and 4 for its score.
class RETICLE_API KeyChooser {
 public:
  /// For up to `rows` = batch * heads * queries rows of up to `most_keys` keys. ValueError when there are none.
  KeyChooser(Index rows, Index most_keys, Stream stream);

  /// inputs.causal and inputs.layer count, keys are those of the layer's last call and new ones behind them; values are
  /// not read. Tensors as for dot_scores. The lists are this chooser's, and its copies', until it chooses again.
  /// ShapeError for more rows or keys than it was made for; ValueError for more than 8 rules or none, or two that keep
  /// pages, or go by codes; DeviceError for an attention mask that is not F32. `counts`: where the lists' counts go if
  /// somebody wants them, one for each row. `fitted`: the same inputs as kernels of exact scores and of pages read
  /// them, where that is other (FittedInputs); codes are made of keys as they are.
  KeyLists choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream,
                  std::int32_t* counts = nullptr, const AttentionInputs* fitted = nullptr) const;
  /// Forgets the bounds of pages and the codes: before the keys of another sequence.
  void reset() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
