#include <algorithm>
#include <string>

#include <nlohmann/json.hpp>

#include <reticle/attention/llama/config.hpp>
#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/config/config.hpp>

namespace reticle {

using Json = nlohmann::ordered_json;

namespace decoder_config {

/// The keys of config.json with these names, read by reflection. Other keys are checked one by one, or ignored.
struct Keys {
  Index vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0, num_attention_heads = 0;
  std::optional<Index> num_key_value_heads, head_dim;
  Index max_position_embeddings = 2048;
  double rope_theta = 10000;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;

  static constexpr const char* docs[] = {"tokens",
                                         "width of the residual stream",
                                         "width of the feed-forward layers",
                                         "layers",
                                         "query heads",
                                         "KV heads; default: as many",
                                         "size of a head; default: hidden_size / heads",
                                         "longest context",
                                         "base of the rotary frequencies",
                                         "added to the mean square",
                                         "whether the head is the embedding"};
  static constexpr std::string_view required[] = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                                  "num_attention_heads"};
};

struct Nsa {
  Compression compress_type = Compression::weightedpool;
  Index kernel_size = 32, kernel_stride = 16, block_size = 64, topk = 16, init_blocks = 1, local_blocks = 2,
        window_size = 512;

  static constexpr const char* docs[] = {"how", "tokens", "tokens", "tokens", "blocks", "blocks", "blocks", "tokens"};
};

struct Scaling {
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  std::optional<Index> original_max_position_embeddings;

  static constexpr const char* docs[] = {"factor of stretching", "turns below which all is stretched",
                                         "turns above which nothing is",
                                         "context of the first training; default: max_position_embeddings"};
  static constexpr std::string_view required[] = {"factor"};
};

struct Theta {
  std::optional<double> rope_theta;

  static constexpr const char* docs[] = {"base of the rotary frequencies"};
};

}  // namespace decoder_config

namespace {

/// Reads those keys of `document` that a reflected type has; nulls are left out.
template <class T>
T read_known(const Json& document, const JsonPlace& place) {
  Json known = Json::object();
  for (const Field& field : type_of<T>()->fields()) {
    const auto found = document.find(std::string(field.name));
    if (found != document.end() && !found->is_null()) known[std::string(field.name)] = *found;
  }
  T values;
  from_json(*type_of<T>(), &values, known, place);
  return values;
}

std::optional<RopeScaling> rope_scaling(const Json& scaling, Index longest_context, const JsonPlace& place) {
  if (scaling.is_null()) return std::nullopt;
  if (!scaling.is_object()) place.fail("expected an object or null");
  const std::string key = scaling.contains("rope_type") ? "rope_type" : "type";
  const std::string type = scaling.contains(key) && scaling[key].is_string() ? scaling[key].get<std::string>() : "";
  if (type == "default") return std::nullopt;
  if (type != "linear" && type != "llama3")
    (place / key)
        .fail((scaling.contains(key) ? scaling[key].dump() : "missing") +
              "; expected \"default\", \"linear\" or \"llama3\": others are not supported");
  const auto keys = read_known<decoder_config::Scaling>(scaling, place);
  return RopeScaling{type == "linear" ? RopeScaling::Type::linear : RopeScaling::Type::llama3, keys.factor,
                     keys.low_freq_factor, keys.high_freq_factor,
                     keys.original_max_position_embeddings.value_or(longest_context)};
}

DecoderFamily family(const Json& document, const JsonPlace& place) {
  const auto type = document.find("model_type");
  const std::string name = type != document.end() && type->is_string() ? type->get<std::string>() : "";
  if (name == "llama" || name == "mistral") return DecoderFamily::llama;
  if (name == "toy_llama") return DecoderFamily::toy_llama;
  if (name == "toy_nsa_llama") return DecoderFamily::toy_nsa_llama;
  (place / "model_type")
      .fail((type == document.end() ? "missing" : type->dump()) +
            "; expected \"llama\", \"mistral\", \"toy_llama\" or \"toy_nsa_llama\": other architectures are not "
            "supported "
            "(transformers runs them, with masks from the Python package)");
}

std::vector<std::int32_t> token_ids(const Json& document, const char* key, const JsonPlace& place) {
  const auto found = document.find(key);
  if (found == document.end() || found->is_null()) return {};
  std::vector<std::int32_t> ids;
  for (const Json& id : found->is_array() ? *found : Json::array({*found})) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kMaxColumns)
      (place / key).fail(id.dump() + "; expected token ids");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

/// Refuses keys whose values would describe a model that is not supported.
void refuse_unbuilt(const Json& document, const JsonPlace& place) {
  const auto refuse = [&](const char* key, const Json& built) {
    const auto found = document.find(key);
    if (found != document.end() && !found->is_null() && *found != built)
      (place / key).fail(found->dump() + " is not supported; expected " + built.dump());
  };
  refuse("attention_bias", false);
  refuse("mlp_bias", false);
  refuse("is_causal", true);
  refuse("hidden_act", "silu");
  refuse("pretraining_tp", 1);
  // Factors, caps and partial rotations of other architectures, which Llama does not have.
  for (const char* factor : {"partial_rotary_factor", "embedding_multiplier", "residual_multiplier", "logits_scaling"})
    refuse(factor, 1.0);
  for (const char* other : {"attention_multiplier", "query_pre_attn_scalar", "final_logit_softcapping",
                            "attn_logit_softcapping", "quantization_config"})
    refuse(other, nullptr);
  const auto window = document.find("sliding_window");
  if (window != document.end() && !window->is_null())
    (place / "sliding_window")
        .fail(window->dump() + " is not part of the model here; give null, and a \"local\" masker");
}

}  // namespace

DecoderConfig DecoderConfig::from_json(std::string_view text) {
  const JsonPlace place{"", "."};
  const Json document = parse_json(text);
  if (!document.is_object()) place.fail("expected an object");
  DecoderConfig config;
  config.family = reticle::family(document, place);
  const auto keys = read_known<decoder_config::Keys>(document, place);
  refuse_unbuilt(document, place);
  config.vocab_size = keys.vocab_size;
  config.hidden_size = keys.hidden_size;
  config.intermediate_size = keys.intermediate_size;
  config.num_hidden_layers = keys.num_hidden_layers;
  config.num_attention_heads = keys.num_attention_heads;
  config.num_key_value_heads = keys.num_key_value_heads.value_or(keys.num_attention_heads);
  if (keys.num_attention_heads < 1) (place / "num_attention_heads").fail("must be positive");
  config.head_dim = keys.head_dim.value_or(keys.hidden_size / keys.num_attention_heads);
  config.max_position_embeddings = keys.max_position_embeddings;
  config.rms_norm_eps = static_cast<float>(keys.rms_norm_eps);
  config.tie_word_embeddings = keys.tie_word_embeddings;
  config.rope_theta = keys.rope_theta;
  // transformers 5 stores both under one key.
  if (const auto parameters = document.find("rope_parameters");
      parameters != document.end() && parameters->is_object()) {
    if (const auto older = document.find("rope_scaling"); older != document.end() && !older->is_null())
      (place / "rope_scaling").fail("is given beside rope_parameters, which has it, too; expected one of them");
    config.rope_theta = read_known<decoder_config::Theta>(*parameters, place / "rope_parameters")
                            .rope_theta.value_or(config.rope_theta);
    config.rope_scaling = reticle::rope_scaling(*parameters, config.max_position_embeddings, place / "rope_parameters");
  } else if (document.contains("rope_scaling")) {
    config.rope_scaling =
        reticle::rope_scaling(document["rope_scaling"], config.max_position_embeddings, place / "rope_scaling");
  }
  config.eos_tokens = token_ids(document, "eos_token_id", place);
  if (const auto bos = token_ids(document, "bos_token_id", place); !bos.empty()) config.bos_token = bos.front();
  if (config.family == DecoderFamily::toy_nsa_llama) {
    const auto nsa = read_known<decoder_config::Nsa>(document, place);
    config.nsa = NsaConfig{nsa.compress_type, nsa.kernel_size, nsa.kernel_stride, nsa.block_size,
                           nsa.topk,          nsa.init_blocks, nsa.local_blocks,  nsa.window_size};
  }
  config.validate();
  return config;
}

DecoderConfig DecoderConfig::from_file(const std::filesystem::path& path) {
  std::string text, problem;
  if (!read_whole(path, text, problem))
    throw ConfigError(path.string() + ": " + problem + "; a model is a folder with config.json and *.safetensors");
  try {
    return from_json(text);
  } catch (const Error& error) {
    throw ConfigError(path.string() + ": " + error.what());
  }
}

void DecoderConfig::validate() const {
  const auto demand = [](bool holds, const std::string& what) {
    if (!holds) throw ConfigError(what);
  };
  constexpr Index kLargest = Index{1} << 24;
  for (const auto& [value, name] :
       {std::pair{vocab_size, "vocab_size"}, std::pair{hidden_size, "hidden_size"},
        std::pair{intermediate_size, "intermediate_size"}, std::pair{num_attention_heads, "num_attention_heads"},
        std::pair{num_key_value_heads, "num_key_value_heads"},
        std::pair{max_position_embeddings, "max_position_embeddings"}})
    demand(value >= 1 && value <= kLargest,
           std::string(name) + ": " + std::to_string(value) + "; expected a number in [1, 2^24]");
  demand(num_hidden_layers >= 1 && num_hidden_layers <= 4096,
         "num_hidden_layers: " + std::to_string(num_hidden_layers) + "; expected a number in [1, 4096]");
  demand(head_dim >= 2 && head_dim <= 256 && head_dim % 2 == 0,
         "head_dim: " + std::to_string(head_dim) + "; expected an even number in [2, 256]");
  demand(num_attention_heads % num_key_value_heads == 0, "num_attention_heads: " + std::to_string(num_attention_heads) +
                                                             " is not a multiple of num_key_value_heads, " +
                                                             std::to_string(num_key_value_heads));
  demand(rms_norm_eps >= 0 && rms_norm_eps < 1, "rms_norm_eps: expected a number in [0, 1)");
  const auto known = [&](std::int32_t token) { return token < vocab_size; };
  demand(std::all_of(eos_tokens.begin(), eos_tokens.end(), known) && (!bos_token || known(*bos_token)),
         "eos_token_id or bos_token_id: not below vocab_size, " + std::to_string(vocab_size));
  const Rope checked(head_dim, rope_theta, rope_scaling);
  if (nsa) nsa->validate();
}

}  // namespace reticle
