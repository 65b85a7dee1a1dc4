// From prompts to tokens.
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
  /// Draws come from the smallest set of tokens of this probability; 1: from all.
  double top_p = 1;
  std::uint64_t seed = 0;
  /// End a sequence, besides the config's eos_tokens.
  std::vector<std::int32_t> stop_tokens;
  const SparseAttention* sparse = nullptr;
  Recording recording = Recording::figures;  // of what the sequences attend to
  DType cache_dtype = DType::f32;
  /// Called with each token as it is made; false ends that sequence.
  std::function<bool(Index sequence, std::int32_t token)> on_token;
};

struct Generation {
  std::vector<std::vector<std::int32_t>> tokens;  // of each sequence, a stop token that ended it included
  std::vector<DecoderState> states;               // what was attended to, and the caches
  double prefill_seconds = 0;                     // to the first token of all sequences
  double decode_seconds = 0;                      // for all later ones
  Index steps = 0;                                // decode steps
};

/// Prompts of any lengths together: one prefill, then one token of each unfinished sequence at a time, each through its
/// own cache. An empty prompt starts from the config's bos_token; ValueError when there is none, or when prompt and
/// max_new_tokens exceed the model's context.
RETICLE_API Generation generate(const Decoder& decoder, std::span<const std::vector<std::int32_t>> prompts,
                                const GenerateOptions& options = {}, const Context& context = {});

/// The next token by the options' rule: `row` numbers the draw.
RETICLE_API std::int32_t choose_token(std::span<const float> logits, const GenerateOptions& options, Index sequence,
                                      Index row);

/// Text as the tokens of a byte-level vocabulary, and back.
RETICLE_API std::vector<std::int32_t> bytes_to_tokens(std::string_view text);
RETICLE_API std::string tokens_to_bytes(std::span<const std::int32_t> tokens);

}  // namespace reticle
