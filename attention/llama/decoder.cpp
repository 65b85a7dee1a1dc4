#include <algorithm>
#include <string>
#include <variant>

#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/pointwise.hpp>
#include <reticle/attention/llama/decoder.hpp>
#include <reticle/attention/llama/self_attention.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

namespace reticle {
namespace {

struct Layer {
  TensorView attention_norm, feed_forward_norm, gate_proj, up_proj, down_proj;
  std::optional<std::variant<SelfAttention, NativeSparseAttention>> attention;
};

/// The names of a family's tensors.
struct Names {
  const char *embedding, *layer, *attention_norm, *feed_forward_norm, *feed_forward, *norm;
  const char *q_proj, *k_proj, *v_proj, *o_proj;  // only for self attention
};

constexpr Names kHuggingFace{
    .embedding = "model.embed_tokens.weight",
    .layer = "model.layers.",
    .attention_norm = "input_layernorm.weight",
    .feed_forward_norm = "post_attention_layernorm.weight",
    .feed_forward = "mlp.",
    .norm = "model.norm.weight",
    .q_proj = "q_proj.weight",
    .k_proj = "k_proj.weight",
    .v_proj = "v_proj.weight",
    .o_proj = "o_proj.weight",
};
constexpr Names kToy{
    .embedding = "embedding.weight",
    .layer = "layers.",
    .attention_norm = "attn_norm.weight",
    .feed_forward_norm = "ffn_norm.weight",
    .feed_forward = "ffn.",
    .norm = "norm.weight",
    .q_proj = "proj_q.weight",
    .k_proj = "proj_k.weight",
    .v_proj = "proj_v.weight",
    .o_proj = "proj_o.weight",
};

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
    std::vector<SelfAttentionWeights> self_weights;
    std::vector<NsaWeights> nsa_weights;
    const Names& names = config.family == DecoderFamily::llama ? kHuggingFace : kToy;
    const Index hidden = config.hidden_size, wide = config.intermediate_size;
    const Index queries = config.num_attention_heads * config.head_dim,
                keys = config.num_key_value_heads * config.head_dim;
    embedding = reader.take(names.embedding, {config.vocab_size, hidden});
    for (Index i = 0; i < config.num_hidden_layers; ++i) {
      const std::string prefix = names.layer + std::to_string(i) + ".";
      const std::string attention = prefix + "self_attn.", feed_forward = prefix + names.feed_forward;
      Layer layer;
      layer.attention_norm = reader.take(prefix + names.attention_norm, {hidden});
      layer.feed_forward_norm = reader.take(prefix + names.feed_forward_norm, {hidden});
      layer.gate_proj = reader.take(feed_forward + "gate_proj.weight", {wide, hidden});
      layer.up_proj = reader.take(feed_forward + "up_proj.weight", {wide, hidden});
      layer.down_proj = reader.take(feed_forward + "down_proj.weight", {hidden, wide});
      if (config.nsa) {
        nsa_weights.push_back(read_nsa_weights(reader, prefix + "nsa.", nsa_shape()));
      } else {
        self_weights.push_back({reader.take(attention + names.q_proj, {queries, hidden}),
                                reader.take(attention + names.k_proj, {keys, hidden}),
                                reader.take(attention + names.v_proj, {keys, hidden}),
                                reader.take(attention + names.o_proj, {hidden, queries})});
        // Older files contain the frequencies, which are computed from the config here.
        reader.pass_over(attention + "rotary_emb.inv_freq");
      }
      layers.push_back(std::move(layer));
    }
    norm = reader.take(names.norm, {hidden});
    // A checkpoint may contain an output head although its config says that embeddings are tied; transformers uses it,
    // too.
    head = config.tie_word_embeddings && !weights.tensors().contains("lm_head.weight")
               ? embedding
               : reader.take("lm_head.weight", {config.vocab_size, hidden});
    reader.finish();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (config.nsa) {
        layers[i].attention.emplace(NativeSparseAttention(nsa_shape(), rope, nsa_weights[i]));
      } else {
        layers[i].attention.emplace(SelfAttention(config.head_dim, rope, self_weights[i]));
      }
    }
  }

  NsaShape nsa_shape() const {
    return {*config.nsa, config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  }

  /// Throws before anything has changed.
  void require_fits(std::span<const std::int32_t> tokens, std::span<const Index> cu_seqlens,
                    std::span<DecoderState* const> states, const ForwardOptions& options) const {
    if (cu_seqlens.size() != states.size() + 1 || cu_seqlens.front() != 0 ||
        cu_seqlens.back() != static_cast<Index>(tokens.size()) || !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()))
      throw ShapeError("decoder: cu_seqlens of " + std::to_string(cu_seqlens.size()) + " numbers for " +
                       std::to_string(states.size()) + " sequences of " + std::to_string(tokens.size()) +
                       " tokens; expected ascending offsets from 0 to the number of tokens");
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
    if (options.sparse != nullptr && config.nsa)
      throw ConfigError("decoder: a model with Native Sparse Attention chooses its keys itself; give no pipeline");
  }

  DecoderConfig config;
  Weights weights;
  Rope rope;
  TensorView embedding, norm, head;
  std::vector<Layer> layers;
};

Decoder::Decoder(const DecoderConfig& config, const Weights& weights)
    : model_(std::make_shared<const Model>(config, weights)) {}

Decoder Decoder::load(const std::filesystem::path& folder) {
  const DecoderConfig config = DecoderConfig::from_file(folder / "config.json");
  return {config, Weights::from_folder(folder)};
}

const DecoderConfig& Decoder::config() const { return model_->config; }
Index Decoder::bytes() const { return model_->weights.bytes(); }

DecoderState Decoder::start(Index capacity, DType dtype, Index recent) const {
  const DecoderConfig& config = model_->config;
  if (config.nsa && is_quantised(dtype))
    throw ValueError("decoder: a cache in " + std::string(name_of(dtype)) +
                     " is not supported for a model with Native Sparse Attention; expected F32, F16 or BF16");
  DecoderState state{KvCache({static_cast<int>(config.num_hidden_layers), config.num_key_value_heads, config.head_dim,
                              config.head_dim, capacity, dtype, is_quantised(dtype) ? recent : 0}),
                     {},
                     SequenceState(Recording::figures)};
  if (config.nsa) {
    for (Index i = 0; i < config.num_hidden_layers; ++i)
      state.nsa.emplace_back(*config.nsa, config.num_key_value_heads, config.head_dim);
  }
  return state;
}

namespace {

/// The given rows of a matrix, as floats.
Tensor gather_rows(const TensorView& matrix, std::span<const std::int32_t> rows) {
  Tensor gathered(DType::f32, {static_cast<Index>(rows.size()), matrix.size(1)});
  const std::span<float> to = gathered.span<float>();
  const auto width = static_cast<std::size_t>(matrix.size(1));
  for (std::size_t i = 0; i < rows.size(); ++i) load_row(matrix, rows[i], 1, to.subspan(i * width, width));
  return gathered;
}

/// Truncates caches to their lengths before the call, unless told to keep the new tokens.
class Extension {
 public:
  explicit Extension(std::span<DecoderState* const> states) : states_(states) {
    for (const DecoderState* state : states) lengths_.push_back(state->length());
  }
  ~Extension() {
    for (std::size_t i = 0; !kept_ && i < states_.size(); ++i) states_[i]->cache.truncate(lengths_[i]);
  }
  Extension(const Extension&) = delete;
  Extension& operator=(const Extension&) = delete;
  void keep() { kept_ = true; }

 private:
  std::span<DecoderState* const> states_;
  std::vector<Index> lengths_;
  bool kept_ = false;
};

Tensor attend(const std::variant<SelfAttention, NativeSparseAttention>& attention, int layer, const Tensor& x,
              std::span<const Index> cu_seqlens, std::span<DecoderState* const> states, std::span<const Stage> stages,
              const SparseAttention* sparse, const Context& context) {
  if (const auto* self = std::get_if<SelfAttention>(&attention)) {
    std::vector<AttendedSequence> sequences;
    for (std::size_t i = 0; i < states.size(); ++i)
      sequences.push_back({&states[i]->cache, layer, stages[i], &states[i]->attention});
    return self->extend(x, cu_seqlens, sequences, sparse, context);
  }
  std::vector<NsaSequence> sequences;
  for (DecoderState* state : states)
    sequences.push_back({&state->cache, layer, &state->nsa[static_cast<std::size_t>(layer)]});
  return std::get<NativeSparseAttention>(attention).extend(x, cu_seqlens, sequences, context);
}

}  // namespace

Tensor Decoder::forward(std::span<const std::int32_t> tokens, std::span<const Index> cu_seqlens,
                        std::span<DecoderState* const> states, const ForwardOptions& options,
                        const Context& context) const {
  const Model& model = *model_;
  model.require_fits(tokens, cu_seqlens, states, options);
  std::vector<Stage> stages;
  for (const DecoderState* state : states)
    stages.push_back(options.stage.value_or(state->length() == 0 ? Stage::prefill : Stage::generation));
  Extension extension(states);
  for (std::size_t i = 0; i < states.size(); ++i)
    states[i]->cache.extend(tokens.subspan(static_cast<std::size_t>(cu_seqlens[i]),
                                           static_cast<std::size_t>(cu_seqlens[i + 1] - cu_seqlens[i])));
  Tensor x = gather_rows(model.embedding, tokens);
  const float epsilon = model.config.rms_norm_eps;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    const Tensor normalised = rms_norm(x, layer.attention_norm, epsilon, context);
    const Tensor attended =
        attend(*layer.attention, static_cast<int>(i), normalised, cu_seqlens, states, stages, options.sparse, context);
    add(x.span<float>(), attended.span<float>());
    const Tensor again = rms_norm(x, layer.feed_forward_norm, epsilon, context);
    Tensor gate = linear(again, layer.gate_proj, context);
    swiglu(gate.span<float>(), linear(again, layer.up_proj, context).span<float>(), context);
    add(x.span<float>(), linear(gate, layer.down_proj, context).span<float>());
  }
  extension.keep();
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
