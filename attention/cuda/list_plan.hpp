// A mask as lists of keys, for the decode kernel.
#pragma once

#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle::cuda {

/// The lists that decode_part reads, indexed by (batch, head / sharing, query).
struct RETICLE_API ListPlan {
  int sharing = 1;  // neighbouring heads of a KV head that share a list: 4, 2 or 1
  Csr lists;
};

/// Heads of a KV head share lists if they attend alike at every query of every batch. With `causal`, keys after a row's
/// own position are left out. ShapeError when the heads are not a multiple of kv_heads.
RETICLE_API ListPlan plan_lists(const Mask& mask, Index kv_heads, bool causal, const Context& context = {});

}  // namespace reticle::cuda
