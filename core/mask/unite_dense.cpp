#include <algorithm>
#include <variant>

#include <reticle/core/mask/fast_paths.hpp>

namespace reticle {
namespace {

/// Combines a row of `mask` into row_p, the dense p of the row so far.
template <class Op>
void add_row(const Mask& mask, RowId id, float* row_p) {
  const Index stored = mask.shape().stored_row(id), keys = mask.shape().keys;
  if (const auto* dense = std::get_if<WeightedDense>(&mask.representation())) {
    const float* from = dense->p.data() + stored * keys;
    for (Index k = 0; k < keys; ++k) row_p[k] = Op::p(row_p[k], from[k]);
    return;
  }
  std::visit(
      [&](const auto& rep) {
        for_each_run(rep, stored, keys, [&](Run run) {
          for (std::int32_t k = run.begin; k < run.end; ++k) row_p[k] = Op::p(row_p[k], run.p);
        });
      },
      mask.representation());
}

}  // namespace

// Combines both operands into a dense row of p: 4 bytes per position, and a read and a write per entry of CSR operands.
Mask unite_as_dense(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
  const Index keys = shape.keys, rows = shape.stored_rows();
  Array<float> p(static_cast<std::size_t>(rows * keys));
  Array<Index> run_ptr(static_cast<std::size_t>(rows) + 1);
  const MaskCounts counts = fill_stored_rows(shape, context, [&](Index row, MaskCounts& sum) {
    const RowId id = shape.row_of_stored(row);
    float* row_p = p.data() + row * keys;
    RowCounts union_counts;
    if (a.kind() == MaskKind::csr && b.kind() == MaskKind::csr) {
      const ColumnList left = columns_of(std::get<Csr>(a.representation()), a.shape().stored_row(id));
      const ColumnList right = columns_of(std::get<Csr>(b.representation()), b.shape().stored_row(id));
      union_counts = unite_columns_as_dense(op, left.columns, left.p, left.count, right.columns, right.p, right.count,
                                            row_p, keys, sum.weighted);
    } else {
      std::fill_n(row_p, keys, 0.0f);
      with_functor(op, [&]<class Op>(Op) {
        add_row<Op>(a, id, row_p);
        add_row<Op>(b, id, row_p);
      });
      union_counts = count_dense(row_p, keys, sum.weighted);
    }
    run_ptr[static_cast<std::size_t>(row) + 1] = union_counts.runs;
    sum += union_counts;
  });
  return conformed(shape, WeightedDense{std::move(p)}, std::move(run_ptr), counts, MaskKind::dense, context);
}

}  // namespace reticle
