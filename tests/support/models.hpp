// Small models with random weights, in memory and on disk.
#pragma once

#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <reticle/attention/llama/decoder.hpp>

#include "support/attention.hpp"
#include "support/files.hpp"

namespace reticle::testing {

/// A folder with config.json and model.safetensors; its parts can be modified before it is written.
struct ModelFiles {
  std::map<std::string, std::string> config{{"model_type", "\"llama\""},
                                            {"vocab_size", "50"},
                                            {"hidden_size", "24"},
                                            {"intermediate_size", "40"},
                                            {"num_hidden_layers", "2"},
                                            {"num_attention_heads", "4"},
                                            {"num_key_value_heads", "2"},
                                            {"head_dim", "8"},
                                            {"rope_theta", "10000.0"},
                                            {"tie_word_embeddings", "true"},
                                            {"max_position_embeddings", "128"}};
  std::map<std::string, Tensor> tensors;

  explicit ModelFiles(std::uint32_t seed = 1, DType dtype = DType::f32) : dtype_(dtype), random_(seed) {
    add("model.embed_tokens.weight", {50, 24});
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      add(prefix + "input_layernorm.weight", {24});
      add(prefix + "post_attention_layernorm.weight", {24});
      add(prefix + "self_attn.q_proj.weight", {32, 24});
      add(prefix + "self_attn.k_proj.weight", {16, 24});
      add(prefix + "self_attn.v_proj.weight", {16, 24});
      add(prefix + "self_attn.o_proj.weight", {24, 32});
      add(prefix + "mlp.gate_proj.weight", {40, 24});
      add(prefix + "mlp.up_proj.weight", {40, 24});
      add(prefix + "mlp.down_proj.weight", {24, 40});
    }
    add("model.norm.weight", {24});
  }

  void add(const std::string& name, std::initializer_list<Index> shape) {
    tensors.insert_or_assign(name, random_tensor(dtype_, shape, random_, 0.3f));
  }

  std::string config_text() const {
    std::string text;
    for (const auto& [key, value] : config) text += (text.empty() ? "{\"" : ", \"") + key + "\": " + value;
    return text + "}";
  }
  std::vector<NamedTensor> named() const {
    std::vector<NamedTensor> named;
    for (const auto& [name, tensor] : tensors) named.push_back({name, tensor.view()});
    return named;
  }
  void write(const std::filesystem::path& folder) const {
    write_bytes(folder / "config.json", config_text());
    save_safetensors(folder / "model.safetensors", named());
  }

 private:
  DType dtype_;
  std::mt19937 random_;
};

inline Decoder small_model(std::uint32_t seed = 1, DType dtype = DType::f32) {
  const TemporaryFolder folder;
  ModelFiles(seed, dtype).write(folder.path());
  return Decoder::load(folder.path());
}

inline std::vector<std::int32_t> random_tokens(Index count, std::uint32_t seed, std::uint32_t vocabulary = 50) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens;
  for (Index i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(random() % vocabulary));
  return tokens;
}

inline void expect_near(std::span<const float> a, std::span<const float> b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_NEAR(a[i], b[i], tolerance * (1 + std::abs(static_cast<double>(b[i])))) << "element " << i;
}

}  // namespace reticle::testing
