// How rows become a mask. Internal to core.
#pragma once

#include <optional>
#include <span>

#include <reticle/core/mask/conform.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Mask::from_runs, in the representation that is asked for; conform's choice when none is. ShapeError when the content
/// does not fit into it (bits cannot hold a p below 1, empty no entry, full no gap).
Mask assemble(const MaskShape& shape, FunctionRef<void(RowId, FunctionRef<void(Run)>)> rows, const Context& context,
              std::optional<MaskKind> kind = std::nullopt);

/// Mask::from_selections for selectors that serve several queries of one head at a time: rows(first, selections) fills
/// one Selection per row, at most `group` of them, for `first` and the queries after it.
RETICLE_API Mask assemble_selections(const MaskShape& shape, Index group,
                                     FunctionRef<void(RowId first, std::span<Selection>)> rows, const Context& context);

/// Counts of rows, from the second element on, become where each row begins.
void accumulate(Array<Index>& row_ptr);

/// Rows per task: enough of them to pay for handing one out.
Index rows_per_chunk(Index rows);

/// Access to Mask's storage for the operations in core/mask, which vouch for its invariants.
class MaskAssembler {
 public:
  static Mask make(const MaskShape& shape, Representation representation, Index stored_entries, bool weighted) {
    return Mask::make(shape, std::move(representation), stored_entries, weighted);
  }
};

}  // namespace reticle
