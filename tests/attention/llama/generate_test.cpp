#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/llama/generate.hpp>

#include "support/models.hpp"

namespace reticle::testing {
namespace {

using Prompts = std::vector<std::vector<std::int32_t>>;

TEST(Generate, IsGreedyOverFullRecomputation) {
  const Decoder decoder = small_model();
  const Prompts prompts{random_tokens(7, 1)};
  const Generation generation = generate(decoder, prompts, {.max_new_tokens = 10});
  std::vector<std::int32_t> sequence = prompts[0];
  for (const std::int32_t token : generation.tokens[0]) {
    DecoderState state = decoder.start(static_cast<Index>(sequence.size()));
    const Tensor logits = decoder.forward(sequence, state, {.logits = Logits::last});
    const auto row = logits.span<float>();
    EXPECT_EQ(token, std::max_element(row.begin(), row.end()) - row.begin());
    sequence.push_back(token);
  }
  EXPECT_EQ(generation.steps, 9);
}

TEST(Generate, ABatchOfUnevenPromptsGivesWhatEachGivesAlone) {
  const Decoder decoder = small_model();
  const Prompts prompts{random_tokens(7, 1), random_tokens(1, 2), random_tokens(30, 3)};
  const Generation batch = generate(decoder, prompts, {.max_new_tokens = 8});
  for (std::size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(batch.tokens[i], generate(decoder, Prompts{prompts[i]}, {.max_new_tokens = 8}).tokens[0]);
}

TEST(Generate, StopsAtAStopTokenAndKeepsIt) {
  const Decoder decoder = small_model();
  const Prompts prompts{random_tokens(7, 1), random_tokens(5, 4)};
  const Generation free = generate(decoder, prompts, {.max_new_tokens = 12});
  const std::int32_t stop = free.tokens[0][2];
  const Generation stopped = generate(decoder, prompts, {.max_new_tokens = 12, .stop_tokens = {stop}});
  for (std::size_t i = 0; i < 2; ++i) {
    const auto end = std::find(free.tokens[i].begin(), free.tokens[i].end(), stop);
    const std::vector<std::int32_t> expected(free.tokens[i].begin(), end == free.tokens[i].end() ? end : end + 1);
    EXPECT_EQ(stopped.tokens[i], expected);
  }
}

TEST(Generate, TheCallbackSeesEveryTokenAndMayEndASequence) {
  const Decoder decoder = small_model();
  std::vector<std::pair<Index, std::int32_t>> seen;
  GenerateOptions options{.max_new_tokens = 6};
  options.on_token = [&](Index sequence, std::int32_t token) {
    seen.emplace_back(sequence, token);
    return sequence != 0 || seen.size() < 3;
  };
  const Generation generation = generate(decoder, Prompts{random_tokens(3, 5), random_tokens(4, 6)}, options);
  EXPECT_EQ(generation.tokens[0].size(), 2);
  EXPECT_EQ(generation.tokens[1].size(), 6);
  EXPECT_EQ(seen.size(), 8);
}

TEST(Generate, NoNewTokensAreNone) {
  const Decoder decoder = small_model();
  const Generation none = generate(decoder, Prompts{random_tokens(3, 5)}, {.max_new_tokens = 0});
  EXPECT_EQ(none.tokens, Prompts{{}});
  EXPECT_TRUE(generate(decoder, Prompts{}, {}).tokens.empty());
}

TEST(Generate, RefusesWhatItCannotStartOrFinish) {
  const Decoder decoder = small_model();
  EXPECT_THROW(generate(decoder, Prompts{{}}, {}), ValueError) << "no bos_token_id";
  EXPECT_THROW(generate(decoder, Prompts{random_tokens(120, 1)}, {.max_new_tokens = 9}), ValueError)
      << "context of 128";
  EXPECT_NO_THROW(generate(decoder, Prompts{random_tokens(120, 1)}, {.max_new_tokens = 8}));
  EXPECT_THROW(generate(decoder, Prompts{{3}}, {.max_new_tokens = -1}), ValueError);
  EXPECT_THROW(generate(decoder, Prompts{{3}}, {.temperature = -1}), ValueError);
  EXPECT_THROW(generate(decoder, Prompts{{3}}, {.top_p = 0}), ValueError);
  EXPECT_THROW(generate(decoder, Prompts{{99}}, {}), ValueError);
}

TEST(Generate, AnEmptyPromptStartsFromTheBosToken) {
  const TemporaryFolder folder;
  ModelFiles files;
  files.config["bos_token_id"] = "7";
  files.write(folder.path());
  const Decoder decoder = Decoder::load(folder.path());
  EXPECT_EQ(generate(decoder, Prompts{{}}, {.max_new_tokens = 4}).tokens,
            generate(decoder, Prompts{{7}}, {.max_new_tokens = 4}).tokens);
}

TEST(Generate, EndsAtTheModelsEndOfSequence) {
  const Decoder plain = small_model();
  const std::int32_t second = generate(plain, Prompts{{3}}, {.max_new_tokens = 4}).tokens[0][1];
  const TemporaryFolder folder;
  ModelFiles files;
  files.config["eos_token_id"] = "[" + std::to_string(second) + "]";
  files.write(folder.path());
  EXPECT_LE(generate(Decoder::load(folder.path()), Prompts{{3}}, {.max_new_tokens = 4}).tokens[0].size(), 2);
}

TEST(ChooseToken, DrawsFollowTheDistributionWithinTheNucleus) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  std::vector<Index> counts(4, 0);
  for (Index draw = 0; draw < 4000; ++draw)
    ++counts[static_cast<std::size_t>(choose_token(logits, {.temperature = 1, .top_p = 0.7}, 0, draw))];
  EXPECT_NEAR(static_cast<double>(counts[0]) / 4000, 0.625, 0.03);
  EXPECT_NEAR(static_cast<double>(counts[1]) / 4000, 0.375, 0.03);
  EXPECT_EQ(counts[2] + counts[3], 0);
}

TEST(ChooseToken, TheSameSeedDrawsTheSame) {
  const Decoder decoder = small_model();
  const GenerateOptions options{.max_new_tokens = 20, .temperature = 1.5, .seed = 3};
  const Prompts prompts{random_tokens(3, 5)};
  EXPECT_EQ(generate(decoder, prompts, options).tokens, generate(decoder, prompts, options).tokens);
  GenerateOptions other = options;
  other.seed = 4;
  EXPECT_NE(generate(decoder, prompts, options).tokens, generate(decoder, prompts, other).tokens);
}

TEST(ChooseToken, OfEqualLogitsTheLowerTokenIsGreedy) {
  EXPECT_EQ(choose_token(std::vector<float>{1, 2, 2, 0}, {}, 0, 0), 1);
}

TEST(Bytes, AreTokensAndBack) {
  const std::string text("a\0\xff z", 5);
  EXPECT_EQ(tokens_to_bytes(bytes_to_tokens(text)), text);
  EXPECT_THROW(tokens_to_bytes(std::vector<std::int32_t>{256}), ValueError);
}

}  // namespace
}  // namespace reticle::testing
