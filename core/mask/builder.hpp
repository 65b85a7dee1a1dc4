// Builds masks from rows. Internal to core.
#pragma once

#include <optional>
#include <span>

#include <reticle/core/mask/conform.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Mask::from_runs in representation `kind`, or the one that conform chooses. ShapeError when `kind` cannot hold the
/// content: bits cannot hold a p below 1, empty an entry, full a gap.
Mask assemble(const MaskShape& shape, FunctionRef<void(RowId, FunctionRef<void(Run)>)> rows, const Context& context,
              std::optional<MaskKind> kind = std::nullopt);

/// Mask::from_selections for selectors that handle several queries of one head at a time: rows(first, selections) fills
/// one Selection per row, at most `group` of them, for row `first` and the queries after it.
RETICLE_API Mask assemble_selections(const MaskShape& shape, Index group,
                                     FunctionRef<void(RowId first, std::span<Selection>)> rows, const Context& context);

/// Turns row counts, stored from the second element on, into row offsets (prefix sums) in place.
void accumulate(Array<Index>& row_ptr);

/// Rows per task: enough to outweigh the cost of scheduling a task.
Index rows_per_chunk(Index rows);

/// Access to Mask's storage for the operations in core/mask, which vouch for its invariants.
class MaskAssembler {
 public:
  static Mask make(const MaskShape& shape, Representation representation, Index stored_entries, bool weighted) {
    return Mask::make(shape, std::move(representation), stored_entries, weighted);
  }
};

}  // namespace reticle
