#include <algorithm>
#include <span>
#include <string>

#include <reticle/attention/cuda/list_plan.hpp>
#include <reticle/core/cuda/row_block.hpp>
#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/reshape.hpp>

namespace reticle::cuda {
namespace {

/// The entries of one row.
struct Entries {
  std::span<const std::int32_t> columns;
  std::span<const float> p;

  Entries(const Csr& csr, Index row) {
    const auto begin = static_cast<std::size_t>(csr.row_ptr[row]),
               count = static_cast<std::size_t>(csr.row_ptr[row + 1]) - begin;
    columns = csr.indices.span().subspan(begin, count);
    if (!csr.p.empty()) p = csr.p.span().subspan(begin, count);
  }
  bool operator==(const Entries& other) const {
    return std::ranges::equal(columns, other.columns) && std::ranges::equal(p, other.p);
  }
};

/// Calls check(row) for every list: the rows of each first head of `sharing`. False as soon as a check is false.
template <class Check>
bool all_of_lists(const MaskShape& shape, int sharing, Check&& check) {
  for (Index row = 0; row < shape.rows(); ++row) {
    const RowId id = shape.row_of_logical(row);
    if (id.head % sharing == 0 && !check(row)) return false;
  }
  return true;
}

}  // namespace

ListPlan plan_lists(const Mask& mask, Index kv_heads, bool causal, const Context& context) {
  const MaskShape& shape = mask.shape();
  if (kv_heads < 1 || shape.heads % kv_heads != 0)
    throw ShapeError("list plan: " + std::to_string(shape.heads) + " heads of the mask are not a multiple of " +
                     std::to_string(kv_heads) + " KV heads");
  const int most = shape.rows() == 0 ? 1 : heads_taken_together(shape.heads / kv_heads);
  const Mask stored = shape.shared_heads ? slice(mask, Dim::heads, 0, shape.heads / most, context) : mask;
  Csr all = to_csr(causal ? restrict_causal(stored, context) : stored, context);
  if (shape.shared_heads) return {most, std::move(all)};
  for (int sharing = most; sharing > 1; sharing /= 2) {
    const bool agree = all_of_lists(shape, sharing, [&](Index row) {
      const Entries first(all, row);
      for (int h = 1; h < sharing; ++h) {
        if (!(Entries(all, row + h * shape.queries) == first)) return false;
      }
      return true;
    });
    if (!agree) continue;
    Array<Index> row_ptr{0};
    Array<std::int32_t> indices;
    Array<float> p;
    all_of_lists(shape, sharing, [&](Index row) {
      const Entries list(all, row);
      indices.insert(indices.end(), list.columns.begin(), list.columns.end());
      p.insert(p.end(), list.p.begin(), list.p.end());
      row_ptr.push_back(static_cast<Index>(indices.size()));
      return true;
    });
    return {sharing, {std::move(row_ptr), std::move(indices), std::move(p)}};
  }
  return {1, std::move(all)};
}

}  // namespace reticle::cuda
