// Shape operations: slice, append (decode), broadcast, transpose.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

enum class Dim : std::uint8_t { batch, heads, queries, keys };

/// The part with indices [begin, end) of one dimension. ShapeError when out of range.
RETICLE_API Mask slice(const Mask& mask, Dim dim, Index begin, Index end, const Context& context = {});
/// The mask with `count` more keys at the end, which no query attends to yet: the start of the next decode step.
RETICLE_API Mask append_keys(const Mask& mask, Index count, const Context& context = {});
/// The queries of `mask`, then those of `rows`. ShapeError unless batch, heads and keys are equal.
RETICLE_API Mask append_queries(const Mask& mask, const Mask& rows, const Context& context = {});
/// Broadcasting by numpy's rule: extents of 1 become the wanted ones, at no cost in storage. ShapeError when another
/// extent differs.
RETICLE_API Mask broadcast_to(const Mask& mask, const MaskShape& shape);
/// (batch, heads, keys, queries): for each key the queries that attend to it. For backward passes.
RETICLE_API Mask transpose(const Mask& mask, const Context& context = {});

}  // namespace reticle
