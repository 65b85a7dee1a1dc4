#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/live_keys.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"
#include "support/message_of.hpp"
#include "support/written_inputs.hpp"

namespace reticle::testing {
namespace {

constexpr auto keep_all = [](RowId, LiveKeys::List&, std::span<const double>) {};
/// Removes the oldest key.
constexpr auto drop_first = [](RowId, LiveKeys::List& list, std::span<const double>) { list.erase(0); };

/// One sequence of two heads with a list each: a prompt of four keys, of which each list keeps two, followed by
/// generated keys.
class LiveKeysOfAPrompt : public ::testing::Test {
 protected:
  static constexpr Index kPrompt = 4;

  LiveKeysOfAPrompt() {
    AttentionInputs prompt = owned_.inputs.rows(0, kPrompt);
    live_.start(prompt, 2, {{{0, 2}, {}}, {{1, 3}, {}}});
  }
  AttentionInputs generated(Index from, Index to) const {
    AttentionInputs inputs = owned_.inputs.rows(kPrompt + from, kPrompt + to);
    inputs.stage = Stage::generation;
    return inputs;
  }
  template <class Evict>
  Mask generate(Index from, Index to, Evict&& evict) {
    return live_.generate("test", generated(from, to), Context(1), evict);
  }

  OwnedInputs owned_{{1, 2, 1, 90, 90, 8, 8}, 3};
  LiveKeys live_;
};

TEST_F(LiveKeysOfAPrompt, EachQuerySeesItsOwnKeyAndWhatTheOneBeforeItLeft) {
  const Mask mask = generate(0, 3, drop_first);
  EXPECT_EQ(row_text(mask, 0, 0), "1.1.1..");
  EXPECT_EQ(row_text(mask, 1, 0), "..1.11.");
  EXPECT_EQ(row_text(mask, 2, 0), "....111");
  EXPECT_EQ(row_text(mask, 0, 1), ".1.11..");
  EXPECT_EQ(row_text(mask, 2, 1), "....111");
}

TEST_F(LiveKeysOfAPrompt, ManyQueriesAtOnceAreAsOneByOne) {
  LiveKeys stepwise;
  stepwise.start(owned_.inputs.rows(0, kPrompt), 2, {{{0, 2}, {}}, {{1, 3}, {}}});
  const Mask together = generate(0, 5, drop_first);
  for (Index step = 0; step < 5; ++step) {
    const Mask one = stepwise.generate("test", generated(step, step + 1), Context(1), drop_first);
    for (Index head = 0; head < 2; ++head)
      EXPECT_EQ(row_text(one, 0, head), row_text(together, step, head).substr(0, static_cast<std::size_t>(5 + step)));
  }
}

TEST_F(LiveKeysOfAPrompt, EvictionIsToldWhatTheQueryAttendsTo) {
  const AttentionInputs inputs = generated(0, 1);
  generate(0, 1, [&](RowId row, LiveKeys::List& list, std::span<const double> probabilities) {
    ASSERT_EQ(list.keys.size(), 3u);
    ASSERT_EQ(probabilities.size(), 3u);
    double sum = 0;
    std::vector<double> expected;
    for (const std::int32_t key : list.keys) {
      double score = 0;
      for (Index i = 0; i < 8; ++i)
        score += element(inputs.queries, 0, row.head, 0, i) * element(inputs.keys, 0, 0, key, i);
      sum += expected.emplace_back(std::exp(score * static_cast<double>(inputs.scaling)));
    }
    for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(probabilities[i], expected[i] / sum, 1e-5);
  });
}

TEST_F(LiveKeysOfAPrompt, AListOfSeveralHeadsSumsTheirProbabilities) {
  LiveKeys shared;
  shared.start(owned_.inputs.rows(0, kPrompt), 1, {{{0, 1, 2, 3}, {}}});
  const Mask mask = shared.generate("test", generated(0, 1), Context(1),
                                    [](RowId row, LiveKeys::List&, std::span<const double> probabilities) {
                                      EXPECT_EQ(row.head, 0);
                                      double sum = 0;
                                      for (const double p : probabilities) sum += p;
                                      EXPECT_NEAR(sum, 2, 1e-5);
                                    });
  EXPECT_EQ(row_text(mask, 0, 0), row_text(mask, 0, 1));
}

TEST_F(LiveKeysOfAPrompt, TakeBackSteps) {
  const Mask first = generate(0, 4, drop_first);
  live_.truncate(kPrompt + 1);
  const Mask again = generate(1, 4, drop_first);
  for (Index step = 1; step < 4; ++step) EXPECT_EQ(row_text(again, step - 1, 1), row_text(first, step, 1)) << step;
}

TEST_F(LiveKeysOfAPrompt, TakeBackNoMoreThanTheyRememberAndNothingOfThePrompt) {
  generate(0, 70, keep_all);
  live_.truncate(kPrompt + 70);
  EXPECT_EQ(message_of<CannotFollow>([&] { live_.truncate(kPrompt + 5); }), "of the 65 last steps it can take back 64");
  EXPECT_EQ(message_of<CannotFollow>([&] { live_.truncate(kPrompt - 1); }),
            "it chose what to keep from a prompt of 4 keys, and 3 are left");
  EXPECT_NO_THROW(live_.truncate(kPrompt + 6));
}

TEST_F(LiveKeysOfAPrompt, LastAsTheyWereWhenAQueryCame) {
  generate(0, 3, drop_first);
  EXPECT_EQ(row_text(live_.lasting(generated(2, 3), kPrompt + 3, Context(1)), 0, 0), ".....11");
  EXPECT_EQ(row_text(live_.lasting(generated(2, 3), kPrompt + 2, Context(1)), 0, 0), "....111");
  EXPECT_EQ(row_text(live_.lasting(generated(2, 3), kPrompt + 1, Context(1)), 0, 1), "...1111");
  EXPECT_EQ(LiveKeys().lasting(generated(2, 3), kPrompt, Context(1)), Mask::full(generated(2, 3).one_query()));
}

TEST_F(LiveKeysOfAPrompt, ThePrefillIsDenseAndGenerationWithoutItRefused) {
  LiveKeys none;
  AttentionInputs prompt = owned_.inputs.rows(0, kPrompt);
  EXPECT_EQ(none.generate("test", prompt, Context(1), keep_all), Mask::full(prompt.shape()));
  EXPECT_EQ(message_of<ValueError>([&] { none.generate("test", generated(0, 1), Context(1), keep_all); }),
            "test: no prefill was observed with this state, so there is nothing to generate from; call the pipeline "
            "for the prefill first");
}

TEST_F(LiveKeysOfAPrompt, QueriesThatAreNotTheNextAreRefused) {
  EXPECT_EQ(message_of<ShapeError>([&] { generate(1, 2, keep_all); }),
            "test: the state has seen 4 keys, so the next queries start there; given are 1 queries and 6 keys");
  EXPECT_NO_THROW(generate(0, 1, keep_all));
}

TEST(LiveKeys, OfSelectedSequencesAreTheirs) {
  const OwnedInputs owned({2, 1, 1, 5, 5, 8, 8}, 3);
  LiveKeys live;
  live.start(owned.inputs.rows(0, 4), 1, {{{0}, {}}, {{1, 2}, {}}});
  live.select(std::vector<Index>{1});
  AttentionInputs next = owned.inputs.rows(4, 5);
  next.stage = Stage::generation;
  for (TensorView* view : {&next.queries, &next.keys, &next.values}) *view = view->slice(0, 1, 2);
  EXPECT_EQ(row_text(live.generate("test", next, Context(1), keep_all), 0), ".11.1");
}

TEST(LiveKeys, ErasingAKeyErasesItsScore) {
  LiveKeys::List list{{4, 7, 9}, {0.5f, 0.25f, 0.125f}};
  list.erase(1);
  EXPECT_EQ(list.keys, (std::vector<std::int32_t>{4, 9}));
  EXPECT_EQ(list.scores, (std::vector<float>{0.5f, 0.125f}));
  LiveKeys::List unscored{{4, 7}, {}};
  unscored.erase(0);
  EXPECT_EQ(unscored.keys, std::vector<std::int32_t>{7});
  EXPECT_TRUE(unscored.scores.empty());
}

}  // namespace
}  // namespace reticle::testing
