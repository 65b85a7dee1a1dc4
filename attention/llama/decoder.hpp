// A Llama-architecture decoder on the CPU: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU (Touvron et al.
// 2023), with any sparse pattern for the prompt and another for what is generated.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/kv_cache.hpp>
#include <reticle/attention/layers/weights.hpp>
#include <reticle/attention/llama/config.hpp>
#include <reticle/attention/nsa/cache.hpp>
#include <reticle/attention/sparse_attention.hpp>

namespace reticle {

/// One sequence on its way through a decoder. Moves.
struct RETICLE_API DecoderState {
  KvCache cache;
  std::vector<NsaCache> nsa;  // per layer, of models with Native Sparse Attention
  SequenceState attention{Recording::figures};

  Index length() const { return cache.length(); }
  /// Back to an empty sequence, with the same memory.
  void reset();
};

enum class Logits : std::uint8_t { all, last };

struct ForwardOptions {
  /// Which tokens' logits to return: of all, or of each sequence's last.
  Logits logits = Logits::all;
  /// Which stage of the pipeline the tokens go through; default: prefill for a sequence's first tokens, generation
  /// for later ones.
  std::optional<Stage> stage;
  /// Chooses the keys of every layer; null: all, as the model was trained. Not for models with Native Sparse Attention.
  const SparseAttention* sparse = nullptr;
};

/// Immutable, and cheap to copy: copies share the weights. May be used from many threads, each with its own states.
class RETICLE_API Decoder {
 public:
  /// From a folder as Hugging Face lays it out: config.json and *.safetensors. ConfigError and FormatError say what is
  /// missing, misshapen or not supported.
  static Decoder load(const std::filesystem::path& folder);
  Decoder(const DecoderConfig& config, const Weights& weights);

  const DecoderConfig& config() const;
  /// Bytes of the weights.
  Index bytes() const;

  /// An empty sequence with room for `capacity` tokens; keys and values are stored as `dtype`.
  DecoderState start(Index capacity, DType dtype = DType::f32) const;

  /// Appends tokens [cu_seqlens[i], cu_seqlens[i + 1]) to sequence i and returns logits F32: (tokens, vocab_size), or
  /// (sequences, vocab_size) of the last ones. ValueError, changing nothing, for tokens outside the vocabulary, a
  /// sequence longer than max_position_embeddings or its cache, and, of last logits, for a sequence without new tokens.
  /// Where attention itself fails (NaN, a masker's error), caches are as before; what maskers keep, and compressed
  /// keys, may not be: reset the state.
  Tensor forward(std::span<const std::int32_t> tokens, std::span<const Index> cu_seqlens,
                 std::span<DecoderState* const> states, const ForwardOptions& options = {},
                 const Context& context = {}) const;
  /// Of one sequence.
  Tensor forward(std::span<const std::int32_t> tokens, DecoderState& state, const ForwardOptions& options = {},
                 const Context& context = {}) const;

 private:
  struct Model;
  std::shared_ptr<const Model> model_;
};

}  // namespace reticle
