// Algebra of masks on a GPU. A mask is lists of columns with space for `list_size` in every row, or words of bits.
//
// Lists: a block merges one row of both, 1024 columns at a time, by merge path (Green, McColl and Bader 2012): a thread
// finds by bisection where its 8 columns begin in each list, and merges them; a scan of the numbers of kept columns
// gives their positions in the result. Cost: both lists once from memory and twice from shared memory, and the result.
// No row waits for another, since each has space for the largest possible result.
// Words: one pass over both masks.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include <reticle/core/cuda/block.hpp>
#include <reticle/core/mask/representation.hpp>
#include <reticle/core/mask/shape.hpp>

namespace reticle::cuda {

inline constexpr int kMaskThreads = 128;
inline constexpr int kColumnsPerThread = 8;
inline constexpr int kColumnsPerStep = kMaskThreads * kColumnsPerThread;

/// Maps a stored row of a result to the stored row of an operand, which may share more dimensions.
struct RowMap {
  Index heads = 1, queries = 1;  // as the result stores them
  Index batch_stride = 0, head_stride = 0, query_stride = 0;

  static RowMap between(const MaskShape& result, const MaskShape& operand) {
    const Index queries = operand.shared_queries ? 1 : operand.queries,
                heads = operand.shared_heads ? 1 : operand.heads;
    return {result.shared_heads ? 1 : result.heads, result.shared_queries ? 1 : result.queries,
            operand.shared_batch ? 0 : heads * queries, operand.shared_heads ? 0 : queries,
            operand.shared_queries ? 0 : 1};
  }
  RETICLE_HD Index of(Index row) const {
    return row / (heads * queries) * batch_stride + row / queries % heads * head_stride + row % queries * query_stride;
  }
};

/// Rows of ascending columns: row `row` has counts[row] columns from row * list_size on.
struct ColumnLists {
  std::int32_t* columns = nullptr;
  float* p = nullptr;  // same layout; null: 1
  std::int32_t* counts = nullptr;
  Index list_size = 0;
};

/// One row of ColumnLists.
struct ColumnList {
  const std::int32_t* columns;
  const float* p;
  int count;

  RETICLE_HD static ColumnList of(const ColumnLists& lists, Index row) {
    return {lists.columns + row * lists.list_size, lists.p == nullptr ? nullptr : lists.p + row * lists.list_size,
            lists.counts[row]};
  }
  RETICLE_HD float p_of(int i) const { return p == nullptr ? 1.0f : p[i]; }
  /// The number of columns below `end`.
  RETICLE_HD int before(Index end) const {
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (columns[middle] < end) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

/// Lists in the layout of device memory, on the host.
struct PaddedLists {
  Index list_size = 0;
  Array<std::int32_t> columns;
  Array<float> p;  // same layout; empty: 1
  std::vector<std::int32_t> counts;
};

inline PaddedLists padded_lists(const Csr& csr) {
  PaddedLists lists;
  const Index rows = csr.row_ptr.size() - 1;
  for (Index row = 0; row < rows; ++row) {
    const Index count = csr.row_ptr[row + 1] - csr.row_ptr[row];
    lists.counts.push_back(static_cast<std::int32_t>(count));
    lists.list_size = std::max(lists.list_size, count);
  }
  lists.columns.assign(static_cast<std::size_t>(rows * lists.list_size), 0);
  lists.p.assign(csr.p.empty() ? 0 : lists.columns.size(), 0);
  for (Index row = 0; row < rows; ++row) {
    const Index begin = csr.row_ptr[row], count = csr.row_ptr[row + 1] - begin, to = row * lists.list_size;
    std::copy_n(csr.indices.data() + begin, count, lists.columns.data() + to);
    if (!csr.p.empty()) std::copy_n(csr.p.data() + begin, count, lists.p.data() + to);
  }
  return lists;
}

inline Csr csr_of(const PaddedLists& lists) {
  Array<Index> row_ptr{0};
  Array<std::int32_t> indices;
  Array<float> p;
  for (std::size_t row = 0; row < lists.counts.size(); ++row) {
    const std::int32_t* const columns = lists.columns.data() + static_cast<Index>(row) * lists.list_size;
    indices.insert(indices.end(), columns, columns + lists.counts[row]);
    row_ptr.push_back(static_cast<Index>(indices.size()));
    if (lists.p.empty()) continue;
    const float* const row_p = lists.p.data() + static_cast<Index>(row) * lists.list_size;
    p.insert(p.end(), row_p, row_p + lists.counts[row]);
  }
  return {std::move(row_ptr), std::move(indices), std::move(p)};
}

/// The largest number of columns in a row of an operation's result.
template <class Op>
Index room_for(Index a, Index b, Index keys) {
  const Index common = std::min(a, b), all = Op::p(0.0f, 1.0f) > 0 ? a + b : Op::p(1.0f, 0.0f) > 0 ? a : common;
  return std::min(keys, all);
}

struct CombineShared {
  std::int32_t a[kColumnsPerStep], b[kColumnsPerStep];
  int scan[kWarp + 1];
};

/// How many of the first `steps` columns of the merged lists come from a; of equal columns a's come first.
RETICLE_HD inline int merge_path(const std::int32_t* a, int a_count, const std::int32_t* b, int b_count, int steps) {
  int low = steps > b_count ? steps - b_count : 0, high = steps < a_count ? steps : a_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (a[middle] <= b[steps - 1 - middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Row `row` of `to` becomes the operation Op, one of row_op, of a and b: the columns with p > 0 in the result.
template <class Op, class Block>
RETICLE_HD void combine_lists(const Block& block, CombineShared& shared, const ColumnList& a, const ColumnList& b,
                              const ColumnLists& to, Index row) {
  std::int32_t* const columns = to.columns + row * to.list_size;
  float* const p = to.p == nullptr ? nullptr : to.p + row * to.list_size;
  int at_a = 0, at_b = 0, written = 0;
  while (at_a < a.count || at_b < b.count) {
    const int left_a = a.count - at_a < kColumnsPerStep ? a.count - at_a : kColumnsPerStep;
    const int left_b = b.count - at_b < kColumnsPerStep ? b.count - at_b : kColumnsPerStep;
    const int steps = left_a + left_b < kColumnsPerStep ? left_a + left_b : kColumnsPerStep;
    block.each([&](int thread) {
      for (int i = thread; i < left_a; i += kMaskThreads) shared.a[i] = a.columns[at_a + i];
      for (int i = thread; i < left_b; i += kMaskThreads) shared.b[i] = b.columns[at_b + i];
    });
    block.sync();
    // Calls keep(column, p) for the columns of the thread's steps that are in the result. When a's column comes up, its
    // p in b is known, since b's next column is then the same one or a later one.
    const auto merge = [&](int thread, auto&& keep) {
      const int begin = thread * kColumnsPerThread,
                end = begin + kColumnsPerThread < steps ? begin + kColumnsPerThread : steps;
      if (begin >= end) return;
      int x = merge_path(shared.a, left_a, shared.b, left_b, begin), y = begin - x;
      std::int32_t last_of_a = x > 0 ? shared.a[x - 1] : at_a > 0 ? a.columns[at_a - 1] : -1;
      for (int i = begin; i < end; ++i) {
        float both;
        std::int32_t column;
        if (y >= left_b || (x < left_a && shared.a[x] <= shared.b[y])) {
          column = last_of_a = shared.a[x];
          const bool twin = y < left_b && shared.b[y] == column;
          both = Op::p(a.p_of(at_a + x), twin ? b.p_of(at_b + y) : 0.0f);
          ++x;
        } else {
          column = shared.b[y];
          both = column == last_of_a ? 0.0f : Op::p(0.0f, b.p_of(at_b + y));
          ++y;
        }
        if (both > 0) keep(column, both);
      }
    };
    PerThread<Block, int> before(block);
    block.each([&](int thread) {
      before[thread] = 0;
      merge(thread, [&](std::int32_t, float) { ++before[thread]; });
    });
    const int kept = block.exclusive_scan(before, shared.scan);
    block.each([&](int thread) {
      int next = written + before[thread];
      merge(thread, [&](std::int32_t column, float both) {
        columns[next] = column;
        if (p != nullptr) p[next] = both;
        ++next;
      });
    });
    const int from_a = merge_path(shared.a, left_a, shared.b, left_b, steps);
    at_a += from_a;
    at_b += steps - from_a;
    written += kept;
    block.sync();
  }
  block.each([&](int thread) {
    if (thread == 0) to.counts[row] = written;
  });
}

/// One word of an operation of row_op.
template <class Op>
RETICLE_HD std::uint64_t combine_bits(std::uint64_t a, std::uint64_t b) {
  return (Op::p(1.0f, 0.0f) > 0 ? a & ~b : 0) | (Op::p(1.0f, 1.0f) > 0 ? a & b : 0) |
         (Op::p(0.0f, 1.0f) > 0 ? b & ~a : 0);
}

/// The list's columns in [64 word, 64 word + 64), as bits.
RETICLE_HD inline std::uint64_t word_of_list(const ColumnList& list, int word) {
  const Index begin = Index{word} * 64;
  std::uint64_t bits = 0;
  for (int i = list.before(begin); i < list.count && list.columns[i] < begin + 64; ++i)
    bits |= std::uint64_t{1} << (list.columns[i] - begin);
  return bits;
}

/// Row `row` of `to` becomes the columns whose bits are set in word_of(0), ..., word_of(word_count - 1).
template <class Block, class WordOf>
RETICLE_HD void list_words(const Block& block, int* scan, WordOf&& word_of, int word_count, const ColumnLists& to,
                           Index row) {
  std::int32_t* const columns = to.columns + row * to.list_size;
  int written = 0;
  for (int step = 0; step < word_count; step += kMaskThreads) {
    PerThread<Block, int> before(block);
    PerThread<Block, std::uint64_t> word(block);
    block.each([&](int thread) {
      word[thread] = step + thread < word_count ? word_of(step + thread) : 0;
      before[thread] = std::popcount(word[thread]);
    });
    const int here = block.exclusive_scan(before, scan);
    block.each([&](int thread) {
      int next = written + before[thread];
      for (std::uint64_t left = word[thread]; left != 0; left &= left - 1)
        columns[next++] = (step + thread) * 64 + std::countr_zero(left);
    });
    written += here;
  }
  block.each([&](int thread) {
    if (thread == 0) to.counts[row] = written;
  });
}

}  // namespace reticle::cuda
