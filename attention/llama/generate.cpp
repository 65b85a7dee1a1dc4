#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <reticle/attention/llama/generate.hpp>
#include <reticle/core/base/stopwatch.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {
namespace {

void validate(const GenerateOptions& options) {
  if (options.max_new_tokens < 0)
    throw ValueError("generate: max_new_tokens is " + std::to_string(options.max_new_tokens) + "; expected 0 or more");
  if (!(options.temperature >= 0 && options.temperature < 1e9))
    throw ValueError("generate: temperature is " + std::to_string(options.temperature) +
                     "; expected a finite number >= 0");
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw ValueError("generate: top_p is " + std::to_string(options.top_p) + "; expected a number in (0, 1]");
}

}  // namespace

std::int32_t choose_token(std::span<const float> logits, const GenerateOptions& options, Index sequence, Index row) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return static_cast<std::int32_t>(best - logits.begin());
  std::vector<float> scaled(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    scaled[i] = static_cast<float>((static_cast<double>(logits[i]) - static_cast<double>(*best)) / options.temperature);
  std::vector<std::int32_t> candidates;
  top_p(scaled, options.top_p, candidates);
  double mass = 0;
  for (const std::int32_t token : candidates)
    mass += std::exp(static_cast<double>(scaled[static_cast<std::size_t>(token)]));
  Philox random(options.seed, 0, static_cast<std::uint32_t>(sequence), 0, static_cast<std::uint32_t>(row));
  double left = mass * static_cast<double>(random.uniform());
  for (const std::int32_t token : candidates) {
    left -= std::exp(static_cast<double>(scaled[static_cast<std::size_t>(token)]));
    if (left < 0) return token;
  }
  return candidates.empty() ? static_cast<std::int32_t>(best - logits.begin()) : candidates.back();
}

Generation generate(const Decoder& decoder, std::span<const std::vector<std::int32_t>> prompts,
                    const GenerateOptions& options, const Context& context) {
  validate(options);
  const DecoderConfig& config = decoder.config();
  std::vector<std::int32_t> stops = options.stop_tokens;
  stops.insert(stops.end(), config.eos_tokens.begin(), config.eos_tokens.end());
  std::vector<std::int32_t> tokens;
  std::vector<Index> cu_seqlens{0};
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    tokens.insert(tokens.end(), prompts[i].begin(), prompts[i].end());
    if (prompts[i].empty()) {
      if (!config.bos_token)
        throw ValueError("generate: prompt " + std::to_string(i) +
                         " is empty, and the model has no bos_token_id to start from; give at least one token");
      tokens.push_back(*config.bos_token);
    }
    cu_seqlens.push_back(static_cast<Index>(tokens.size()));
    const Index length = cu_seqlens[i + 1] - cu_seqlens[i];
    if (length + options.max_new_tokens > config.max_position_embeddings)
      throw ValueError("generate: prompt " + std::to_string(i) + " has " + std::to_string(length) +
                       " tokens; with max_new_tokens " + std::to_string(options.max_new_tokens) +
                       " that is more than the model's context of " + std::to_string(config.max_position_embeddings));
  }
  Generation generation;
  generation.tokens.resize(prompts.size());
  if (options.max_new_tokens == 0 || prompts.empty()) return generation;
  std::vector<DecoderState*> states;
  generation.states.reserve(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    // No space is needed for the last token, which is never fed back.
    generation.states.push_back(decoder.start(cu_seqlens[i + 1] - cu_seqlens[i] + options.max_new_tokens - 1,
                                              options.cache_dtype, options.recent_keys));
    generation.states.back().attention.record(options.recording);
    states.push_back(&generation.states[i]);
  }
  std::vector<Index> live(prompts.size());  // indices of the sequences in `states`
  for (std::size_t i = 0; i < live.size(); ++i) live[i] = static_cast<Index>(i);

  ForwardOptions forward{Logits::last, Stage::prefill, options.sparse};
  const Stopwatch watch;
  while (!states.empty()) {
    const Tensor logits = decoder.forward(tokens, cu_seqlens, states, forward, context);
    const auto width = static_cast<std::size_t>(config.vocab_size);
    tokens.clear();
    cu_seqlens.assign(1, 0);
    std::vector<DecoderState*> unfinished;
    std::vector<Index> still_live;
    for (std::size_t i = 0; i < states.size(); ++i) {
      std::vector<std::int32_t>& made = generation.tokens[static_cast<std::size_t>(live[i])];
      const std::int32_t token = choose_token(logits.span<float>().subspan(i * width, width), options, live[i],
                                              static_cast<Index>(made.size()));
      made.push_back(token);
      const bool wanted = !options.on_token || options.on_token(live[i], token);
      if (!wanted || static_cast<Index>(made.size()) == options.max_new_tokens ||
          std::find(stops.begin(), stops.end(), token) != stops.end())
        continue;
      tokens.push_back(token);
      cu_seqlens.push_back(static_cast<Index>(tokens.size()));
      unfinished.push_back(states[i]);
      still_live.push_back(live[i]);
    }
    if (forward.stage == Stage::prefill) {
      generation.prefill_seconds = watch.seconds();
      forward.stage = Stage::generation;
    } else {
      ++generation.steps;
    }
    states.swap(unfinished);
    live.swap(still_live);
  }
  generation.decode_seconds = watch.seconds() - generation.prefill_seconds;
  return generation;
}

std::vector<std::int32_t> bytes_to_tokens(std::string_view text) {
  std::vector<std::int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string tokens_to_bytes(std::span<const std::int32_t> tokens) {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token > 255)
      throw ValueError("token " + std::to_string(token) + " is not a byte; the model's vocabulary is not byte-level");
    text += static_cast<char>(token);
  }
  return text;
}

}  // namespace reticle
