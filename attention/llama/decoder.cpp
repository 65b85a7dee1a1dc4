#include <algorithm>
#include <cmath>
#include <string>
#include <variant>

#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/pointwise.hpp>
#include <reticle/attention/llama/decoder.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

namespace reticle {
namespace {

struct SelfAttention {
  TensorView q_proj, k_proj, v_proj, o_proj;
};

struct Layer {
  TensorView attention_norm, feed_forward_norm, gate_proj, up_proj, down_proj;
  std::variant<SelfAttention, NativeSparseAttention> attention;
};

/// What tensors are called.
struct Names {
  const char *embedding, *layer, *attention_norm, *attention, *feed_forward_norm, *feed_forward, *norm, *projection;
};

constexpr Names kHuggingFace{"model.embed_tokens.weight", "model.layers.", "input_layernorm",   "self_attn.",
                             "post_attention_layernorm",  "mlp.",          "model.norm.weight", ""};
constexpr Names kToy{"embedding.weight", "layers.", "attn_norm",   "self_attn.",
                     "ffn_norm",         "ffn.",    "norm.weight", "proj_"};

std::string with_head_dim(const Names& names, const std::string& prefix, char which) {
  const bool hugging_face = names.projection[0] == '\0';
  return prefix + (hugging_face ? std::string(1, which) + "_proj.weight" : std::string("proj_") + which + ".weight");
}

}  // namespace

void DecoderState::reset() {
  cache.reset();
  for (NsaCache& layer : nsa) layer.reset();
  attention.reset();
}

struct Decoder::Model {
  Model(const DecoderConfig& given, const Weights& from)
      : config(given), weights(from), rope(given.head_dim, given.rope_theta, given.rope_scaling) {
    config.validate();
    WeightReader reader(weights);
    const Names& names = config.family == DecoderFamily::llama ? kHuggingFace : kToy;
    const Index hidden = config.hidden_size, wide = config.intermediate_size;
    const Index queries = config.num_attention_heads * config.head_dim,
                keys = config.num_key_value_heads * config.head_dim;
    embedding = reader.take(names.embedding, {config.vocab_size, hidden});
    for (Index i = 0; i < config.num_hidden_layers; ++i) {
      const std::string prefix = names.layer + std::to_string(i) + ".";
      const std::string attention = prefix + names.attention, feed_forward = prefix + names.feed_forward;
      Layer layer;
      layer.attention_norm = reader.take(prefix + names.attention_norm + ".weight", {hidden});
      layer.feed_forward_norm = reader.take(prefix + names.feed_forward_norm + ".weight", {hidden});
      layer.gate_proj = reader.take(feed_forward + "gate_proj.weight", {wide, hidden});
      layer.up_proj = reader.take(feed_forward + "up_proj.weight", {wide, hidden});
      layer.down_proj = reader.take(feed_forward + "down_proj.weight", {hidden, wide});
      if (config.nsa) {
        nsa.push_back(read_nsa_weights(reader, prefix + "nsa.", nsa_shape()));
      } else {
        layer.attention = SelfAttention{reader.take(with_head_dim(names, attention, 'q'), {queries, hidden}),
                                        reader.take(with_head_dim(names, attention, 'k'), {keys, hidden}),
                                        reader.take(with_head_dim(names, attention, 'v'), {keys, hidden}),
                                        reader.take(with_head_dim(names, attention, 'o'), {hidden, queries})};
        // Older files have the frequencies, which the config gives.
        reader.pass_over(attention + "rotary_emb.inv_freq");
      }
      layers.push_back(std::move(layer));
    }
    norm = reader.take(names.norm, {hidden});
    head = embedding;
    if (config.tie_word_embeddings) {
      reader.pass_over("lm_head.weight");
    } else {
      head = reader.take("lm_head.weight", {config.vocab_size, hidden});
    }
    reader.finish();
    for (std::size_t i = 0; i < nsa.size(); ++i) layers[i].attention = NativeSparseAttention(nsa_shape(), rope, nsa[i]);
  }

  NsaShape nsa_shape() const {
    return {*config.nsa, config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  }

  /// Nothing has changed yet when this throws.
  void require_fits(std::span<const std::int32_t> tokens, std::span<const Index> cu_seqlens,
                    std::span<DecoderState* const> states, const ForwardOptions& options) const {
    if (cu_seqlens.size() != states.size() + 1 || cu_seqlens.front() != 0 ||
        cu_seqlens.back() != static_cast<Index>(tokens.size()) || !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()))
      throw ShapeError("decoder: cu_seqlens of " + std::to_string(cu_seqlens.size()) + " numbers for " +
                       std::to_string(states.size()) + " sequences of " + std::to_string(tokens.size()) +
                       " tokens; needed are ascending offsets from 0 to the number of tokens");
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= config.vocab_size)
        throw ValueError("decoder: token " + std::to_string(i) + " is " + std::to_string(tokens[i]) +
                         "; the vocabulary has " + std::to_string(config.vocab_size));
    }
    for (std::size_t i = 0; i < states.size(); ++i) {
      const Index count = cu_seqlens[i + 1] - cu_seqlens[i], length = states[i]->length() + count;
      if (length > config.max_position_embeddings)
        throw ValueError("decoder: sequence " + std::to_string(i) + " would have " + std::to_string(length) +
                         " tokens; the model's context is " + std::to_string(config.max_position_embeddings));
      if (options.logits == Logits::last && count == 0)
        throw ValueError("decoder: sequence " + std::to_string(i) +
                         " has no new token, so no logits to return (a prompt needs at least one token)");
    }
    if (options.handler != nullptr && config.nsa)
      throw ConfigError("decoder: a model with Native Sparse Attention chooses its keys itself; give no handler");
  }

  DecoderConfig config;
  Weights weights;
  Rope rope;
  TensorView embedding, norm, head;
  std::vector<Layer> layers;
  std::vector<NsaWeights> nsa;
};

Decoder::Decoder(const DecoderConfig& config, const Weights& weights)
    : model_(std::make_shared<const Model>(config, weights)) {}

Decoder Decoder::load(const std::filesystem::path& folder) {
  const DecoderConfig config = DecoderConfig::from_file(folder / "config.json");
  return {config, Weights::from_folder(folder)};
}

const DecoderConfig& Decoder::config() const { return model_->config; }
Index Decoder::bytes() const { return model_->weights.bytes(); }

DecoderState Decoder::start(Index capacity, DType dtype) const {
  const DecoderConfig& config = model_->config;
  DecoderState state{KvCache({static_cast<int>(config.num_hidden_layers), config.num_key_value_heads, config.head_dim,
                              config.head_dim, capacity, dtype}),
                     {},
                     {}};
  if (config.nsa) {
    for (Index i = 0; i < config.num_hidden_layers; ++i)
      state.nsa.emplace_back(*config.nsa, config.num_key_value_heads, config.head_dim);
  }
  return state;
}

namespace {

/// The packed tokens of some sequences, layer by layer.
class Pass {
 public:
  Pass(const DecoderConfig& config, const Rope& rope, std::span<const Index> cu_seqlens,
       std::span<DecoderState* const> states, const ForwardOptions& options, const Context& context)
      : config_(config),
        cu_seqlens_(cu_seqlens),
        states_(states),
        options_(options),
        context_(context),
        rope_(rope.at(positions(cu_seqlens, states))) {
    for (DecoderState* state : states_)
      stages_.push_back(options.stage.value_or(state->length() == 0 ? Stage::prefill : Stage::generation));
  }

  /// Attention of normalised x (tokens, hidden).
  Tensor attend(const SelfAttention& weights, int layer, const Tensor& x) {
    Tensor queries = linear(x, weights.q_proj, context_), keys = linear(x, weights.k_proj, context_);
    const Tensor values = linear(x, weights.v_proj, context_);
    rope_.rotate(queries.span<float>());
    rope_.rotate(keys.span<float>());
    Tensor mixed(DType::f32, {queries.view().size(0), queries.view().size(1)});
    for (std::size_t i = 0; i < states_.size(); ++i) {
      if (count(i) == 0) continue;
      DecoderState& state = *states_[i];
      state.cache.append(layer, tokens_of(keys, i), tokens_of(values, i));
      AttentionInputs inputs;
      inputs.queries = heads_first(tokens_of(queries, i));
      inputs.keys = state.cache.keys(layer);
      inputs.values = state.cache.values(layer);
      inputs.scaling = 1 / std::sqrt(static_cast<float>(config_.head_dim));
      inputs.causal = true;
      inputs.layer = layer;
      inputs.stage = stages_[i];
      const AttentionResult result = options_.handler != nullptr
                                         ? options_.handler->attend(inputs, state.attention, {}, context_)
                                         : attention(inputs, Mask::full(inputs.shape()), {}, context_);
      copy_tokens_first(result.output, mixed.span<float>().data() + cu_seqlens_[i] * mixed.view().size(1));
    }
    return linear(mixed, weights.o_proj, context_);
  }

  Tensor attend(const NativeSparseAttention& attention, int layer, const Tensor& x) {
    std::vector<NsaSequence> sequences;
    for (DecoderState* state : states_)
      sequences.push_back({&state->cache, layer, &state->nsa[static_cast<std::size_t>(layer)]});
    return attention.extend(x, cu_seqlens_, sequences, context_);
  }

 private:
  static std::vector<Index> positions(std::span<const Index> cu_seqlens, std::span<DecoderState* const> states) {
    std::vector<Index> positions;
    for (std::size_t i = 0; i < states.size(); ++i) {
      for (Index t = cu_seqlens[i]; t < cu_seqlens[i + 1]; ++t)
        positions.push_back(states[i]->length() + t - cu_seqlens[i]);
    }
    return positions;
  }

  Index count(std::size_t i) const { return cu_seqlens_[i + 1] - cu_seqlens_[i]; }

  /// (tokens of sequence i, heads, head_dim) of (tokens, heads * head_dim).
  TensorView tokens_of(const Tensor& packed, std::size_t i) const {
    const TensorView rows = packed.view().slice(0, cu_seqlens_[i], cu_seqlens_[i + 1]);
    return {rows.data, rows.dtype, {rows.size(0), rows.size(1) / config_.head_dim, config_.head_dim}};
  }

  const DecoderConfig& config_;
  std::span<const Index> cu_seqlens_;
  std::span<DecoderState* const> states_;
  const ForwardOptions& options_;
  const Context& context_;
  RopeTable rope_;
  std::vector<Stage> stages_;
};

/// Rows of a matrix as floats.
Tensor gather_rows(const TensorView& matrix, std::span<const std::int32_t> rows) {
  Tensor gathered(DType::f32, {static_cast<Index>(rows.size()), matrix.size(1)});
  const std::span<float> to = gathered.span<float>();
  const auto width = static_cast<std::size_t>(matrix.size(1));
  for (std::size_t i = 0; i < rows.size(); ++i) load_row(matrix, rows[i], 1, to.subspan(i * width, width));
  return gathered;
}

}  // namespace

Tensor Decoder::forward(std::span<const std::int32_t> tokens, std::span<const Index> cu_seqlens,
                        std::span<DecoderState* const> states, const ForwardOptions& options,
                        const Context& context) const {
  const Model& model = *model_;
  model.require_fits(tokens, cu_seqlens, states, options);
  Pass pass(model.config, model.rope, cu_seqlens, states, options, context);
  for (std::size_t i = 0; i < states.size(); ++i) {
    try {
      states[i]->cache.extend(tokens.subspan(static_cast<std::size_t>(cu_seqlens[i]),
                                             static_cast<std::size_t>(cu_seqlens[i + 1] - cu_seqlens[i])));
    } catch (const Error&) {
      for (std::size_t j = 0; j < i; ++j)
        states[j]->cache.truncate(states[j]->length() - (cu_seqlens[j + 1] - cu_seqlens[j]));
      throw;
    }
  }
  Tensor x = gather_rows(model.embedding, tokens);
  const float epsilon = model.config.rms_norm_eps;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    const Tensor normalised = rms_norm(x, layer.attention_norm, epsilon, context);
    const Tensor attended =
        std::visit([&](const auto& attention) { return pass.attend(attention, static_cast<int>(i), normalised); },
                   layer.attention);
    add(x.span<float>(), attended.span<float>());
    const Tensor again = rms_norm(x, layer.feed_forward_norm, epsilon, context);
    Tensor gate = linear(again, layer.gate_proj, context);
    swiglu(gate.span<float>(), linear(again, layer.up_proj, context).span<float>(), context);
    add(x.span<float>(), linear(gate, layer.down_proj, context).span<float>());
  }
  if (options.logits == Logits::last) {
    std::vector<std::int32_t> last;
    for (std::size_t i = 1; i < cu_seqlens.size(); ++i) last.push_back(static_cast<std::int32_t>(cu_seqlens[i] - 1));
    x = gather_rows(x, last);
  }
  return linear(rms_norm(x, model.norm, epsilon, context), model.head, context);
}

Tensor Decoder::forward(std::span<const std::int32_t> tokens, DecoderState& state, const ForwardOptions& options,
                        const Context& context) const {
  const Index cu_seqlens[] = {0, static_cast<Index>(tokens.size())};
  DecoderState* const states[] = {&state};
  return forward(tokens, cu_seqlens, states, options, context);
}

}  // namespace reticle
