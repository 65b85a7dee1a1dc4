#include "evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include <reticle/attention/llama/generate.hpp>
#include <reticle/attention/llama/loss.hpp>
#include <reticle/core/base/stopwatch.hpp>

namespace reticle::tools {
namespace {

std::span<const float> row_of(const TensorView& logits, Index row) {
  return {logits.at<float>(row, 0), static_cast<std::size_t>(logits.size(1))};
}

/// Logits of all tokens in two tensors: tokens [0, prompt) go through the prefill pipeline, the others through that of
/// generation.
struct StagedLogits {
  Tensor prompt, generated;
  std::span<const float> row(Index i) const {
    const Index prompt_rows = prompt.view().rank == 0 ? 0 : prompt.view().size(0);
    return i < prompt_rows ? row_of(prompt, i) : row_of(generated, i - prompt_rows);
  }
};

StagedLogits staged_forward(const Decoder& decoder, std::span<const std::int32_t> tokens, Index prompt,
                            DecoderState& state, const SparseAttention* sparse, const Context& context) {
  ForwardOptions forward{Logits::all, Stage::prefill, sparse};
  StagedLogits logits;
  if (prompt > 0)
    logits.prompt = decoder.forward(tokens.first(static_cast<std::size_t>(prompt)), state, forward, context);
  if (prompt == static_cast<Index>(tokens.size())) return logits;
  forward.stage = Stage::generation;
  logits.generated = decoder.forward(tokens.subspan(static_cast<std::size_t>(prompt)), state, forward, context);
  return logits;
}

}  // namespace

double LossResult::perplexity() const { return std::exp(loss); }

LossResult evaluate_loss(const Decoder& decoder, std::span<const std::int32_t> text, const LossOptions& options,
                         const Context& context) {
  const Index window = options.window, counted = options.output_length == 0 ? window : options.output_length;
  if (window < 1 || counted < 1 || counted > window)
    throw ValueError("evaluate: a window of " + std::to_string(window) + " tokens with an output of " +
                     std::to_string(options.output_length) + "; expected 0 <= output_length <= window, and window > 0");
  const Index windows = std::min(options.tokens, static_cast<Index>(text.size()) - 1) / window;
  if (windows < 1)
    throw ValueError("evaluate: " + std::to_string(std::min(options.tokens, static_cast<Index>(text.size()))) +
                     " tokens of text hold no window of " + std::to_string(window) + " and the token after it");
  const Stopwatch watch;
  LossResult result;
  DecoderState state = decoder.start(window);
  // The token that predicts the first counted target goes through the generation pipeline, too, so that every logit
  // that counts comes from that stage.
  const Index prompt = options.output_length == 0 ? window : window - counted;
  double sum = 0;
  for (Index w = 0; w < windows; ++w) {
    if (options.progress) options.progress(w, windows);
    state.reset();
    const auto inputs = text.subspan(static_cast<std::size_t>(w * window), static_cast<std::size_t>(window));
    const StagedLogits logits = staged_forward(decoder, inputs, prompt, state, options.sparse, context);
    for (Index i = window - counted; i < window; ++i)
      sum += cross_entropy(logits.row(i), text[static_cast<std::size_t>(w * window + i + 1)]);
    result.prefill.merge(state.attention.recorded(Stage::prefill));
    result.generation.merge(state.attention.recorded(Stage::generation));
  }
  result.tokens = windows * counted;
  result.loss = sum / static_cast<double>(result.tokens);
  result.seconds = watch.seconds();
  return result;
}

// --- retrieval ---

namespace {

constexpr std::string_view kNames[] = {"Moab", "Elam", "Edom", "Tyre", "Zidon", "Arpad", "Hamath", "Gozan"};
constexpr Index kNeedles = 8, kChain = 4;

std::size_t below(Philox& random, std::size_t bound) { return random.below(static_cast<std::uint32_t>(bound)); }

/// `length` bytes of the filler from a random position, wrapping around.
std::string piece_of(std::string_view filler, std::size_t length, Philox& random) {
  std::string piece;
  std::size_t at = below(random, filler.size());
  while (piece.size() < length) {
    const std::string_view part = filler.substr(at, length - piece.size());
    piece += part;
    at = 0;
  }
  return piece;
}

/// Hides sentences in their order, all at one depth or at random places, in a text of `length` bytes that ends with a
/// question.
RetrievalExample hide(const std::vector<std::string>& sentences, const std::string& question, std::string answer,
                      Index length, std::string_view filler, std::optional<double> depth, Philox& random) {
  std::size_t needed = question.size();
  for (const std::string& sentence : sentences) needed += sentence.size();
  if (static_cast<std::size_t>(length) < needed)
    throw ValueError("a prompt of " + std::to_string(length) + " bytes is too short for the task; expected " +
                     std::to_string(needed));
  // In the unaided prompt the filler that replaces the sentences comes last, so that the rest of the text is the same.
  const std::size_t hidden = needed - question.size(), around = static_cast<std::size_t>(length) - needed;
  const std::string unaided = piece_of(filler, around + hidden, random), hay = unaided.substr(0, around);
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < sentences.size(); ++i)
    places.push_back(depth ? static_cast<std::size_t>(std::llround(*depth * static_cast<double>(hay.size())))
                           : below(random, hay.size() + 1));
  std::sort(places.begin(), places.end());
  std::string prompt;
  std::size_t at = 0;
  for (std::size_t i = 0; i < sentences.size(); ++i) {
    prompt += hay.substr(at, places[i] - at) + sentences[i];
    at = places[i];
  }
  return {prompt + hay.substr(at) + question, std::move(answer), unaided + question};
}

std::string number(Philox& random) { return std::to_string(1000 + below(random, 9000)); }

std::string asks(std::string_view name) { return " The number of " + std::string(name) + " is "; }
std::string says(std::string_view name, const std::string& value) { return asks(name) + value + "."; }

/// About `length` bytes of words from the filler.
std::string word_list(std::string_view filler, std::size_t length, Philox& random) {
  std::string list;
  std::string_view rest;
  while (list.size() < length) {
    rest = filler.substr(below(random, filler.size()));
    const std::size_t begin = std::min(rest.find(' '), rest.size() - 1) + 1;
    const std::size_t end = std::min(rest.find(' ', begin), rest.size());
    if (begin >= end) continue;
    list += std::string(rest.substr(begin, end - begin)) + " ";
  }
  return list;
}

}  // namespace

RetrievalExample make_example(RetrievalTask task, Index length, std::string_view filler, std::uint64_t seed,
                              std::optional<double> depth) {
  if (filler.find(' ') == std::string_view::npos) throw ValueError("retrieval: the filler text has no words");
  Philox random(seed, static_cast<std::uint32_t>(task), 0, 0, 0);
  switch (task) {
    case RetrievalTask::repeated_phrase: {
      // The list, text, and the beginning of the list again as a cue.
      constexpr std::size_t kList = 96, kCue = 16;
      const std::string list = word_list(filler, kList, random);
      return hide({" " + list}, list.substr(0, kCue), list.substr(kCue), length, filler, depth, random);
    }
    case RetrievalTask::needle: {
      const std::string_view name = kNames[below(random, std::size(kNames))];
      const std::string value = number(random);
      return hide({says(name, value)}, asks(name), value, length, filler, depth, random);
    }
    case RetrievalTask::multi_needle: {
      std::vector<std::string> sentences, values;
      for (Index i = 0; i < kNeedles; ++i) {
        values.push_back(number(random));
        sentences.push_back(says(kNames[i], values.back()));
      }
      const std::size_t asked = below(random, kNeedles);
      return hide(sentences, asks(kNames[asked]), values[asked], length, filler, depth, random);
    }
    default: {
      // One value that is assigned from name to name.
      const std::string value = number(random);
      std::vector<std::string> sentences{says(kNames[0], value)};
      for (Index i = 1; i < kChain; ++i)
        sentences.push_back(says(kNames[i], "the number of " + std::string(kNames[i - 1])));
      return hide(sentences, asks(kNames[kChain - 1]), value, length, filler, depth, random);
    }
  }
}

RetrievalResult evaluate_retrieval(const Decoder& decoder, std::string_view filler, const RetrievalOptions& options,
                                   const Context& context) {
  if (decoder.config().vocab_size != 256)
    throw ValueError("retrieval: the model's vocabulary has " + std::to_string(decoder.config().vocab_size) +
                     " tokens; tasks are made of bytes, for vocabularies of 256");
  if (options.samples < 1) throw ValueError("retrieval: expected at least one sample");
  if (options.length < 1 || options.length > decoder.config().max_position_embeddings)
    throw ValueError("retrieval: a prompt of " + std::to_string(options.length) + " bytes; expected 1 to " +
                     std::to_string(decoder.config().max_position_embeddings) + ", the model's longest context");
  const Stopwatch watch;
  RetrievalResult result;
  Index bytes = 0, right = 0, exact = 0;
  for (Index sample = 0; sample < options.samples; ++sample) {
    if (options.progress) options.progress(sample, options.samples);
    const RetrievalExample example =
        make_example(options.task, options.length, filler,
                     derive_seed(options.seed, static_cast<std::uint64_t>(sample) + 1), options.depth);
    const std::string& asked = options.unaided ? example.unaided : example.prompt;
    const std::vector<std::int32_t> tokens = bytes_to_tokens(asked + example.answer);
    const auto prompt = static_cast<Index>(asked.size()), count = static_cast<Index>(tokens.size());
    DecoderState state = decoder.start(count);
    const StagedLogits logits =
        staged_forward(decoder, std::span(tokens).first(tokens.size() - 1), prompt, state, options.sparse, context);
    Index correct = 0;
    for (Index i = prompt; i < count; ++i) {
      const auto row = logits.row(i - 1);
      correct += std::max_element(row.begin(), row.end()) - row.begin() == tokens[static_cast<std::size_t>(i)] ? 1 : 0;
    }
    right += correct;
    bytes += count - prompt;
    exact += correct == count - prompt ? 1 : 0;
    result.prefill.merge(state.attention.recorded(Stage::prefill));
    result.generation.merge(state.attention.recorded(Stage::generation));
  }
  result.accuracy = static_cast<double>(right) / static_cast<double>(bytes);
  result.exact = static_cast<double>(exact) / static_cast<double>(options.samples);
  result.seconds = watch.seconds();
  return result;
}

}  // namespace reticle::tools
