// Executes rules on the CPU; core/cuda/choose.hpp executes them on a GPU, where the tensors lie.
#pragma once

#include <optional>
#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/hash_codes.hpp>
#include <reticle/core/ops/lsh_codes.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/quantised_keys.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// The state that rules keep about a layer's keys between calls. There is one of each kind, so a masker has at most one
/// rule of each of these kinds.
struct RETICLE_API KeptByRules {
  std::optional<PageBounds> pages;
  std::optional<HashCodes> hashed;
  std::optional<QuantisedKeys> quantised;
  std::optional<LshCodes> colliding;

  void truncate(Index keys);
  void select(std::span<const Index> rows);

 private:
  /// Calls use(state) for each state that exists.
  template <class Use>
  void each(Use&& use) {
    if (pages) use(*pages);
    if (hashed) use(*hashed);
    if (quantised) use(*quantised);
    if (colliding) use(*colliding);
  }
};

/// The keys that a masker's rules choose, one rule after another, beyond those in `previous`. ValueError for two rules
/// that would share one state, and for invalid rules: pages of no keys, codes without weights.
RETICLE_API Mask select_by_rules(std::span<const Rule> rules, const AttentionInputs& inputs, const Mask& previous,
                                 KeptByRules& kept, const Context& context);

/// The number of keys that rules give a row of `keys` keys; absent if it depends on the scores or on how rules overlap.
RETICLE_API std::optional<Index> entries_of(std::span<const Rule> rules, Index keys);

}  // namespace reticle
