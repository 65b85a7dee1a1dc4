// The algebra of masks on a GPU, run on the CPU, against the CPU's.
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/cuda/problem.hpp"
#include "support/cuda/threaded_block.hpp"

namespace reticle::cuda {
namespace {

/// Lists of a mask's stored rows, viewed as kernels view them.
class Listed {
 public:
  explicit Listed(const Mask& mask)
      : shape_(mask.shape()), lists_(padded_lists(std::get<Csr>(convert(mask, MaskKind::csr).representation()))) {}
  Listed(const MaskShape& shape, Index list_size, bool weighted) : shape_(shape) {
    const auto entries = static_cast<std::size_t>(shape.stored_rows() * list_size);
    lists_.list_size = list_size;
    lists_.columns.assign(entries, -7);
    if (weighted) lists_.p.assign(entries, -7.0f);
    lists_.counts.assign(static_cast<std::size_t>(shape.stored_rows()), -7);
  }

  ColumnLists view() {
    return {lists_.columns.data(), lists_.p.empty() ? nullptr : lists_.p.data(), lists_.counts.data(),
            lists_.list_size};
  }
  Mask mask() const {
    Csr csr = csr_of(lists_);
    return Mask::csr(shape_, std::move(csr.row_ptr), std::move(csr.indices), std::move(csr.p));
  }
  bool weighted() const { return !lists_.p.empty(); }
  Index list_size() const { return lists_.list_size; }

 private:
  MaskShape shape_;
  PaddedLists lists_;
};

template <class Op>
Mask combined_lists(const Mask& a, const Mask& b) {
  const MaskShape shape = a.shape().sharing_both(b.shape());
  const RowMap of_a = RowMap::between(shape, a.shape()), of_b = RowMap::between(shape, b.shape());
  Listed left(a), right(b);
  Listed to(shape, room_for<Op>(left.list_size(), right.list_size(), shape.keys), left.weighted() || right.weighted());
  const auto shared = std::make_unique<CombineShared>();
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    run_block(kMaskThreads, *shared, [&](const auto& block) {
      combine_lists<Op>(block, *shared, ColumnList::of(left.view(), of_a.of(row)),
                        ColumnList::of(right.view(), of_b.of(row)), to.view(), row);
    });
  }
  return to.mask();
}

std::vector<std::uint64_t> words_of(const Mask& mask) {
  const Mask bits = convert(mask, MaskKind::bits);
  const auto words = std::get<BitDense>(bits.representation()).words.span();
  return {words.begin(), words.end()};
}

template <class Op>
Mask combined_words(const Mask& a, const Mask& b) {
  const MaskShape shape = a.shape().sharing_both(b.shape());
  const RowMap of_a = RowMap::between(shape, a.shape()), of_b = RowMap::between(shape, b.shape());
  const std::vector<std::uint64_t> left = words_of(a), right = words_of(b);
  const Index width = BitDense::words_per_row(shape.keys);
  Array<std::uint64_t> words;
  for (Index row = 0; row < shape.stored_rows(); ++row) {
    for (Index w = 0; w < width; ++w)
      words.push_back(combine_bits<Op>(left[static_cast<std::size_t>(of_a.of(row) * width + w)],
                                       right[static_cast<std::size_t>(of_b.of(row) * width + w)]));
  }
  return Mask::bits(shape, std::move(words));
}

TEST(CudaThreads, CombiningWaitsForWhatItReads) {
  const ExecutedBy threads(Execution::threads);
  Case c;
  c.batch = c.heads = c.kv_heads = 1;
  c.rows = 2;
  c.keys = 5000;
  c.weighted = true;
  const Mask a = random_mask(c, 0.5, 1), b = random_mask(c, 0.3, 2);
  EXPECT_EQ(combined_lists<row_op::Add>(a, b), merge(a, b, MergeRule::add));
  EXPECT_EQ(combined_lists<row_op::Subtract>(a, b), subtract(a, b));
}

void expect_the_algebra_of_the_cpu(const Mask& a, const Mask& b) {
  EXPECT_EQ(combined_lists<row_op::Add>(a, b), merge(a, b, MergeRule::add));
  EXPECT_EQ(combined_lists<row_op::Max>(a, b), merge(a, b, MergeRule::max));
  EXPECT_EQ(combined_lists<row_op::Independent>(a, b), merge(a, b, MergeRule::independent));
  EXPECT_EQ(combined_lists<row_op::Intersect>(a, b), intersect(a, b));
  EXPECT_EQ(combined_lists<row_op::Subtract>(a, b), subtract(a, b));
  if (a.weighted() || b.weighted()) return;
  EXPECT_EQ(combined_words<row_op::Max>(a, b), merge(a, b));
  EXPECT_EQ(combined_words<row_op::Intersect>(a, b), intersect(a, b));
  EXPECT_EQ(combined_words<row_op::Subtract>(a, b), subtract(a, b));
}

TEST(CudaMask, ListsAndBitsCombineAsOnTheCpu) {
  for (const Index keys : {1, 64, 200, 5000}) {
    for (const double density : {0.0, 0.02, 0.3, 1.0}) {
      for (const double other : {0.001, 0.3, 1.0}) {
        for (const int weighted : {0, 1, 2}) {
          SCOPED_TRACE("keys " + std::to_string(keys) + ", densities " + std::to_string(density) + " and " +
                       std::to_string(other) + ", weighted " + std::to_string(weighted));
          Case c;
          c.heads = 2;
          c.keys = keys;
          c.weighted = weighted > 0;
          const Mask a = random_mask(c, density, 1);
          c.weighted = weighted > 1;
          expect_the_algebra_of_the_cpu(a, random_mask(c, other, 2));
        }
      }
    }
  }
}

TEST(CudaMask, WhatIsSharedByRowsIsReadForEach) {
  Case c;
  c.keys = 300;
  const Mask each = random_mask(c, 0.1, 3);
  const MaskShape& shape = each.shape();
  const Mask by_query = Mask::intervals(shape.one_head(), [](RowId row) {
    const auto end = static_cast<std::int32_t>(100 + 10 * row.query);
    return Interval{end - 30, end};
  });
  const Mask sinks = Mask::intervals(shape.one_row(), [](RowId) { return Interval{0, 5}; });
  MaskShape by_head = shape;
  by_head.shared_batch = by_head.shared_queries = true;
  const Mask of_heads = Mask::intervals(by_head, [](RowId row) {
    const auto begin = static_cast<std::int32_t>(20 * row.head);
    return Interval{begin, begin + 10};
  });
  for (const Mask& a : {each, by_query, sinks, of_heads}) {
    for (const Mask& b : {each, by_query, sinks, of_heads}) expect_the_algebra_of_the_cpu(a, b);
  }
}

TEST(CudaMask, ListsBecomeBitsAndBitsLists) {
  for (const double density : {0.0, 0.01, 0.4, 1.0}) {
    Case c;
    c.keys = 20000;  // more words than a block has threads
    const Mask mask = random_mask(c, density, 5);
    const std::vector<std::uint64_t> words = words_of(mask);
    const Index rows = mask.shape().stored_rows(), width = BitDense::words_per_row(c.keys);
    Listed lists(mask), found(mask.shape(), c.keys, false);
    const HostBlock block(kMaskThreads);
    int scan[kWarp + 1];
    for (Index row = 0; row < rows; ++row) {
      for (Index w = 0; w < width; ++w)
        ASSERT_EQ(word_of_list(ColumnList::of(lists.view(), row), static_cast<int>(w)),
                  words[static_cast<std::size_t>(row * width + w)]);
      const auto word_of = [&](int w) { return words[static_cast<std::size_t>(row * width + w)]; };
      list_words(block, scan, word_of, static_cast<int>(width), found.view(), row);
    }
    EXPECT_EQ(found.mask(), mask);
  }
}

}  // namespace
}  // namespace reticle::cuda
