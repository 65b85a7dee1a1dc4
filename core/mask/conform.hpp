// Chooses a mask's representation; every threshold between representations is here. All follow from bytes: 4 per column
// or p, 8 per run or word of 64 positions. Internal to core/mask.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Counts over a mask's stored rows: enough to choose its representation.
struct MaskCounts {
  Index runs = 0;     // maximal runs
  Index entries = 0;  // positions
  bool weighted = false;

  MaskCounts& operator+=(const MaskCounts& other) {
    runs += other.runs;
    entries += other.entries;
    weighted |= other.weighted;
    return *this;
  }
  MaskCounts& operator+=(const RowCounts& row) {
    runs += row.runs;
    entries += row.entries;
    return *this;
  }
};

/// The smallest representation for these counts. Ties go to the first of runs, csr, bits, dense. The choice depends on
/// the content alone, so results never depend on how the operands were stored.
MaskKind conform(const MaskShape& shape, const MaskCounts& counts);

/// True if the union of two column lists, one of them weighted, should be built dense: its expected density
/// (independent operands) exceeds 1/2, where 4 bytes per position beat 8 bytes per entry.
bool forms_dense_union(const Mask& a, const Mask& b);

/// True if a 0/1 union with at least `entries` entries is certainly smaller as bits than as a column list.
bool forms_bit_union(const MaskShape& shape, Index entries);

}  // namespace reticle
