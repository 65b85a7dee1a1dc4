// Rules on the CPU: what core/cuda/choose.hpp does with them where the tensors lie on a GPU.
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

/// What rules keep of a layer's keys between calls; one of each, so that a masker has at most one rule of each kind.
struct RETICLE_API KeptByRules {
  std::optional<PageBounds> pages;
  std::optional<HashCodes> hashed;
  std::optional<QuantisedKeys> quantised;
  std::optional<LshCodes> colliding;

  void truncate(Index keys);
  void select(std::span<const Index> rows);

 private:
  /// Calls use with each that there is.
  template <class Use>
  void each(Use&& use) {
    if (pages) use(*pages);
    if (hashed) use(*hashed);
    if (quantised) use(*quantised);
    if (colliding) use(*colliding);
  }
};

/// The keys that a masker's rules choose, one rule after another, beyond those that `previous` has. ValueError for two
/// rules that keep the same, and for rules that cannot be followed: pages of no keys, codes without weights.
RETICLE_API Mask select_by_rules(std::span<const Rule> rules, const AttentionInputs& inputs, const Mask& previous,
                                 KeptByRules& kept, const Context& context);

/// How many of `keys` keys a row gets from rules; none where that depends on the scores, or on what meets.
RETICLE_API std::optional<Index> entries_of(std::span<const Rule> rules, Index keys);

}  // namespace reticle
