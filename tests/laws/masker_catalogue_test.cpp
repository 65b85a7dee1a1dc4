// Properties of the maskers in the catalogue, beyond the contract of every masker.
#include "support/masker_catalogue.hpp"

#include <limits>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/reshape.hpp>
#include <reticle/core/registry.hpp>

namespace reticle::testing {
namespace {

/// These maskers need a prefill or a data file, and are tested in separate files.
const std::set<std::string> kElsewhere{"ada_snap_kv", "block_list", "h2o", "pyramid_kv", "snap_kv", "tova"};

TEST_P(Catalogue, ChoosesAndDoesNotDependOnThreads) {
  SequenceState one, three;
  const Mask mask = sparse.mask(inputs, one, Context(1));
  EXPECT_EQ(sparse.mask(inputs, three, Context(3)), mask);
  EXPECT_GT(mask.nnz(), 0);
  if (std::string(GetParam().masker).find("causal") == std::string::npos) {
    EXPECT_LT(mask.nnz(), causal_nnz(Mask::full(inputs.shape()))) << "a test that leaves nothing out shows little";
  }
}

TEST_P(Catalogue, HeadsThatAreNotWantedChangeNothingForTheOthers) {
  std::string masker = with_data(GetParam().masker);
  masker.insert(masker.size() - 1, R"(, "heads": [1])");
  SequenceState all, some;
  const Mask whole = sparse.mask(inputs, all), part = pipeline_of(masker, true).mask(inputs, some);
  EXPECT_EQ(slice(part, Dim::heads, 1, 2), slice(whole, Dim::heads, 1, 2));
  EXPECT_EQ(slice(part, Dim::heads, 2, 4), slice(restrict_causal(Mask::full(inputs.shape())), Dim::heads, 2, 4))
      << "heads that no masker serves are dense";
}

class DecodeIsPrefill : public Catalogue {};
TEST_P(DecodeIsPrefill, ADecodeStepSelectsWhatThePrefillDoes) {
  SequenceState prefilled, decoded;
  const Mask prefill = sparse.mask(inputs, prefilled);
  for (Index query = 0; query < kLength; ++query) {
    const Mask row = sparse.mask(step(query), decoded);
    EXPECT_EQ(row, slice(slice(prefill, Dim::queries, query, query + 1), Dim::keys, 0, query + 1)) << query;
  }
}

class ReadsNewKeysOnly : public Catalogue {};
TEST_P(ReadsNewKeysOnly, ADecodeStepDoesNotReadOldKeysAgain) {
  SequenceState kept, spoilt;
  sparse.mask(inputs.rows(0, 50), kept);
  sparse.mask(inputs.rows(0, 50), spoilt);
  const Mask expected = sparse.mask(step(50), kept);
  // Old keys become NaN, except the last one, by which a masker recognises the sequence.
  Tensor keys = Tensor::copy(owned.keys, DType::f32);
  for (Index head = 0; head < 2; ++head) {
    for (Index i = 0; i < 49 * 64; ++i)
      keys.span<float>()[static_cast<std::size_t>(head * kLength * 64 + i)] = std::numeric_limits<float>::quiet_NaN();
  }
  AttentionInputs changed = step(50);
  changed.keys = keys.view().slice(2, 0, 51);
  EXPECT_EQ(sparse.mask(changed, spoilt), expected);
}

std::vector<Entry> promising(unsigned promise) {
  std::vector<Entry> entries;
  for (const Entry& entry : kCatalogue) {
    if ((entry.promises & promise) == promise) entries.push_back(entry);
  }
  return entries;
}

INSTANTIATE_TEST_SUITE_P(Maskers, Catalogue, ::testing::ValuesIn(kCatalogue), name_of_entry);
INSTANTIATE_TEST_SUITE_P(Maskers, DecodeIsPrefill, ::testing::ValuesIn(promising(kDecodeIsPrefill)), name_of_entry);
INSTANTIATE_TEST_SUITE_P(Maskers, ReadsNewKeysOnly, ::testing::ValuesIn(promising(kReadsNewKeysOnly)), name_of_entry);

TEST(CatalogueTest, HoldsEveryMasker) {
  std::set<std::string> covered = kElsewhere;
  for (const Entry& entry : kCatalogue) {
    const std::vector<std::string> types = pipeline_of(with_data(entry.masker)).maskers(Stage::prefill);
    covered.insert(types.begin(), types.end());
  }
  for (const MaskerType* type : Registry::global().list()) {
    if (!type->name.starts_with("test_")) {
      EXPECT_TRUE(covered.contains(type->name)) << type->name;
    }
  }
}

TEST(Maskers, DecodeRowsEqualPrefillRows) {
  const OwnedInputs owned({1, 4, 2, 20, 60, 16, 16}, 6);
  const std::string maskers = R"({"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 5},
                                 {"type": "oracle_top_k", "heavy_size": 7}, {"type": "oracle_top_p", "top_p": 0.3})";
  const Mask prefill = mask_of(maskers, owned.inputs, true);
  for (Index q = 0; q < 20; ++q) {
    AttentionInputs step = owned.inputs;
    step.queries = step.queries.slice(2, q, q + 1);
    step.keys = step.keys.slice(2, 0, 41 + q);
    step.values = step.values.slice(2, 0, 41 + q);
    const Mask decode = mask_of(maskers, step, true);
    for (Index head = 0; head < 4; ++head) {
      std::vector<reticle::Run> ours, theirs;
      decode.row({0, head, 0}, ours);
      prefill.row({0, head, q}, theirs);
      EXPECT_EQ(ours, theirs) << "query " << q << ", head " << head;
    }
  }
}

}  // namespace
}  // namespace reticle::testing
