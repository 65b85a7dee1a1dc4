// The candidates of samplers: the keys that a row may still draw.
#pragma once

#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {

/// The keys in [first, last) that a row sees, that the attention mask allows and that are not in `chosen`, which are
/// ascending runs.
RETICLE_API Gaps candidates_of(const AttentionInputs& inputs, RowId row, std::span<const Run> chosen, Index first = 0,
                               Index last = kMaxColumns);

}  // namespace reticle
