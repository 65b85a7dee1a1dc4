// Whole pages of keys, chosen by the bounds of their scores. Quest (Tang et al. 2024).
#pragma once

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// What a rule of kind `pages` chooses, after the bounds have taken in the keys beyond those seen.
RETICLE_API Mask select_pages(const Rule& rule, const AttentionInputs& inputs, PageBounds& bounds,
                              const Context& context);

}  // namespace reticle
