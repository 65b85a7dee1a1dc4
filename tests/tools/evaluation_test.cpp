#include "tools/evaluation.hpp"

#include <cmath>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/llama/loss.hpp>

#include "support/maskers.hpp"
#include "support/models.hpp"

namespace reticle::tools {
namespace {

using reticle::testing::pipeline_of;
using reticle::testing::random_tokens;
using reticle::testing::small_model;

TEST(EvaluateLoss, WindowsAreConsecutiveAndEveryTargetCounts) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> text = random_tokens(41, 7);
  const LossResult result = evaluate_loss(decoder, text, {.window = 20});
  EXPECT_EQ(result.tokens, 40);
  double sum = 0;
  for (std::size_t w = 0; w < 2; ++w) {
    DecoderState state = decoder.start(21);
    const auto tokens = std::span(text).subspan(w * 20, 21);
    sum += loss_of_last(decoder.forward(tokens, state), tokens, 20);
  }
  EXPECT_NEAR(result.loss, sum / 2, 1e-6);
  EXPECT_NEAR(result.perplexity(), std::exp(result.loss), 1e-9);
}

TEST(EvaluateLoss, AnOutputIsGeneratedAndAloneCounts) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> text = random_tokens(41, 7);
  const SparseAttention sparse =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 4})"));
  const LossResult dense = evaluate_loss(decoder, text, {.window = 20, .output_length = 8});
  const LossResult windowed = evaluate_loss(decoder, text, {.window = 20, .output_length = 8, .sparse = &sparse});
  EXPECT_EQ(dense.tokens, 16);
  EXPECT_NE(dense.loss, windowed.loss);
  EXPECT_EQ(windowed.prefill.density(), 1);
  // Of each window, rows 12 .. 19 are generated: row 12 predicts the first target that counts.
  EXPECT_EQ(windowed.generation.visible, 2 * 2 * 4 * (13 + 14 + 15 + 16 + 17 + 18 + 19 + 20));
  EXPECT_THROW(evaluate_loss(decoder, text, {.window = 20, .output_length = 21}), ValueError);
  EXPECT_THROW(evaluate_loss(decoder, text, {.window = 41}), ValueError);
}

TEST(RetrievalTasks, HideTheirAnswerInAPromptOfTheLengthAskedFor) {
  const std::string filler = "In the beginning God created the heaven and the earth. And the earth was without form. ";
  for (const RetrievalTask task : {RetrievalTask::repeated_phrase, RetrievalTask::needle, RetrievalTask::multi_needle,
                                   RetrievalTask::variable_tracking}) {
    SCOPED_TRACE(std::string(name_of(task)));
    std::set<std::string> prompts;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      const RetrievalExample example = make_example(task, 700, filler, seed);
      EXPECT_EQ(example.prompt.size(), 700);
      EXPECT_NE(example.prompt.find(example.answer), std::string::npos);
      EXPECT_FALSE(example.answer.empty());
      EXPECT_EQ(example.unaided.size(), 700);
      EXPECT_EQ(example.unaided.substr(684), example.prompt.substr(684)) << "the same question";
      EXPECT_NE(example.unaided, example.prompt);
      EXPECT_EQ(example.prompt, make_example(task, 700, filler, seed).prompt);
      prompts.insert(example.prompt);
    }
    EXPECT_GE(prompts.size(), 19);
    EXPECT_THROW(make_example(task, 20, filler, 0), ValueError);
    EXPECT_THROW(make_example(task, 700, "nowords", 0), ValueError);
  }
}

TEST(EvaluateRetrieval, NeedsAVocabularyOfBytes) {
  EXPECT_THROW(evaluate_retrieval(small_model(), "a b c", {}), ValueError);
}

}  // namespace
}  // namespace reticle::tools
