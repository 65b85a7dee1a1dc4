#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/kept_keys.hpp>

#include "support/attention.hpp"
#include "support/maskers.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

/// Two sequences with four heads and two lists each: a prompt of six keys, then three generated keys.
class KeptKeysOfAPrompt : public ::testing::Test {
 protected:
  KeptKeysOfAPrompt() {
    owned_.inputs.causal = true;
    kept_.keep(prompt(), 2, {{0, 3}, {}, {1}, {0, 1, 2, 3, 4, 5}});
  }
  AttentionInputs prompt() const {
    AttentionInputs inputs = owned_.inputs.rows(0, 6);
    inputs.stage = Stage::prefill;
    return inputs;
  }
  AttentionInputs generated(Index from, Index to) const {
    AttentionInputs inputs = owned_.inputs.rows(6 + from, 6 + to);
    inputs.stage = Stage::generation;
    return inputs;
  }

  OwnedInputs owned_{{2, 4, 2, 9, 9, 8, 8}, 3};
  KeptKeys kept_;
};

std::string text_of(const Mask& mask, Index batch, Index head, Index query) {
  std::string text;
  for (Index key = 0; key < mask.shape().keys; ++key) text += mask.at(batch, head, query, key) > 0 ? '1' : '.';
  return text;
}

TEST_F(KeptKeysOfAPrompt, AndWhatCameLaterAreSeenUpToEachPosition) {
  const Mask mask = kept_.mask("test", generated(0, 3), Context(1));
  EXPECT_EQ(text_of(mask, 0, 0, 0), "1..1..1..");
  EXPECT_EQ(text_of(mask, 0, 1, 1), "1..1..11.") << "heads 0 and 1 share a list";
  EXPECT_EQ(text_of(mask, 0, 2, 2), "......111") << "an empty list";
  EXPECT_EQ(text_of(mask, 1, 1, 0), ".1....1..");
  EXPECT_EQ(text_of(mask, 1, 3, 2), "111111111");
}

TEST_F(KeptKeysOfAPrompt, LeaveThePrefillDense) {
  EXPECT_EQ(kept_.mask("test", prompt(), Context(1)), Mask::full(prompt().shape()));
  EXPECT_EQ(KeptKeys().mask("test", prompt(), Context(1)), Mask::full(prompt().shape()));
}

TEST_F(KeptKeysOfAPrompt, LastAsTheNextQuerySeesThem) {
  const Mask lasting = kept_.lasting(generated(1, 2), Context(1));
  EXPECT_EQ(lasting.shape().queries, 1);
  EXPECT_EQ(text_of(lasting, 0, 0, 0), "1..1..11");
  EXPECT_EQ(KeptKeys().lasting(generated(0, 1), Context(1)), Mask::full(generated(0, 1).one_query()))
      << "before a prompt was observed";
}

TEST_F(KeptKeysOfAPrompt, FollowTheSequencesThatAreSelected) {
  kept_.select(std::vector<Index>{1});
  AttentionInputs inputs = generated(0, 1);
  for (TensorView* view : {&inputs.queries, &inputs.keys, &inputs.values}) *view = view->slice(0, 1, 2);
  EXPECT_EQ(text_of(kept_.mask("test", inputs, Context(1)), 0, 0, 0), ".1....1");
}

TEST_F(KeptKeysOfAPrompt, CannotLoseKeysOfThePrompt) {
  EXPECT_NO_THROW(kept_.truncate(6));
  EXPECT_EQ(message_of<CannotFollow>([&] { kept_.truncate(5); }),
            "it chose what to keep from a prompt of 6 keys, and 5 are left");
  EXPECT_NO_THROW(KeptKeys().truncate(0));
}

TEST_F(KeptKeysOfAPrompt, OfAnotherSequenceOrOfNoneAreRefused) {
  EXPECT_EQ(message_of<ValueError>([&] { KeptKeys().mask("test", generated(0, 1), Context(1)); }),
            "test: no prefill was observed with this state, so there is nothing to generate from; call the pipeline "
            "for the prefill first");
  AttentionInputs one = generated(0, 1);
  for (TensorView* view : {&one.queries, &one.keys, &one.values}) *view = view->slice(0, 0, 1);
  EXPECT_EQ(message_of<ShapeError>([&] { kept_.mask("test", one, Context(1)); }),
            "test: queries F32 (1, 4, 1, 8) and keys F32 (1, 2, 7, 8) do not continue the prompt of 6 keys, batch 2, "
            "4 query heads");
  const OwnedInputs others({2, 4, 2, 9, 9, 8, 8}, 4);
  AttentionInputs other = others.inputs.rows(6, 7);
  other.stage = Stage::generation;
  EXPECT_NO_THROW(kept_.mask("test", generated(0, 1), Context(1)));
  EXPECT_THROW(kept_.mask("test", other, Context(1)), ShapeError) << "the prompt's last key is another";
}

using Keys = std::vector<std::int32_t>;

TEST(KeepHighest, PutsTheFirstAndTheRecentBeforeAllOthers) {
  const std::vector<float> importance{0, 5, 9, 1, 7, 0};
  EXPECT_EQ(keep_highest(importance, 2, 0, 0), (Keys{2, 4}));
  EXPECT_EQ(keep_highest(importance, 3, 1, 1), (Keys{0, 2, 5}));
  EXPECT_EQ(keep_highest(importance, 4, 0, 2), (Keys{1, 2, 4, 5}));
}

TEST(KeepHighest, IsClampedToTheKeysAndTheCapacity) {
  const std::vector<float> importance{3, 1, 2};
  EXPECT_EQ(keep_highest(importance, 100, 0, 0), (Keys{0, 1, 2}));
  EXPECT_EQ(keep_highest(importance, 0, 1, 1), Keys{});
  EXPECT_EQ(keep_highest(importance, 2, 100, 100), (Keys{0, 1})) << "of equals the first";
  EXPECT_EQ(keep_highest({}, 4, 1, 1), Keys{});
}

}  // namespace
}  // namespace reticle::testing
