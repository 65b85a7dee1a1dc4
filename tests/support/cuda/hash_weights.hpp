// A masker by learned hashes, with weights at random.
#pragma once

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <reticle/core/tensor/safetensors.hpp>

#include "support/attention.hpp"

namespace reticle::cuda {

/// Weights of a layer, for head_dim 64, in a file, and a masker that hashes by them.
inline std::string hashing(const std::filesystem::path& path, int layer, Index heads, Index hidden, Index bits,
                           const char* activation) {
  std::mt19937 random(1);
  std::vector<std::pair<std::string, Tensor>> owned;
  for (const char* side : {"query", "key"}) {
    const std::string prefix = "hat." + std::to_string(layer) + "." + side;
    const Index widths[] = {64, hidden, bits};
    for (const int i : {0, 1}) {
      const std::string number = std::to_string(i);
      owned.emplace_back(prefix + "_matrix." + number,
                         reticle::testing::random_tensor(DType::f32, {heads, widths[i], widths[i + 1]}, random));
      owned.emplace_back(prefix + "_bias." + number,
                         reticle::testing::random_tensor(DType::f32, {heads, widths[i + 1]}, random));
    }
  }
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : owned) tensors.push_back({name, tensor.view()});
  save_safetensors(path, tensors);
  return R"({"type": "hash_attention_top_k", "heavy_size": 60, "hat_mlp_layers": 2, "hat_mlp_hidden_size": )" +
         std::to_string(hidden) + R"(, "hat_bits": )" + std::to_string(bits) + R"(, "hat_mlp_activation": ")" +
         activation + R"(", "hat_weight_file": ")" + path.string() + R"("})";
}

}  // namespace reticle::cuda
