#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>

#include "support/attention.hpp"
#include "support/naive_mask.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

TEST(ExactScorer, ScoresAreScaledProductsPlusTheAttentionMask) {
  WrittenInputs written({1, 1, 2, 2}, {1, 2, -1, 0}, {1, 1, 3, 2}, {3, 1, 0, 5, -2, 2});
  written.inputs.scaling = 0.5f;
  written.attention_mask = tensor_of({1, 1, 2, 3}, {0, 1, -2, 0.25f, kForbidden, 0});
  written.inputs.attention_mask = written.attention_mask.view();
  std::vector<float> scores(6);
  const RowId rows[] = {{0, 0, 0}, {0, 0, 1}};
  ExactScorer(written.inputs)(rows, scores.data());
  EXPECT_EQ(scores, (std::vector<float>{2.5f, 6, -1, -1.25f, kForbidden, 1}));
}

TEST(ExactScorer, KeysAfterAQuerysOwnPositionAreForbiddenWhereAttentionIsCausal) {
  WrittenInputs written({1, 1, 2, 1}, {1, 1}, {1, 1, 4, 1}, {1, 2, 3, std::nanf("")});
  written.inputs.causal = true;
  std::vector<float> scores(8, 7.0f);
  const RowId rows[] = {{0, 0, 0}, {0, 0, 1}};
  ExactScorer(written.inputs)(rows, scores.data());
  EXPECT_EQ(std::vector<float>(scores.begin(), scores.begin() + 4), (std::vector<float>{1, 2, 3, kForbidden}));
  EXPECT_TRUE(std::isnan(scores[7])) << "the last query sees the last key";
}

TEST(ExactScorer, HeadsOfAGroupReadTheirOwnKeys) {
  WrittenInputs written({1, 4, 1, 1}, {1, 2, 3, 4}, {1, 2, 2, 1}, {10, 20, 100, 200});
  std::vector<float> scores(4);
  const RowId rows[] = {{0, 2, 0}, {0, 3, 0}};
  ExactScorer(written.inputs)(rows, scores.data());
  EXPECT_EQ(scores, (std::vector<float>{300, 600, 400, 800}));
}

/// score(row, key) of a scorer whose values are easy to compute by hand.
float made_up(RowId row, Index key) {
  return static_cast<float>((key * 7 + row.query * 3 + row.head * 5 + row.batch) % 11);
}

void score_rows(std::span<const RowId> rows, Index keys, float* scores) {
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (Index key = 0; key < keys; ++key) scores[static_cast<Index>(r) * keys + key] = made_up(rows[r], key);
  }
}

TEST(SelectScored, AsksForEachRowOnceInGroupsOfOneKvHead) {
  for (const Shapes& shapes :
       {Shapes{2, 4, 2, 7, 13, 8, 8}, Shapes{2, 6, 2, 1, 13, 8, 8}, Shapes{1, 5, 1, 1, 3, 8, 8}}) {
    const OwnedInputs owned(shapes, 1);
    std::set<std::tuple<Index, Index, Index>> asked;
    const Mask mask = select_scored(
        owned.inputs,
        [&](std::span<const RowId> rows, float* scores) {
          EXPECT_LE(static_cast<Index>(rows.size()), kQueriesPerPass);
          for (const RowId& row : rows) {
            EXPECT_EQ(owned.inputs.kv_head(row.head), owned.inputs.kv_head(rows[0].head));
            EXPECT_EQ(row.batch, rows[0].batch);
            EXPECT_TRUE(asked.insert({row.batch, row.head, row.query}).second);
          }
          score_rows(rows, shapes.keys, scores);
        },
        [&](RowId row, std::span<float> scores, Selection& selection) {
          ASSERT_EQ(static_cast<Index>(scores.size()), shapes.keys);
          for (Index key = 0; key < shapes.keys; ++key) {
            EXPECT_EQ(scores[static_cast<std::size_t>(key)], made_up(row, key));
            if (made_up(row, key) > 6) selection.indices.push_back(static_cast<std::int32_t>(key));
          }
        },
        Context(1));
    EXPECT_EQ(static_cast<Index>(asked.size()), shapes.batch * shapes.heads * shapes.queries);
    NaiveMask expected(mask.shape());
    for (Index row = 0; row < expected.shape.rows(); ++row) {
      for (Index key = 0; key < shapes.keys; ++key)
        expected.at(row, key) = made_up(expected.shape.row_of_logical(row), key) > 6 ? 1.0f : 0.0f;
    }
    expect_equal(mask, expected);
  }
}

TEST(SelectScored, HeadsThatNobodyWantsChooseNothing) {
  OwnedInputs owned({1, 4, 2, 3, 5, 8, 8}, 1);
  const std::vector<std::uint8_t> wanted{1, 0, 0, 0};
  owned.inputs.wanted_heads = wanted;
  const Mask mask = select_scored(
      owned.inputs,
      [&](std::span<const RowId> rows, float* scores) {
        EXPECT_EQ(rows[0].head, 0);
        score_rows(rows, 5, scores);
      },
      [](RowId row, std::span<float>, Selection& selection) {
        EXPECT_EQ(row.head, 0);
        selection.indices.push_back(2);
      },
      Context(1));
  EXPECT_EQ(head_counts(mask), (std::vector<Index>{3, 0, 0, 0}));
}

TEST(SelectByScore, PositionsThatWereChosenBeforeAreForbidden) {
  const OwnedInputs owned({1, 1, 1, 2, 6, 8, 8}, 1);
  const Mask previous = Mask::dense(owned.inputs.shape(), std::vector<float>{1, 0, 0, 0.5f, 0, 0, 0, 0, 0, 0, 0, 1});
  std::vector<std::vector<float>> seen;
  select_by_score(
      owned.inputs, previous, [](std::span<const RowId> rows, float* scores) { score_rows(rows, 6, scores); },
      [&](std::span<const float> scores, Selection&) { seen.emplace_back(scores.begin(), scores.end()); }, Context(1));
  EXPECT_EQ(seen,
            (std::vector<std::vector<float>>{{kForbidden, 7, 3, kForbidden, 6, 2}, {3, 10, 6, 2, 9, kForbidden}}));
}

}  // namespace
}  // namespace reticle::testing
