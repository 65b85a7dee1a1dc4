#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/attention/llama/config.hpp>

#include "support/files.hpp"
#include "support/message_of.hpp"
#include "support/models.hpp"

namespace reticle::testing {
namespace {

/// The config of the small model, with one key changed.
DecoderConfig with(const std::string& key, const std::string& value) {
  ModelFiles files;
  files.config[key] = value;
  return DecoderConfig::from_json(files.config_text());
}

std::string refusal(const std::string& key, const std::string& value) {
  return message_of<Error>([&] { with(key, value); });
}

TEST(DecoderConfig, ReadsTheKeysOfHuggingFace) {
  const DecoderConfig config = DecoderConfig::from_json(R"({"model_type": "mistral", "vocab_size": 50,
      "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
      "rms_norm_eps": 1e-5, "rope_theta": 500, "tie_word_embeddings": true, "eos_token_id": [2, 3],
      "bos_token_id": 1, "rope_scaling": {"type": "linear", "factor": 4}, "torch_dtype": "float16"})");
  EXPECT_EQ(config.family, DecoderFamily::llama);
  EXPECT_EQ(config.vocab_size, 50);
  EXPECT_EQ(config.intermediate_size, 40);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_key_value_heads, 4) << "as many as query heads";
  EXPECT_EQ(config.head_dim, 6) << "hidden_size / heads";
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope_theta, 500);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_tokens, (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(config.bos_token, 1);
  ASSERT_TRUE(config.rope_scaling.has_value());
  EXPECT_EQ(config.rope_scaling->type, RopeScaling::Type::linear);
  EXPECT_EQ(config.rope_scaling->factor, 4);
  EXPECT_FALSE(config.nsa.has_value());
}

TEST(DecoderConfig, ReadsTheRopeOfTransformersFive) {
  const DecoderConfig config =
      with("rope_parameters", R"({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8})");
  EXPECT_EQ(config.rope_theta, 500000);
  ASSERT_TRUE(config.rope_scaling.has_value());
  EXPECT_EQ(config.rope_scaling->type, RopeScaling::Type::llama3);
  EXPECT_EQ(config.rope_scaling->original_max_position_embeddings, 128) << "the model's longest context";
  EXPECT_FALSE(with("rope_parameters", R"({"rope_type": "default", "rope_theta": 7})").rope_scaling.has_value());
  ModelFiles both;
  both.config["rope_parameters"] = R"({"rope_type": "default"})";
  both.config["rope_scaling"] = R"({"type": "linear", "factor": 4})";
  EXPECT_EQ(message_of<ConfigError>([&] { DecoderConfig::from_json(both.config_text()); }),
            "/rope_scaling: is given beside rope_parameters, which has it, too; expected one of them");
}

TEST(DecoderConfig, ToysOfNativeSparseAttentionHaveItsKeys) {
  ModelFiles files;
  files.config["model_type"] = "\"toy_nsa_llama\"";
  files.config["compress_type"] = "\"avgpool\"";
  files.config["topk"] = "9";
  const DecoderConfig config = DecoderConfig::from_json(files.config_text());
  EXPECT_EQ(config.family, DecoderFamily::toy_nsa_llama);
  ASSERT_TRUE(config.nsa.has_value());
  EXPECT_EQ(config.nsa->compress_type, Compression::avgpool);
  EXPECT_EQ(config.nsa->topk, 9);
  EXPECT_EQ(config.nsa->kernel_size, 32);
  EXPECT_EQ(with("model_type", "\"toy_llama\"").family, DecoderFamily::toy_llama);
  files.config["kernel_stride"] = "15";
  EXPECT_EQ(message_of<ConfigError>([&] { DecoderConfig::from_json(files.config_text()); }),
            "kernel_stride: 15; expected a divisor of kernel_size, 32");
}

TEST(DecoderConfig, RefusesWhatMeansSomethingElse) {
  EXPECT_EQ(refusal("model_type", "\"gpt2\""),
            "/model_type: \"gpt2\"; expected \"llama\", \"mistral\", \"toy_llama\" or \"toy_nsa_llama\": other "
            "architectures are not supported (transformers runs them, with masks from the Python package)");
  EXPECT_EQ(refusal("hidden_size", "\"wide\""),
            "/hidden_size: \"wide\" is not an integer in [-2147483648, 2147483647]");
  EXPECT_EQ(refusal("hidden_act", "\"gelu\""), "/hidden_act: \"gelu\" is not supported; expected \"silu\"");
  EXPECT_EQ(refusal("attention_bias", "true"), "/attention_bias: true is not supported; expected false");
  EXPECT_EQ(refusal("sliding_window", "4096"),
            "/sliding_window: 4096 is not part of the model here; give null, and a \"local\" masker");
  EXPECT_EQ(refusal("num_key_value_heads", "3"), "num_attention_heads: 4 is not a multiple of num_key_value_heads, 3");
  EXPECT_EQ(refusal("num_attention_heads", "0"), "/num_attention_heads: must be positive");
  EXPECT_EQ(refusal("head_dim", "7"), "head_dim: 7; expected an even number in [2, 256]");
  EXPECT_EQ(refusal("vocab_size", "0"), "vocab_size: 0; expected a number in [1, 2^24]");
  EXPECT_EQ(
      refusal("rope_scaling", R"({"rope_type": "yarn", "factor": 4})"),
      "/rope_scaling/rope_type: \"yarn\"; expected \"default\", \"linear\" or \"llama3\": others are not supported");
  EXPECT_EQ(refusal("rope_theta", "0"), "rope: theta is 0.000000; expected a finite number > 0");
  EXPECT_EQ(refusal("eos_token_id", "[2, 99]"), "eos_token_id or bos_token_id: not below vocab_size, 50");
  EXPECT_EQ(refusal("eos_token_id", "\"x\""), "/eos_token_id: \"x\"; expected token ids");
  EXPECT_EQ(refusal("logits_scaling", "8.0"), "/logits_scaling: 8.0 is not supported; expected 1.0");
  EXPECT_EQ(refusal("quantization_config", "{}"), "/quantization_config: {} is not supported; expected null");
  EXPECT_EQ(refusal("rms_norm_eps", "1"), "rms_norm_eps: expected a number in [0, 1)");
  ModelFiles files;
  files.config.erase("num_hidden_layers");
  EXPECT_EQ(message_of<ConfigError>([&] { DecoderConfig::from_json(files.config_text()); }),
            "config: \"num_hidden_layers\" is missing: layers");
  EXPECT_TRUE(message_of<ConfigError>([] { DecoderConfig::from_json("{"); }).starts_with("config: is not JSON: "));
  EXPECT_EQ(message_of<ConfigError>([] { DecoderConfig::from_json("[1]"); }), "config: expected an object");
}

TEST(DecoderConfig, FilesAreNamedInRefusals) {
  const TemporaryFolder folder;
  const auto path = folder / "config.json";
  const auto reading = [&] { DecoderConfig::from_file(path); };
  EXPECT_EQ(message_of<ConfigError>(reading), path.string() +
                                                  ": cannot be read: No such file or directory; a model is a folder "
                                                  "with config.json and *.safetensors");
  write_bytes(path, "[1]");
  EXPECT_EQ(message_of<ConfigError>(reading), path.string() + ": config: expected an object");
  write_bytes(path, ModelFiles().config_text());
  EXPECT_EQ(DecoderConfig::from_file(path).vocab_size, 50);
}

TEST(DecoderConfig, KeysThatAreNullOrOfOtherConcernsSayNothing) {
  EXPECT_EQ(with("head_dim", "null").head_dim, 6);
  EXPECT_FALSE(with("rope_scaling", "null").rope_scaling.has_value());
  EXPECT_TRUE(with("eos_token_id", "null").eos_tokens.empty());
  EXPECT_NO_THROW(with("initializer_range", "0.02"));
  EXPECT_NO_THROW(with("pretraining_tp", "1"));
  EXPECT_NO_THROW(with("sliding_window", "null"));
}

}  // namespace
}  // namespace reticle::testing
