#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/mask/builder.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle {
namespace {

Mask reassemble(const Mask& mask, const MaskShape& shape, std::optional<MaskKind> kind, const Context& context) {
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        std::visit([&](const auto& rep) { for_each_run(rep, mask.shape().stored_row(row), shape.keys, emit); },
                   mask.representation());
      },
      context, kind);
}

}  // namespace

Mask compact(const Mask& mask, const Context& context) { return reassemble(mask, mask.shape(), std::nullopt, context); }

Mask convert(const Mask& mask, MaskKind kind, const Context& context) {
  if (mask.kind() == kind) return mask;
  return reassemble(mask, mask.shape(), kind, context);
}

Mask unshare(const Mask& mask, const Context& context) {
  const MaskKind kind = mask.kind();
  if (kind == MaskKind::empty || mask.shape().stored_rows() == mask.shape().rows()) return mask;
  return reassemble(mask, mask.shape().unshared(), kind == MaskKind::full ? MaskKind::runs : kind, context);
}

Array<float> to_dense(const Mask& mask, const Context& context) {
  const MaskShape& shape = mask.shape();
  Array<float> dense(static_cast<std::size_t>(shape.positions()), 0.0f);
  context.for_each_chunk(shape.rows(), rows_per_chunk(shape.rows()), [&](Index, Index begin, Index end) {
    std::visit(
        [&](const auto& rep) {
          for (Index row = begin; row < end; ++row) {
            float* row_p = dense.data() + row * shape.keys;
            for_each_run(rep, shape.stored_row(shape.row_of_logical(row)), shape.keys,
                         [&](Run run) { std::fill(row_p + run.begin, row_p + run.end, run.p); });
          }
        },
        mask.representation());
  });
  return dense;
}

Csr to_csr(const Mask& mask, const Context& context) {
  if (mask.nnz() == 0) {
    Array<Index> zeros(static_cast<std::size_t>(mask.shape().rows()) + 1, 0);
    return {std::move(zeros), {}, {}};
  }
  const Mask csr = reassemble(mask, mask.shape().unshared(), MaskKind::csr, context);
  return std::get<Csr>(csr.representation());
}

FlatCsr to_flat_csr(const Mask& mask, const Context& context) {
  const Csr csr = to_csr(mask, context);
  const Index keys = mask.shape().keys;
  FlatCsr flat;
  flat.ptr.assign(csr.row_ptr.span().begin(), csr.row_ptr.span().end());
  flat.indices.resize(static_cast<std::size_t>(csr.indices.size()));
  for (Index row = 0; row + 1 < csr.row_ptr.size(); ++row) {
    for (Index i = csr.row_ptr[row]; i < csr.row_ptr[row + 1]; ++i)
      flat.indices[static_cast<std::size_t>(i)] = row * keys + csr.indices[i];
  }
  if (csr.p.empty()) {
    flat.data.assign(flat.indices.size(), 1.0f);
  } else {
    flat.data.assign(csr.p.span().begin(), csr.p.span().end());
  }
  return flat;
}

Mask from_flat_csr(const MaskShape& given, std::span<const Index> ptr, std::span<const Index> indices,
                   std::span<const float> data, const Context& context) {
  const MaskShape shape = given.unshared();
  shape.validate();
  const auto reject = [&](const std::string& what) { throw ShapeError("mask " + shape.describe() + ": " + what); };
  if (static_cast<Index>(ptr.size()) != shape.rows() + 1 || ptr.front() != 0 ||
      ptr.back() != static_cast<Index>(indices.size()) || !std::is_sorted(ptr.begin(), ptr.end()))
    reject("ptr must have " + std::to_string(shape.rows() + 1) + " ascending entries from 0 to " +
           std::to_string(indices.size()));
  if (!data.empty() && data.size() != indices.size())
    reject("has " + std::to_string(indices.size()) + " indices and " + std::to_string(data.size()) + " values");
  Index width = 0;
  for (std::size_t row = 0; row + 1 < ptr.size(); ++row) {
    width = std::max(width, ptr[row + 1] - ptr[row]);
    for (Index i = ptr[row]; i < ptr[row + 1]; ++i) {
      const Index column = indices[static_cast<std::size_t>(i)] - static_cast<Index>(row) * shape.keys;
      if (column < 0 || column >= shape.keys)
        reject("index " + std::to_string(indices[static_cast<std::size_t>(i)]) + " is not in row " +
               std::to_string(row));
    }
  }
  std::vector<Index> columns(static_cast<std::size_t>(checked_product({shape.rows(), width}, "flat indices")), -1);
  std::vector<float> p(data.empty() ? 0 : columns.size(), 0.0f);
  for (std::size_t row = 0; row + 1 < ptr.size(); ++row) {
    for (Index i = ptr[row]; i < ptr[row + 1]; ++i) {
      const auto to = row * static_cast<std::size_t>(width) + static_cast<std::size_t>(i - ptr[row]);
      columns[to] = indices[static_cast<std::size_t>(i)] - static_cast<Index>(row) * shape.keys;
      if (!data.empty()) p[to] = data[static_cast<std::size_t>(i)];
    }
  }
  return Mask::from_row_indices(shape, width, columns, p, context);
}

BlockLists to_blocks(const Mask& mask, Index block_q, Index block_k, const Context& context) {
  if (block_q < 1 || block_k < 1)
    throw ShapeError("to_blocks: blocks of " + std::to_string(block_q) + " x " + std::to_string(block_k) +
                     "; expected extents of 1 or more");
  const MaskShape& shape = mask.shape();
  BlockLists lists;
  lists.block_q = block_q;
  lists.block_k = block_k;
  lists.shape = shape;
  lists.shape.queries = (shape.queries + block_q - 1) / block_q;
  lists.shape.keys = (shape.keys + block_k - 1) / block_k;
  lists.shape.shared_queries = false;  // the last block row may be shorter
  const Index block_rows = shape.keys == 0 ? 0 : lists.shape.stored_rows();
  // A lower bound on the number of blocks, each a list entry: no block holds more than block_q * block_k positions.
  constexpr Index kMaxBlocks = Index{1} << 34;
  const double min_blocks = static_cast<double>(mask.nnz()) / static_cast<double>(lists.shape.rows_per_stored_row()) /
                            static_cast<double>(block_q) / static_cast<double>(block_k);
  if (min_blocks > static_cast<double>(kMaxBlocks))
    throw ShapeError("to_blocks: mask " + shape.describe() + " has more than 2^34 blocks of " +
                     std::to_string(block_q) + " x " + std::to_string(block_k) + "; expected larger blocks");

  struct RowBlocks {
    std::vector<std::int32_t> indices;
    std::vector<std::uint8_t> full;
  };
  std::vector<RowBlocks> block_lists(static_cast<std::size_t>(block_rows));
  context.for_each_chunk(block_rows, rows_per_chunk(block_rows), [&](Index, Index begin, Index end) {
    std::vector<Index> covered(static_cast<std::size_t>(lists.shape.keys), 0);  // positions with p = 1
    std::vector<std::int32_t> touched;
    std::vector<std::uint8_t> is_touched(covered.size(), 0);
    std::vector<Run> runs;
    for (Index row = begin; row < end; ++row) {
      RowId id = lists.shape.row_of_stored(row);
      const Index first = id.query * block_q, last = std::min(shape.queries, first + block_q);
      for (Index query = first; query < last; ++query) {
        id.query = query;
        runs.clear();
        mask.row(id, runs);
        for (const Run& run : runs) {
          for (Index block = run.begin / block_k; block * block_k < run.end; ++block) {
            const auto b = static_cast<std::size_t>(block);
            if (is_touched[b] == 0) {
              is_touched[b] = 1;
              touched.push_back(static_cast<std::int32_t>(block));
            }
            if (run.p == 1)
              covered[b] +=
                  std::min<Index>(run.end, (block + 1) * block_k) - std::max<Index>(run.begin, block * block_k);
          }
        }
      }
      std::sort(touched.begin(), touched.end());
      RowBlocks& row_blocks = block_lists[static_cast<std::size_t>(row)];
      row_blocks.indices = touched;
      for (const std::int32_t block : touched) {
        const auto b = static_cast<std::size_t>(block);
        const Index columns = std::min(shape.keys, (block + 1) * block_k) - block * block_k;
        row_blocks.full.push_back(covered[b] == columns * (last - first) ? 1 : 0);
        covered[b] = 0;
        is_touched[b] = 0;
      }
      touched.clear();
    }
  });
  Array<Index> row_ptr(static_cast<std::size_t>(lists.shape.stored_rows()) + 1, 0);
  Array<std::int32_t> indices;
  Array<std::uint8_t> full;
  for (std::size_t row = 0; row < block_lists.size(); ++row) {
    indices.insert(indices.end(), block_lists[row].indices.begin(), block_lists[row].indices.end());
    full.insert(full.end(), block_lists[row].full.begin(), block_lists[row].full.end());
    row_ptr[row + 1] = static_cast<Index>(indices.size());
  }
  lists.row_ptr = std::move(row_ptr);
  lists.indices = std::move(indices);
  lists.full = std::move(full);
  return lists;
}

}  // namespace reticle
