#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(BlockSparse, KeepsTheBestChunksByTheirMeans) {
  // Chunk means of the keys: 0, 3, 1, 2.
  const Scored s(8, {0, 0, 3, 3, 0, 2, 2, 2});
  const auto row = [&](const std::string& more, Index query) {
    return row_text(mask_of(R"({"type": "block_sparse", "chunk_size": 2, "top_chunks": 2)" + more + "}", s.inputs),
                    query);
  };
  EXPECT_EQ(row(R"(, "sink_chunks": 0)", 7), "..11..11");
  EXPECT_EQ(row("", 7), "1111....") << "the first chunk counts";
  EXPECT_EQ(row(R"(, "sink_chunks": 1, "recent_chunks": 1)", 7), "11....11");
  EXPECT_EQ(row(R"(, "sink_chunks": 0)", 2), "111.....") << "fewer chunks than the budget, none after the query";
}

TEST(BlockSparse, OneChunkAndAWindowAreSinksAndAWindow) {
  const OwnedInputs owned({1, 2, 2, 50, 50, 8, 8}, 2);
  EXPECT_EQ(
      mask_of(R"({"type": "block_sparse", "chunk_size": 8, "top_chunks": 1}, {"type": "local", "window_size": 8})",
              owned.inputs, true),
      mask_of(R"({"type": "sink", "sink_size": 8}, {"type": "local", "window_size": 8})", owned.inputs, true));
}

TEST(BlockSparse, TheSumOfAShortChunkIsDividedByTheWholeSize) {
  const Scored s(5, {1, 1, 0, 0, 1.5f});  // the last chunk's mean is 0.75, below the first's
  EXPECT_EQ(
      row_text(mask_of(R"({"type": "block_sparse", "chunk_size": 2, "top_chunks": 1, "sink_chunks": 0})", s.inputs), 4),
      "11...");
}

/// The sum of the rows in chunk `chunk` of a head; row 0 has position `first_position`.
std::vector<double> chunk_sum(const TensorView& tensor, Index head, Index first_position, Index chunk, Index size) {
  std::vector<double> sum(static_cast<std::size_t>(tensor.size(3)));
  for (Index row = 0; row < tensor.size(2); ++row) {
    if ((first_position + row) / size != chunk) continue;
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += element(tensor, 0, head, row, static_cast<Index>(i));
  }
  return sum;
}

TEST(BlockSparse, EachHeadRanksChunksByTheProductsOfMeans) {
  constexpr Index kSize = 8, kTop = 2;
  const OwnedInputs owned({1, 4, 2, 19, 61, 12, 12}, 3);  // the first and the last chunk of queries are short
  const Mask mask =
      mask_of(R"({"type": "block_sparse", "chunk_size": 8, "top_chunks": 2, "sink_chunks": 0})", owned.inputs);
  for (Index head = 0; head < 4; ++head) {
    for (Index query = 0; query < 19; ++query) {
      const Index position = owned.inputs.position(query), own = position / kSize;
      const std::vector<double> sum = chunk_sum(owned.inputs.queries, head, owned.inputs.position(0), own, kSize);
      std::vector<std::pair<double, Index>> ranked;
      for (Index chunk = 0; chunk <= own; ++chunk) {
        const std::vector<double> keys = chunk_sum(owned.inputs.keys, head / 2, 0, chunk, kSize);
        ranked.emplace_back(-std::inner_product(sum.begin(), sum.end(), keys.begin(), 0.0), chunk);
      }
      std::sort(ranked.begin(), ranked.end());
      std::string expected(61, '.');
      for (Index i = 0; i < kTop; ++i) {
        for (Index key = ranked[static_cast<std::size_t>(i)].second * kSize; key <= position; ++key) {
          if (key / kSize == ranked[static_cast<std::size_t>(i)].second) expected[static_cast<std::size_t>(key)] = '1';
        }
      }
      EXPECT_EQ(row_text(mask, query, head), expected) << "head " << head << ", query " << query;
    }
  }
}

TEST(BlockSparse, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "block_sparse", "top_chunks": 1, "recent_chunks": 1})"),
            "/maskers/0/top_chunks: must be at least sink_chunks + recent_chunks, got 1");
  EXPECT_EQ(refusal(R"({"type": "block_sparse", "chunk_size": 0})"),
            "/maskers/0/chunk_size: must be in [1, 2^31), got 0");
}

}  // namespace
}  // namespace reticle::testing
