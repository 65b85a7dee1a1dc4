#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/maskers.hpp"
#include "support/models.hpp"

namespace reticle::testing {
namespace {

/// The error of loading these files; empty when they load.
std::string refusal(const ModelFiles& files, const std::function<void(const std::filesystem::path&)>& spoil = {}) {
  const TemporaryFolder folder;
  files.write(folder.path());
  if (spoil) spoil(folder.path());
  try {
    Decoder::load(folder.path());
    return "";
  } catch (const Error& error) {
    std::string message = error.what();
    const std::string path = folder.path().string();
    for (std::size_t at = 0; (at = message.find(path)) != std::string::npos;) message.replace(at, path.size(), "M");
    return message;
  }
}

#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

// --- loading ---

TEST(DecoderLoading, TakesEveryFloatStorage) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Decoder decoder = small_model(1, dtype);
    DecoderState state = decoder.start(4);
    const Tensor logits = decoder.forward(random_tokens(3, 1), state);
    EXPECT_EQ(logits.view().describe(), "F32 (3, 50)");
  }
}

TEST(DecoderLoading, ReadsShards) {
  const TemporaryFolder folder;
  const ModelFiles files;
  files.write(folder.path());
  const Decoder whole = Decoder::load(folder.path());
  std::filesystem::remove(folder / "model.safetensors");
  std::vector<NamedTensor> all = files.named();
  std::string map;
  for (std::size_t i = 0; i < all.size(); ++i)
    map += (i == 0 ? "" : ", ") + ("\"" + all[i].name + "\": \"" + (i < 5 ? "a" : "b") + ".safetensors\"");
  save_safetensors(folder / "a.safetensors", {all.begin(), all.begin() + 5});
  save_safetensors(folder / "b.safetensors", {all.begin() + 5, all.end()});
  write_bytes(folder / "model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
  const Decoder sharded = Decoder::load(folder.path());
  DecoderState a = whole.start(8), b = sharded.start(8);
  const std::vector<std::int32_t> tokens = random_tokens(8, 2);
  expect_near(whole.forward(tokens, a).span<float>(), sharded.forward(tokens, b).span<float>(), 0);

  write_bytes(folder / "model.safetensors.index.json", R"({"weight_map": {"x": "../a.safetensors"}})");
  EXPECT_THROW(Decoder::load(folder.path()), FormatError);
  write_bytes(folder / "model.safetensors.index.json", "[]");
  EXPECT_THROW(Decoder::load(folder.path()), FormatError);
}

TEST(DecoderLoading, NamesEveryTensorThatIsWrong) {
  ModelFiles files;
  files.tensors.erase("model.layers.1.mlp.up_proj.weight");
  files.add("model.layers.0.self_attn.k_proj.weight", {32, 24});
  files.add("model.layers.2.mlp.up_proj.weight", {40, 24});
  Tensor integers(DType::i32, {24});
  files.tensors.insert_or_assign("model.norm.weight", std::move(integers));
  const std::string message = refusal(files);
  EXPECT_SAYS(message, "M: the tensors are not those of the config:");
  EXPECT_SAYS(message, "\"model.layers.1.mlp.up_proj.weight\" is missing");
  EXPECT_SAYS(message,
              "\"model.layers.0.self_attn.k_proj.weight\" is F32 (32, 24); expected F32, F16 or BF16 (16, 24)");
  EXPECT_SAYS(message, "\"model.layers.2.mlp.up_proj.weight\" is not part of this architecture");
  EXPECT_SAYS(message, "\"model.norm.weight\" is I32 (24); expected F32, F16 or BF16 (24)");
}

TEST(DecoderLoading, UntiedModelsNeedTheirHead) {
  ModelFiles files;
  files.config["tie_word_embeddings"] = "false";
  EXPECT_SAYS(refusal(files), "\"lm_head.weight\" is missing");
  files.add("lm_head.weight", {50, 24});
  EXPECT_EQ(refusal(files), "");
  files.config["tie_word_embeddings"] = "true";
  EXPECT_EQ(refusal(files), "") << "a tied model may come with its head all the same";
}

TEST(DecoderLoading, RefusesATruncatedFile) {
  const std::string message = refusal(ModelFiles(), [](const std::filesystem::path& folder) {
    const std::string bytes = read_bytes(folder / "model.safetensors");
    write_bytes(folder / "model.safetensors", bytes.substr(0, bytes.size() - 100));
  });
  EXPECT_SAYS(message, "M/model.safetensors: ");
}

TEST(DecoderLoading, AFolderWithoutAModelSaysWhatAModelIs) {
  EXPECT_SAYS(refusal(ModelFiles(), [](const auto& folder) { std::filesystem::remove(folder / "config.json"); }),
              "M/config.json: cannot be read: No such file or directory; a model is a folder with config.json and "
              "*.safetensors");
  EXPECT_SAYS(refusal(ModelFiles(), [](const auto& folder) { std::filesystem::remove(folder / "model.safetensors"); }),
              "M: has neither model.safetensors nor model.safetensors.index.json");
}

TEST(DecoderLoading, KeysOfOtherConcernsArePassedOver) {
  ModelFiles files;
  files.config["torch_dtype"] = "\"bfloat16\"";
  files.config["pretraining_tp"] = "1";
  files.config["rope_scaling"] = "null";
  files.config["head_dim"] = "null";
  files.config["hidden_act"] = "\"silu\"";
  // 24 / 4 heads would be 6 wide, which the tensors are not.
  EXPECT_SAYS(refusal(files), "q_proj");
  files.config["head_dim"] = "8";
  EXPECT_EQ(refusal(files), "");
}

// --- forward ---

TEST(Decoder, TokensOneByOneGiveTheLogitsOfAllAtOnce) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(40, 3);
  DecoderState whole = decoder.start(40), stepwise = decoder.start(40);
  const Tensor expected = decoder.forward(tokens, whole);
  for (std::size_t i = 0; i < tokens.size(); i += 4) {  // in steps of 1 and 3
    for (const auto& [from, count] :
         {std::pair<std::size_t, std::size_t>{i, 1}, std::pair<std::size_t, std::size_t>{i + 1, 3}}) {
      const Tensor step = decoder.forward(std::span(tokens).subspan(from, count), stepwise);
      expect_near(step.span<float>(), expected.span<float>().subspan(from * 50, count * 50), 1e-5);
    }
  }
}

TEST(Decoder, ABatchOfUnevenLengthsGivesWhatEachSequenceGivesAlone) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(30, 4);
  const std::vector<Index> cu_seqlens{0, 17, 17, 18, 30};
  std::vector<DecoderState> states;
  std::vector<DecoderState*> pointers;
  for (int i = 0; i < 4; ++i) states.push_back(decoder.start(20));
  for (DecoderState& state : states) pointers.push_back(&state);
  const Tensor batched = decoder.forward(tokens, cu_seqlens, pointers);
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const auto from = static_cast<std::size_t>(cu_seqlens[i]),
               count = static_cast<std::size_t>(cu_seqlens[i + 1]) - from;
    if (count == 0) continue;
    DecoderState alone = decoder.start(20);
    expect_near(batched.span<float>().subspan(from * 50, count * 50),
                decoder.forward(std::span(tokens).subspan(from, count), alone).span<float>(), 1e-5);
  }
  EXPECT_EQ(states[1].length(), 0);
}

TEST(Decoder, LastLogitsAreThoseOfTheLastTokens) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(9, 5);
  DecoderState a = decoder.start(9), b = decoder.start(9);
  const Tensor all = decoder.forward(tokens, a), last = decoder.forward(tokens, b, {.logits = Logits::last});
  expect_near(last.span<float>(), all.span<float>().last(50), 1e-6);
}

TEST(Decoder, WhatIsRefusedChangesNothing) {
  const Decoder decoder = small_model();
  DecoderState small = decoder.start(4), large = decoder.start(200);
  const std::vector<std::int32_t> three = random_tokens(3, 6);
  decoder.forward(three, small);
  decoder.forward(three, large);
  DecoderState* const both[] = {&large, &small};
  const std::vector<std::int32_t> four = random_tokens(4, 6);
  EXPECT_THROW(decoder.forward(four, std::vector<Index>{0, 2, 4}, both), ValueError) << "the small one is full";
  EXPECT_EQ(large.length(), 3);
  EXPECT_THROW(decoder.forward(std::vector<std::int32_t>{50}, large), ValueError);
  EXPECT_THROW(decoder.forward(std::vector<std::int32_t>{-1}, large), ValueError);
  EXPECT_THROW(decoder.forward(random_tokens(126, 7), large), ValueError) << "beyond max_position_embeddings";
  EXPECT_THROW(decoder.forward({}, large, {.logits = Logits::last}), ValueError);
  EXPECT_THROW(decoder.forward(four, std::vector<Index>{0, 5, 4}, both), ShapeError);
  EXPECT_THROW(decoder.forward(four, std::vector<Index>{0, 4}, both), ShapeError);
  EXPECT_EQ(large.length(), 3);
  EXPECT_EQ(small.length(), 3);
}

TEST(Decoder, AFailureWithinALayerLeavesTheCacheAsItWas) {
  const Decoder decoder = small_model();
  // TOVA generates only after it has seen a prompt, which it has not of layer 1.
  const SparseAttention sparse = SparseAttention::by_stage(
      pipeline_of(""),
      pipeline_of(R"({"type": "local", "window_size": 4}, {"type": "tova", "token_capacity": 4, "layers": [1]})"));
  DecoderState state = decoder.start(10), fresh = decoder.start(10);
  decoder.forward(random_tokens(3, 1), state);
  decoder.forward(random_tokens(3, 1), fresh);
  EXPECT_THROW(decoder.forward(random_tokens(1, 2), state, {.sparse = &sparse}), ValueError);
  EXPECT_EQ(state.length(), 3);
  EXPECT_EQ(state.cache.stored(0), 3);
  const std::vector<std::int32_t> next = random_tokens(2, 3);
  expect_near(decoder.forward(next, state).span<float>(), decoder.forward(next, fresh).span<float>(), 0);
}

TEST(Decoder, APipelineThatKeepsEverythingChangesNothing) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(30, 8);
  const SparseAttention sparse = SparseAttention::by_stage(pipeline_of(R"({"type": "causal"})"),
                                                           pipeline_of(R"({"type": "local", "window_size": 64})"));
  DecoderState dense = decoder.start(30), handled = decoder.start(30);
  const ForwardOptions options{.sparse = &sparse};
  expect_near(decoder.forward(std::span(tokens).first(20), handled, options).span<float>(),
              decoder.forward(std::span(tokens).first(20), dense).span<float>(), 1e-5);
  expect_near(decoder.forward(std::span(tokens).subspan(20), handled, options).span<float>(),
              decoder.forward(std::span(tokens).subspan(20), dense).span<float>(), 1e-5);
  EXPECT_EQ(handled.attention.recorded(Stage::prefill).sparsity.size(), 2) << "one call a layer";
  EXPECT_EQ(handled.attention.recorded(Stage::generation).density(), 1);
}

TEST(Decoder, SparseGenerationStepByStepEqualsTeacherForcing) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(40, 9);
  const SparseAttention sparse = SparseAttention::by_stage(pipeline_of(R"({"type": "local", "window_size": 12})"),
                                                           pipeline_of(R"({"type": "tova", "token_capacity": 9})"));
  const ForwardOptions options{.sparse = &sparse};
  DecoderState forced = decoder.start(40), stepwise = decoder.start(40);
  decoder.forward(std::span(tokens).first(28), forced, options);
  const Tensor expected = decoder.forward(std::span(tokens).subspan(28), forced, options);
  decoder.forward(std::span(tokens).first(28), stepwise, options);
  for (std::size_t i = 28; i < 40; ++i) {
    const Tensor step = decoder.forward(std::span(tokens).subspan(i, 1), stepwise, options);
    expect_near(step.span<float>(), expected.span<float>().subspan((i - 28) * 50, 50), 1e-5);
  }
}

TEST(Decoder, AResetStateStartsAnew) {
  const Decoder decoder = small_model();
  DecoderState state = decoder.start(10, DType::bf16);
  const Tensor first = decoder.forward(random_tokens(10, 10), state);
  state.reset();
  EXPECT_EQ(state.length(), 0);
  const Tensor second = decoder.forward(random_tokens(10, 10), state);
  expect_near(second.span<float>(), first.span<float>(), 0);
}

TEST(Decoder, AQuantisedCacheGivesTheLogitsOfFloatsUpToTheRoundingOfOlderKeys) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(40, 14);
  const auto logits = [&](DType dtype, Index recent) {
    DecoderState state = decoder.start(40, dtype, recent);
    decoder.forward(std::span(tokens).first(30), state);
    std::vector<float> found;
    for (std::size_t i = 30; i < 40; ++i) {
      const Tensor step = decoder.forward(std::span(tokens).subspan(i, 1), state);
      found.insert(found.end(), step.span<float>().begin(), step.span<float>().end());
    }
    return found;
  };
  const std::vector<float> expected = logits(DType::f32, 0);
  expect_near(logits(DType::q4, 40), expected, 1e-5);  // every key is recent
  expect_near(logits(DType::q8, 4), expected, 0.05);
  EXPECT_NE(logits(DType::q8, 4), expected);
}

TEST(Decoder, ATruncatedCacheGoesOnFromThere) {
  const Decoder decoder = small_model();
  const std::vector<std::int32_t> tokens = random_tokens(12, 11);
  DecoderState state = decoder.start(20), fresh = decoder.start(20);
  decoder.forward(random_tokens(8, 12), state);
  decoder.forward(std::span(tokens).first(5), fresh);
  state.reset();
  decoder.forward(tokens, state);
  EXPECT_EQ(state.cache.reuse(std::span(tokens).first(5)), 5);
  const std::vector<std::int32_t> more = random_tokens(3, 13);
  expect_near(decoder.forward(more, state).span<float>(), decoder.forward(more, fresh).span<float>(), 1e-6);
}

}  // namespace
}  // namespace reticle::testing
