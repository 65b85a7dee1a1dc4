// What samplers draw a row's keys from.
#pragma once

#include <span>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {

/// The keys in [first, last) that a row sees, that the attention mask allows and that ascending runs have not chosen.
RETICLE_API Gaps candidates_of(const AttentionInputs& inputs, RowId row, std::span<const Run> chosen, Index first = 0,
                               Index last = kMaxColumns);

}  // namespace reticle
