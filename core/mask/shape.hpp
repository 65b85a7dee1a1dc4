// The logical shape of a mask, which of its dimensions are shared (stored once), and the numbering of rows. All index
// arithmetic about sharing is here.
#pragma once

#include <string>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// One query row of one head.
struct RowId {
  Index batch = 0, head = 0, query = 0;
};

/// batch x heads x queries x keys. A `shared_` dimension is stored once and applies to its whole extent: a sink is
/// stored as one row, a causal pattern as one head.
struct MaskShape {
  Index batch = 1, heads = 1, queries = 1, keys = 0;
  bool shared_batch = false, shared_heads = false, shared_queries = false;

  /// ShapeError for negative extents, more than 2^31 - 1 keys or queries, or 2^63 positions.
  void validate() const {
    checked_product({batch, heads, queries, keys}, "mask " + describe());
    // A shared dimension of extent 0 is still stored once.
    const auto at_least_one = [](Index extent) { return extent == 0 ? 1 : extent; };
    checked_product({at_least_one(batch), at_least_one(heads), at_least_one(queries), at_least_one(keys)},
                    "mask " + describe());
    if (keys > kMaxColumns || queries > kMaxColumns)
      throw ShapeError("mask " + describe() + ": at most 2^31 - 1 keys and queries can be addressed");
  }

  Index rows() const { return batch * heads * queries; }
  Index positions() const { return rows() * keys; }
  Index stored_rows() const {
    return stored(batch, shared_batch) * stored(heads, shared_heads) * stored(queries, shared_queries);
  }
  /// The number of logical rows that each stored row represents.
  Index rows_per_stored_row() const {
    return (shared_batch ? batch : 1) * (shared_heads ? heads : 1) * (shared_queries ? queries : 1);
  }

  Index stored_row(RowId row) const {
    const Index b = shared_batch ? 0 : row.batch;
    const Index h = shared_heads ? 0 : row.head;
    const Index q = shared_queries ? 0 : row.query;
    return (b * stored(heads, shared_heads) + h) * stored(queries, shared_queries) + q;
  }
  /// The first logical row that a stored row represents.
  RowId row_of_stored(Index stored_row) const {
    const Index q = stored(queries, shared_queries), h = stored(heads, shared_heads);
    return {stored_row / (q * h), stored_row / q % h, stored_row % q};
  }
  /// Rows numbered over the whole logical shape, in C order.
  RowId row_of_logical(Index row) const { return {row / (queries * heads), row / queries % heads, row % queries}; }

  /// The same logical shape with everything shared: for Empty and Full.
  MaskShape one_row() const { return with_sharing(true, true, true); }
  /// The same logical shape with one pattern for all batches and heads: for fixed patterns.
  MaskShape one_head() const { return with_sharing(true, true, false); }
  /// The same logical shape with every row stored.
  MaskShape unshared() const { return with_sharing(false, false, false); }
  /// The sharing that a row-wise combination of masks of these two shapes can keep.
  MaskShape sharing_both(const MaskShape& other) const {
    return with_sharing(shared_batch && other.shared_batch, shared_heads && other.shared_heads,
                        shared_queries && other.shared_queries);
  }
  bool same_logical(const MaskShape& other) const {
    return batch == other.batch && heads == other.heads && queries == other.queries && keys == other.keys;
  }
  /// Throws ShapeError with the operation's name unless the logical shapes are equal.
  void require_same_logical(const MaskShape& other, const char* operation) const {
    if (!same_logical(other))
      throw ShapeError(std::string(operation) + ": masks of shapes " + describe() + " and " + other.describe() +
                       "; expected one shape (broadcast_to gives it)");
  }
  std::string describe() const {
    return "(" + std::to_string(batch) + ", " + std::to_string(heads) + ", " + std::to_string(queries) + ", " +
           std::to_string(keys) + ")";
  }

 private:
  static Index stored(Index extent, bool shared) { return shared ? 1 : extent; }
  MaskShape with_sharing(bool b, bool h, bool q) const { return {batch, heads, queries, keys, b, h, q}; }
};

}  // namespace reticle
