// Rules on the CPU: what core/cuda/choose.hpp does with them where the tensors lie on a GPU.
#pragma once

#include <optional>
#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// The keys that a masker's rules choose, one rule after another, beyond those that `previous` has. Sinks, windows,
/// top-k, top-p and uniform samples, which keep nothing between calls; Error for others, which are their maskers' own.
RETICLE_API Mask select_by_rules(std::span<const Rule> rules, const AttentionInputs& inputs, const Mask& previous,
                                 const Context& context);

/// How many of `keys` keys a row gets from rules; none where that depends on the scores, or on what meets.
RETICLE_API std::optional<Index> entries_of(std::span<const Rule> rules, Index keys);

}  // namespace reticle
