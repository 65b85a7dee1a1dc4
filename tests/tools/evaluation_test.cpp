#include "tools/evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/llama/generate.hpp>
#include <reticle/attention/llama/loss.hpp>
#include <reticle/core/config/enumerators.hpp>

#include "support/maskers.hpp"
#include "support/message_of.hpp"
#include "support/models.hpp"

namespace reticle::tools {
namespace {

using namespace reticle::testing;

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

TEST(EvaluateLoss, UsesWholeWindowsOfAtMostTheTokensAskedFor) {
  const Decoder decoder = small_model();
  std::vector<Index> done;
  LossOptions options{.window = 10, .tokens = 29};
  options.progress = [&](Index i, Index total) {
    EXPECT_EQ(total, 2);
    done.push_back(i);
  };
  EXPECT_EQ(evaluate_loss(decoder, random_tokens(100, 7), options).tokens, 20);
  EXPECT_EQ(done, (std::vector<Index>{0, 1}));
  EXPECT_EQ(message_of<ValueError>([&] { evaluate_loss(decoder, random_tokens(10, 7), options); }),
            "evaluate: 10 tokens of text hold no window of 10 and the token after it");
}

TEST(EvaluateLoss, AnOutputIsGeneratedAndAloneCounts) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> text = random_tokens(41, 7);
  const SparseAttention windowed =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 4})"));
  const LossResult dense = evaluate_loss(decoder, text, {.window = 20, .output_length = 8});
  const LossResult sparse = evaluate_loss(decoder, text, {.window = 20, .output_length = 8, .sparse = &windowed});
  EXPECT_EQ(dense.tokens, 16);
  EXPECT_NE(dense.loss, sparse.loss);
  EXPECT_EQ(sparse.prefill.density(), 1);
  // Of each window, rows 12 .. 19 are generated: row 12 predicts the first target that counts.
  EXPECT_EQ(sparse.generation.visible, 2 * 2 * 4 * (13 + 14 + 15 + 16 + 17 + 18 + 19 + 20));
  EXPECT_THROW(evaluate_loss(decoder, text, {.window = 20, .output_length = 21}), ValueError);
  EXPECT_THROW(evaluate_loss(decoder, text, {.window = 41}), ValueError);
}

TEST(RetrievalTasks, HideTheirAnswerInAPromptOfTheLengthAskedFor) {
  const std::string filler = "In the beginning God created the heaven and the earth. And the earth was without form. ";
  for (const RetrievalTask task : {RetrievalTask::repeated_phrase, RetrievalTask::needle, RetrievalTask::multi_needle,
                                   RetrievalTask::variable_tracking}) {
    SCOPED_TRACE(std::string(name_of_enumerator(task)));
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

TEST(RetrievalTasks, HideTheirSentencesAtTheDepthAskedFor) {
  const std::string filler = "In the beginning God created the heaven and the earth. And the earth was without form. ";
  const auto first_place = [&](RetrievalTask task, double depth) {
    return make_example(task, 700, filler, 3, depth).prompt.find(" The number of ");
  };
  const std::size_t question = std::string(" The number of Moab is ").size(), needle = question + 5;
  EXPECT_EQ(first_place(RetrievalTask::needle, 0), 0);
  const std::size_t last = first_place(RetrievalTask::needle, 1);
  EXPECT_NEAR(static_cast<double>(last), static_cast<double>(700 - question - needle), 4) << "names differ in length";
  EXPECT_NEAR(static_cast<double>(first_place(RetrievalTask::needle, 0.5)), static_cast<double>(last) / 2, 1);
  const std::string chain = make_example(RetrievalTask::variable_tracking, 700, filler, 3, 1).prompt;
  EXPECT_NE(chain.find(" The number of Elam is the number of Moab. The number of Edom is the number of Elam."),
            std::string::npos)
      << "sentences at one depth follow each other";
}

TEST(EvaluateRetrieval, NeedsAVocabularyOfBytes) {
  EXPECT_THROW(evaluate_retrieval(small_model(), "a b c", {}), ValueError);
}

/// A model of bytes, with contexts of 512.
Decoder byte_model() {
  const TemporaryFolder folder;
  ModelFiles files;
  files.config["vocab_size"] = "256";
  files.config["max_position_embeddings"] = "512";
  files.add("model.embed_tokens.weight", {256, 24});
  files.write(folder.path());
  return Decoder::load(folder.path());
}

TEST(EvaluateRetrieval, CountsTheBytesOfTheAnswersThatAreMostLikely) {
  const Decoder decoder = byte_model();
  const std::string filler = "In the beginning God created the heaven and the earth. ";
  const RetrievalOptions options{.task = RetrievalTask::repeated_phrase, .length = 300, .samples = 3, .seed = 5};
  const RetrievalResult found = evaluate_retrieval(decoder, filler, options);
  Index right = 0, bytes = 0, exact = 0;
  for (std::uint64_t sample = 1; sample <= 3; ++sample) {
    const RetrievalExample example = make_example(options.task, 300, filler, derive_seed(5, sample));
    DecoderState state = decoder.start(512);
    const Tensor logits = decoder.forward(bytes_to_tokens(example.prompt + example.answer), state);
    Index correct = 0;
    for (std::size_t i = 0; i < example.answer.size(); ++i) {
      const auto row = logits.span<float>().subspan((299 + i) * 256, 256);
      correct += std::max_element(row.begin(), row.end()) - row.begin() == static_cast<std::uint8_t>(example.answer[i]);
    }
    right += correct;
    bytes += static_cast<Index>(example.answer.size());
    exact += correct == static_cast<Index>(example.answer.size());
  }
  EXPECT_NEAR(found.accuracy, static_cast<double>(right) / static_cast<double>(bytes), 1e-12);
  EXPECT_NEAR(found.exact, static_cast<double>(exact) / 3, 1e-12);
}

TEST(EvaluateRetrieval, PromptsArePrefilledAndAnswersGenerated) {
  const Decoder decoder = byte_model();
  const SparseAttention windowed =
      SparseAttention::by_stage(pipeline_of(""), pipeline_of(R"({"type": "local", "window_size": 4})"));
  const RetrievalOptions options{.length = 200, .samples = 1, .sparse = &windowed};  // a needle: four digits
  const RetrievalResult found = evaluate_retrieval(decoder, "a word and another ", options);
  EXPECT_EQ(found.prefill.visible, 2 * 4 * 200 * 201 / 2);
  EXPECT_EQ(found.generation.visible, 2 * 4 * (201 + 202 + 203)) << "the last digit is predicted, not read";
}

TEST(EvaluateRetrieval, RefusesWhatItCannotAsk) {
  const Decoder decoder = byte_model();
  const auto refusal = [&](const RetrievalOptions& options) {
    return message_of<ValueError>([&] { evaluate_retrieval(decoder, "a b c", options); });
  };
  EXPECT_EQ(message_of<ValueError>([] { evaluate_retrieval(small_model(), "a b c", {}); }),
            "retrieval: the model's vocabulary has 50 tokens; tasks are made of bytes, for vocabularies of 256");
  EXPECT_EQ(refusal({.samples = 0}), "retrieval: expected at least one sample");
  EXPECT_EQ(refusal({.length = 513}),
            "retrieval: a prompt of 513 bytes; expected 1 to 512, the model's longest context");
}

}  // namespace
}  // namespace reticle::tools
