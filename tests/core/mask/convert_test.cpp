#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

#include "support/naive_mask.hpp"
#include "support/random_mask.hpp"

namespace reticle::testing {
namespace {

TEST(Convert, ContentThatDoesNotFitIsRefused) {
  const Mask weighted = Mask::dense({1, 1, 1, 2}, std::vector<float>{0.5f, 1});
  EXPECT_THROW(convert(weighted, MaskKind::bits), ShapeError);
  EXPECT_THROW(convert(weighted, MaskKind::full), ShapeError);
  EXPECT_THROW(convert(weighted, MaskKind::empty), ShapeError);
}

TEST(Convert, FlatCsrRoundTrips) {
  std::mt19937 random(3);
  for (const NamedMask& m : random_masks({2, 2, 3, 20}, random)) {
    const FlatCsr flat = to_flat_csr(m.mask);
    EXPECT_EQ(flat.ptr.size(), 2u * 2 * 3 + 1);
    EXPECT_EQ(from_flat_csr(m.mask.shape(), flat.ptr, flat.indices, flat.data), m.mask) << m.name;
    const NaiveMask naive(m.mask);
    for (std::size_t i = 0; i < flat.indices.size(); ++i)
      EXPECT_EQ(naive.p[static_cast<std::size_t>(flat.indices[i])], flat.data[i]);
  }
}

TEST(Convert, FlatIndicesOutsideTheirRowAreRefused) {
  const Index ptr[] = {0, 1, 1}, indices[] = {5};
  EXPECT_THROW(from_flat_csr({1, 1, 2, 4}, ptr, indices), ShapeError);
  const Index short_ptr[] = {0, 1};
  EXPECT_THROW(from_flat_csr({1, 1, 2, 4}, short_ptr, indices), ShapeError);
}

TEST(Convert, BlocksHoldExactlyWhatTheyCover) {
  std::mt19937 random(5);
  for (const auto& [block_q, block_k] : {std::pair<Index, Index>{2, 8}, {3, 7}, {16, 64}, {1, 1}}) {
    for (const NamedMask& m : random_masks({1, 2, 7, 30}, random)) {
      const BlockLists blocks = to_blocks(m.mask, block_q, block_k);
      const NaiveMask naive(m.mask);
      for (Index head = 0; head < 2; ++head) {
        for (Index bq = 0; bq < blocks.shape.queries; ++bq) {
          const Index row = blocks.shape.stored_row({0, head, bq});
          for (Index bk = 0; bk < blocks.shape.keys; ++bk) {
            Index some = 0, ones = 0, all = 0;
            for (Index q = bq * block_q; q < std::min<Index>(7, (bq + 1) * block_q); ++q) {
              for (Index k = bk * block_k; k < std::min<Index>(30, (bk + 1) * block_k); ++k) {
                const float p = naive.at(head * 7 + q, k);
                some += p > 0;
                ones += p == 1;
                ++all;
              }
            }
            const auto span = blocks.indices.span();
            const auto begin = span.begin() + blocks.row_ptr[row], end = span.begin() + blocks.row_ptr[row + 1];
            const auto found = std::find(begin, end, static_cast<std::int32_t>(bk));
            ASSERT_EQ(found != end, some > 0) << m.name;
            if (found != end) {
              EXPECT_EQ(blocks.full[found - span.begin()] != 0, ones == all) << m.name;
            }
          }
        }
      }
    }
  }
  EXPECT_THROW(to_blocks(Mask::full({1, 1, 1, 1}), 0, 1), ShapeError);
}

}  // namespace
}  // namespace reticle::testing
