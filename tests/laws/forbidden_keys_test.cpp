// Keys that the attention mask forbids must not influence any masker, whatever their values.
#include <algorithm>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/convert.hpp>

#include "support/masker_catalogue.hpp"

namespace reticle::testing {
namespace {

/// A batch with an attention mask: the first sequence is padded on the left; scattered keys of the second are
/// forbidden, and key 40 is forbidden to some of its queries only.
class ForbiddenKeys : public Catalogue {
 protected:
  static constexpr Index kPrompt = 60;
  ForbiddenKeys() : attention_mask_(DType::f32, {2, 1, kLength, kLength}) {
    for (Index query = 0; query < kLength; ++query) {
      for (Index key = 0; key < kLength; ++key) {
        if (is_forbidden(0, query, key)) at(0, query, key) = -std::numeric_limits<float>::infinity();
        if (is_forbidden(1, query, key)) at(1, query, key) = -std::numeric_limits<float>::infinity();
      }
    }
  }
  static bool is_forbidden(Index batch, Index query, Index key) {
    if (batch == 0) return key < 13;
    return key % 7 == 3 || (key >= 24 && key < 33) || (key == 40 && query % 2 == 0);
  }
  /// The masker's selection among the allowed keys, at the prompt and at the steps after it.
  std::vector<Array<float>> chosen(Tensor& keys) {
    inputs.queries = queries_.view();
    inputs.keys = keys.view();
    inputs.values = values_.view();
    inputs.attention_mask = attention_mask_.view();
    SequenceState state;
    std::vector<Array<float>> masks;
    const auto add = [&](const Mask& mask, Index first) {
      masks.push_back(to_dense(mask));
      const MaskShape shape = mask.shape();
      for (Index row = 0; row < shape.rows(); ++row) {
        const RowId id = shape.row_of_logical(row);
        for (Index key = 0; key < shape.keys; ++key) {
          if (is_forbidden(id.batch, first + id.query, key))
            masks.back()[static_cast<std::size_t>(row * shape.keys + key)] = 0;
        }
      }
    };
    const auto of_both = [&](Index from, Index to) {
      for (NamedTensor& extra : extras) {
        extra.tensor = (extra.name == "indexer_keys"      ? indexer_keys
                        : extra.name == "indexer_queries" ? indexer_queries
                                                          : indexer_weights)
                           .view();
        extra.tensor = extra.tensor.slice(2, extra.name == "indexer_keys" ? 0 : from, to);
        extra.tensor.shape[0] = 2;
        extra.tensor.strides[0] = 0;
      }
      AttentionInputs part = inputs.rows(from, to);
      part.extras = extras;
      part.stage = from == 0 ? Stage::prefill : Stage::generation;
      return part;
    };
    add(sparse.mask(of_both(0, kPrompt), state), 0);
    for (Index query = kPrompt; query < kLength; ++query) add(sparse.mask(of_both(query, query + 1), state), query);
    return masks;
  }

  Tensor random(Index heads, std::uint32_t seed) const {
    std::mt19937 engine(seed);
    return random_tensor(DType::f32, {2, heads, kLength, 64}, engine);
  }
  Tensor keys_ = random(2, 3);

 private:
  float& at(Index batch, Index query, Index key) {
    return attention_mask_.span<float>()[static_cast<std::size_t>((batch * kLength + query) * kLength + key)];
  }
  Tensor queries_ = random(4, 1), values_ = random(2, 2), attention_mask_;
};

TEST_P(ForbiddenKeys, WhatTheyHoldDecidesNothing) {
  const std::vector<Array<float>> expected = chosen(keys_);
  std::mt19937 engine(5);
  std::normal_distribution<float> large(0, 50);
  for (const float spoilt : {0.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor keys = Tensor::copy(keys_, DType::f32);
    for (Index row = 0; row < 4 * kLength; ++row) {
      if (!is_forbidden(row / (2 * kLength), 1, row % kLength)) continue;  // to every query, since query 1 is odd
      for (Index i = row * 64; i < (row + 1) * 64; ++i)
        keys.span<float>()[static_cast<std::size_t>(i)] = spoilt == 0 ? large(engine) : spoilt;
    }
    const std::vector<Array<float>> masks = chosen(keys);
    for (std::size_t step = 0; step < masks.size(); ++step)
      EXPECT_TRUE(std::equal(masks[step].begin(), masks[step].end(), expected[step].begin(), expected[step].end()))
          << "forbidden keys hold " << spoilt << ", call " << step;
  }
}

std::vector<Entry> all_entries() {
  std::vector<Entry> entries(std::begin(kCatalogue), std::end(kCatalogue));
  entries.insert(entries.end(), std::begin(kEvictions), std::end(kEvictions));
  return entries;
}

INSTANTIATE_TEST_SUITE_P(Maskers, ForbiddenKeys, ::testing::ValuesIn(all_entries()), name_of_entry);

}  // namespace
}  // namespace reticle::testing
