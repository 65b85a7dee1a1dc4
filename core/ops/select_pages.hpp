// Selects whole pages of keys by upper bounds of their scores. Quest (Tang et al. 2024).
#pragma once

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

/// Updates the bounds with the keys beyond those seen, then selects as a rule of kind `pages` says.
RETICLE_API Mask select_pages(const Rule& rule, const AttentionInputs& inputs, PageBounds& bounds,
                              const Context& context);

}  // namespace reticle
