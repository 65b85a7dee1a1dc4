// Keeps the keys whose learned hash codes share the most bits with the query's. HashAttention (Desai et al. 2024);
// sparse-attention-hub's HashAttentionTopK, with weights as data (safetensors) instead of pickles.
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/hash_codes.hpp>

namespace reticle::maskers {

struct HashAttentionTopKConfig {
  Size heavy_size = 0.1;
  Index hat_bits = 32;
  Index hat_mlp_layers = 3;
  Index hat_mlp_hidden_size = 128;
  HashActivation hat_mlp_activation = HashActivation::silu;
  std::filesystem::path hat_weight_file;

  static constexpr const char* docs[] = {
      "keys added per query, beyond those already chosen",
      "bits of a code, as the weights have them",
      "linear maps of an MLP, as the weights have them",
      "width between them, as the weights have it",
      "activation between the linear maps",
      "safetensors with hat.<layer>.{query,key}_{matrix,bias}.<i>: (hq, in, out) and (hq, out), F32"};
  static constexpr std::string_view required[] = {"hat_weight_file"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(hat_bits > 0 && hat_bits <= 4096, "hat_bits", "must be in [1, 4096]");
    require(hat_mlp_layers > 0 && hat_mlp_layers <= 64, "hat_mlp_layers", "must be in [1, 64]");
    require_count(hat_mlp_hidden_size, "hat_mlp_hidden_size");
    require(std::filesystem::is_regular_file(hat_weight_file), "hat_weight_file", "must be a file");
  }
};

class HashAttentionTopK final : public Masker {
 public:
  explicit HashAttentionTopK(const HashAttentionTopKConfig& config)
      : config_(config), weights_(config.hat_weight_file) {}

  std::vector<Rule> rules(Index keys, int layer) const override {
    Rule rule{Rule::Kind::hashed, config_.heavy_size.resolve(keys)};
    rule.hash = &layer_hash(layer);
    return {rule};
  }

 private:
  /// The weights of a layer, read at first use; references to them stay valid.
  const LearnedHash& layer_hash(int layer) const {
    const std::lock_guard lock(reading_);
    if (const auto known = layers_.find(layer); known != layers_.end()) return known->second;
    const std::optional<TensorView> first = weights_.find("hat." + std::to_string(layer) + ".query_matrix.0");
    const bool there = first && first->rank == 3;
    const Index heads = there ? first->size(0) : 1, head_dim = there ? first->size(1) : 1;
    LearnedHash hash{mlp(layer, "query", heads, head_dim), mlp(layer, "key", heads, head_dim)};
    return layers_.emplace(layer, std::move(hash)).first->second;
  }

  HashMlp mlp(int layer, const std::string& side, Index heads, Index head_dim) const {
    HashMlp mlp([&](const std::string& name) { return weights_.find(name); },
                "hat." + std::to_string(layer) + "." + side, config_.hat_mlp_activation, heads, head_dim);
    const auto text = [](Index layers, Index hidden, Index bits) {
      return std::to_string(layers) + " linear maps" + (layers > 1 ? " of width " + std::to_string(hidden) : "") +
             " to " + std::to_string(bits) + " bits";
    };
    const std::string have = text(mlp.layers(), mlp.hidden(), mlp.bits());
    const std::string wanted = text(config_.hat_mlp_layers, config_.hat_mlp_hidden_size, config_.hat_bits);
    if (have != wanted)
      throw ShapeError(config_.hat_weight_file.string() + ": layer " + std::to_string(layer) + " has " + have +
                       "; the config says " + wanted);
    return mlp;
  }

  HashAttentionTopKConfig config_;
  SafeTensors weights_;
  mutable std::mutex reading_;
  mutable std::map<int, LearnedHash> layers_;
};

RETICLE_REGISTER_MASKER(
    "hash_attention_top_k", HashAttentionTopK, HashAttentionTopKConfig,
    {.summary = "Keeps the keys whose learned hash codes share the most bits with the query's.",
     .source = "HashAttention (Desai et al. 2024); sparse-attention-hub (HashAttentionTopK)",
     .rule = "the heavy_size keys of largest (shared bits - other bits) + attention_mask among those not "
             "chosen yet",
     .cost = "O(queries * keys * hat_bits / 64) time; a decode step hashes new keys only; hat_bits / 8 "
             "bytes per key and query head of state"});

}  // namespace reticle::maskers
