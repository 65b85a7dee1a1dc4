// Text generation.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <reticle/attention/llama/decoder.hpp>

namespace reticle {

struct GenerateOptions {
  Index max_new_tokens = 128;
  /// 0: the most likely token (ties to the lower id); else logits are divided by it and a token is drawn.
  double temperature = 0;
  /// Draws come from the smallest set of tokens whose probability reaches this; 1: from all tokens.
  double top_p = 1;
  std::uint64_t seed = 0;
  /// Tokens that end a sequence, besides the config's eos_tokens.
  std::vector<std::int32_t> stop_tokens;
  const SparseAttention* sparse = nullptr;
  Recording recording = Recording::figures;  // of what the sequences attend to
  DType cache_dtype = DType::f32;
  Index recent_keys = kRecentKeys;  // KvCacheShape::recent, for a cache in Q8 or Q4
  /// Called with each token as it is made; false ends that sequence.
  std::function<bool(Index sequence, std::int32_t token)> on_token;
};

struct Generation {
  std::vector<std::vector<std::int32_t>> tokens;  // for each sequence, including a stop token that ended it
  std::vector<DecoderState> states;               // caches, and records of what was attended to
  double prefill_seconds = 0;                     // until all sequences have their first token
  double decode_seconds = 0;                      // for all later tokens
  Index steps = 0;                                // decode steps
};

/// Generates for prompts of any lengths together: one prefill, then one token of each unfinished sequence at a time,
/// each through its own cache. An empty prompt starts from the config's bos_token; ValueError when there is none, or
/// when prompt and max_new_tokens exceed the model's context.
RETICLE_API Generation generate(const Decoder& decoder, std::span<const std::vector<std::int32_t>> prompts,
                                const GenerateOptions& options = {}, const Context& context = {});

/// Chooses the next token as the options say; the draw is determined by `sequence` and `row`.
RETICLE_API std::int32_t choose_token(std::span<const float> logits, const GenerateOptions& options, Index sequence,
                                      Index row);

/// Converts text to the tokens of a byte-level vocabulary, and back.
RETICLE_API std::vector<std::int32_t> bytes_to_tokens(std::string_view text);
RETICLE_API std::string tokens_to_bytes(std::span<const std::int32_t> tokens);

}  // namespace reticle
