// The configuration of a Llama-architecture decoder.
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include <reticle/attention/layers/rope.hpp>
#include <reticle/attention/nsa/config.hpp>

namespace reticle {

/// Architectures that differ in the names of their tensors or in their attention.
enum class DecoderFamily : std::uint8_t {
  llama,          // Hugging Face's LlamaForCausalLM, and MistralForCausalLM without a sliding window
  toy_llama,      // native-sparse-attention-triton's ToyLlama
  toy_nsa_llama,  // native-sparse-attention-triton's ToyNSALlama: every layer is a NativeSparseAttention
};

struct RETICLE_API DecoderConfig {
  DecoderFamily family = DecoderFamily::llama;
  Index vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  Index num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  Index max_position_embeddings = 0;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  std::optional<std::int32_t> bos_token;
  std::vector<std::int32_t> eos_tokens;
  std::optional<NsaConfig> nsa;  // only in toy_nsa_llama

  /// Reads the text of a config.json: "model_type" llama, mistral, toy_llama or toy_nsa_llama, and Hugging Face's keys
  /// (for the toys, those of their dataclasses). Keys that do not affect the computation are ignored. ConfigError for
  /// keys that are missing, wrong, or ask for something that is not supported.
  static DecoderConfig from_json(std::string_view text);
  static DecoderConfig from_file(const std::filesystem::path& path);
  /// ConfigError for extents that are inconsistent.
  void validate() const;
};

}  // namespace reticle
