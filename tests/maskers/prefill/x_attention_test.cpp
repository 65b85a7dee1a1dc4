#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"

namespace reticle::testing {
namespace {

TEST(XAttention, KeepsTheFirstTheOwnAndTheHeaviestBlocks) {
  std::vector<float> keys(16, 0.0f);
  for (int i = 4; i < 8; ++i) keys[static_cast<std::size_t>(i)] = 6;
  const Scored s(16, keys);
  const auto row = [&](double threshold) {
    return row_text(mask_of(R"({"type": "x_attention", "stride": 2, "block_size": 4, "threshold": )" +
                                std::to_string(threshold) + "}",
                            s.inputs),
                    15);
  };
  EXPECT_EQ(row(0), "1111........1111");
  EXPECT_EQ(row(0.5), "11111111....1111");
  EXPECT_EQ(row(1), std::string(16, '1'));
}

/// The row of one query, computed by the rule in plain loops.
std::string reference_row(const AttentionInputs& in, Index head, Index query, Index stride, Index size,
                          double threshold) {
  const Index position = in.position(query), first = in.position(0), own = position / size;
  std::vector<double> mass(static_cast<std::size_t>(own + 1));
  for (Index group = own * size / stride; group < (own + 1) * size / stride; ++group) {
    if (group < first / stride || group * stride >= in.keys_length()) continue;
    std::vector<double> p;
    for (Index other = 0; other <= group; ++other) {
      double score = 0;  // antidiagonal: the first row of one group pairs with the last row of the other
      for (Index i = 0; i < stride; ++i) {
        const Index at = group * stride + stride - 1 - i, key = other * stride + i;
        if (at < first || at >= in.keys_length() || key >= in.keys_length()) continue;
        for (Index c = 0; c < in.head_dim(); ++c)
          score += element(in.queries, 0, head, at - first, c) * element(in.keys, 0, in.kv_head(head), key, c);
      }
      p.push_back(std::exp(score * static_cast<double>(in.scaling) / static_cast<double>(stride)));
    }
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (std::size_t i = 0; i < p.size(); ++i)
      mass[i * static_cast<std::size_t>(stride) / static_cast<std::size_t>(size)] += p[i] / sum;
  }
  const double target = threshold * std::accumulate(mass.begin(), mass.end(), 0.0);
  std::vector<bool> kept(mass.size(), false);
  kept.front() = kept.back() = true;
  double sum = own == 0 ? mass[0] : mass.front() + mass.back();
  while (sum < target) {
    std::size_t heaviest = mass.size();
    for (std::size_t block = 0; block < mass.size(); ++block) {
      if (!kept[block] && (heaviest == mass.size() || mass[block] > mass[heaviest])) heaviest = block;
    }
    if (heaviest == mass.size()) break;
    kept[heaviest] = true;
    sum += mass[heaviest];
  }
  std::string row;
  for (Index key = 0; key < in.keys_length(); ++key)
    row += key <= position && kept[static_cast<std::size_t>(key / size)] ? '1' : '.';
  return row;
}

TEST(XAttention, FollowsItsRuleWhereQueriesAndKeysFillNoWholeBlock) {
  for (const Index queries : {43, 27}) {
    OwnedInputs owned({1, 4, 2, queries, 43, 8, 8}, 2);
    owned.inputs.scaling = 2;  // so that blocks differ
    Index left = 0;
    for (const Index stride : {1, 2, 4}) {
      const Mask mask =
          mask_of(masker("x_attention", R"("block_size": 4, "threshold": 0.7, "stride": )" + std::to_string(stride)),
                  owned.inputs);
      for (Index head = 0; head < 4; ++head) {
        for (Index query = 0; query < queries; ++query) {
          const std::string row = row_text(mask, query, head);
          EXPECT_EQ(row, reference_row(owned.inputs, head, query, stride, 4, 0.7))
              << "stride " << stride << ", head " << head << ", query " << query;
          left += owned.inputs.position(query) + 1 - std::count(row.begin(), row.end(), '1');
        }
      }
    }
    EXPECT_GT(left, 100) << "a rule that keeps everything shows little";
  }
}

TEST(XAttention, RefusesBadParameters) {
  EXPECT_EQ(refusal(R"({"type": "x_attention", "block_size": 12})"),
            "/maskers/0/block_size: must be a multiple of stride, got 12");
  EXPECT_EQ(refusal(R"({"type": "x_attention", "stride": 1025})"), "/maskers/0/stride: must be in [1, 1024], got 1025");
  EXPECT_EQ(refusal(R"({"type": "x_attention", "norm": 0})"), "/maskers/0/norm: must be > 0, got 0");
}

}  // namespace
}  // namespace reticle::testing
