// Masks as lists of keys, chosen on the device and kept in its memory.
#pragma once

#include <memory>
#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/rule.hpp>

namespace reticle::cuda {

/// For every (batch, head, query) number i, counts[i] ascending keys from indices[i * list_size] on, in device memory.
struct KeyLists {
  const std::int32_t* indices = nullptr;
  const std::int32_t* counts = nullptr;
  const float* p = nullptr;  // for each entry, in the same layout; null: 1
  Index list_size = 0;
};

/// The lists for all rows of a shape as a Mask on the GPU: a copy, queued on the stream.
RETICLE_API Mask mask_of_lists(const MaskShape& shape, const KeyLists& lists, Stream stream);
/// Sum of the counts of `rows` lists. Waits for the stream.
RETICLE_API Index entries_of_lists(const KeyLists& lists, Index rows, Stream stream);

/// Runs chains of rules for rows on the device. Chooses the same keys as the rules' maskers do on the CPU, if scores
/// agree bit for bit. One launch, one more for exact scores and two for page scores; no waiting. Memory, allocated
/// once: 16 bytes per key and row. Page bounds and hash codes are kept by layer, so that a decode step reads only new
/// keys: 8 bytes per element of head_dim and page, bits / 8 bytes per key and query head, and 4 for its score.
class RETICLE_API KeyChooser {
 public:
  /// For up to `rows` = batch * heads * queries rows of up to `most_keys` keys. ValueError if either is 0.
  KeyChooser(Index rows, Index most_keys, Stream stream);

  /// Chooses keys for the rows of `inputs`; causality and the layer's number are taken into account, values are not
  /// read. Keys must be those of the layer's last call, with new ones appended. Tensors as for dot_scores. The lists
  /// belong to this chooser and its copies, and are valid until the next call. `counts`, if not null: where to write
  /// the lists' counts, one for each row. `fitted`, if not null: the inputs as fitted for the kernels of exact scores
  /// and pages (FittedInputs); codes are always made from `inputs`. ShapeError for more rows or keys than the
  /// constructor was given; ValueError for no rules or more than 8, or for two rules that use pages or codes;
  /// DeviceError for an attention mask that is not F32.
  KeyLists choose(const AttentionInputs& inputs, std::span<const Rule> rules, Stream stream,
                  std::int32_t* counts = nullptr, const AttentionInputs* fitted = nullptr) const;
  /// Forgets page bounds and codes; to be called before the keys of another sequence.
  void reset() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace reticle::cuda
