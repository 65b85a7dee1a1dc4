#include <algorithm>

#include <reticle/core/mask/conform.hpp>

namespace reticle {

MaskKind conform(const MaskShape& shape, const MaskCounts& counts) {
  if (counts.entries == 0) return MaskKind::empty;
  const Index rows = shape.stored_rows();
  if (counts.entries == rows * shape.keys && !counts.weighted) return MaskKind::full;
  const Index p = counts.weighted ? Index{sizeof(float)} : 0;
  const Index run_bytes = counts.runs * (Index{sizeof(Interval)} + p);
  const Index csr_bytes = counts.entries * (Index{sizeof(std::int32_t)} + p);
  const Index row_ptr_bytes = rows * Index{sizeof(Index)};
  const Index sparse_bytes = row_ptr_bytes + std::min(run_bytes, csr_bytes);
  const Index dense_bytes = counts.weighted ? rows * shape.keys * Index{sizeof(float)}
                                            : rows * BitDense::words_per_row(shape.keys) * Index{sizeof(std::uint64_t)};
  if (dense_bytes < sparse_bytes) return counts.weighted ? MaskKind::dense : MaskKind::bits;
  return run_bytes <= csr_bytes ? MaskKind::runs : MaskKind::csr;
}

bool forms_dense_union(const Mask& a, const Mask& b) {
  constexpr double kDenseBytes = 4, kListBytes = 8;  // per position, per entry
  return a.density() + b.density() - a.density() * b.density() > kDenseBytes / kListBytes;
}

bool forms_bit_union(const MaskShape& shape, Index entries) {
  // The same comparison as conform's of bits with csr: the 8 bytes of row_ptr that a csr row has cancel one of the
  // row's words.
  const Index bytes_as_bits =
      (BitDense::words_per_row(shape.keys) - 1) * Index{sizeof(std::uint64_t)} * shape.stored_rows();
  return entries * Index{sizeof(std::int32_t)} > bytes_as_bits;
}

}  // namespace reticle
