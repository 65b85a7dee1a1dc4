// Compression of a prompt's keys, once, after a dense prefill: a fixed set of kept keys per list of heads, and every
// later key.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

class RETICLE_API KeptKeys {
 public:
  /// Records what is kept of an observed prompt: keys[batch * lists + i], ascending, for the query heads of list i.
  /// `lists` divides the heads.
  void keep(const AttentionInputs& prompt, Index lists, std::vector<std::vector<std::int32_t>> keys);
  /// Prefill: everything. Generation: the kept keys and those after the prompt, up to each query's position.
  /// ValueError, naming the masker, when no prompt was observed; ShapeError for another sequence.
  Mask mask(std::string_view masker, const AttentionInputs& inputs, const Context& context) const;

  /// See Masker::lasting.
  Mask lasting(const AttentionInputs& inputs, const Context& context) const;

  /// CannotFollow if keys of the prompt are removed.
  void truncate(Index keys) const;
  void select(std::span<const Index> rows);

 private:
  SeenKeys seen_;  // the prompt's keys
  Index prompt_ = -1, batch_ = 0, heads_ = 0, lists_ = 0;
  std::vector<std::vector<std::int32_t>> keys_;
};

/// The `capacity` keys of highest importance, where the first `prefix` and the last `recent` keys rank before all
/// others. All maskers of this family keep these.
RETICLE_API std::vector<std::int32_t> keep_highest(std::vector<float> importance, Index capacity, Index prefix,
                                                   Index recent);

}  // namespace reticle
