// Which representation a mask takes: every threshold between them. All follow from bytes, at 4 for a column or a p, 8
// for a run or a word of 64 positions. Internal to core/mask.
#pragma once

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// What a mask holds over its stored rows, by count; enough to choose its representation.
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

/// The smallest representation of these counts; of equals the earlier in runs, csr, bits, dense. A function of the
/// content alone, so results never depend on how the operands were stored.
MaskKind conform(const MaskShape& shape, const MaskCounts& counts);

/// Whether a union of two lists of columns, one of them weighted, is formed as p of every position: where, if the two
/// are independent, it takes fewer bytes that way (4 a position against 8 an entry).
bool forms_dense_union(const Mask& a, const Mask& b);

/// Whether a 0/1 union of at least `entries` entries is certain to be smaller as bits than as a list of columns.
bool forms_bit_union(const MaskShape& shape, Index entries);

}  // namespace reticle
