// What a sparse pattern costs in quality: loss over text, and retrieval from generated contexts.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include <reticle/attention/llama/decoder.hpp>

namespace reticle {

/// Mean cross-entropy, in nats, of the last `output_length` of `tokens`, each predicted from the logits (tokens,
/// vocab_size) F32 of the one before: nano-sparse-attention's loss. ShapeError unless output_length is in [1, tokens).
RETICLE_API double loss_of_last(const TensorView& logits, std::span<const std::int32_t> tokens, Index output_length);

/// Called before each part of a long evaluation with how much of it is done; may throw to stop it.
using EvaluationProgress = std::function<void(Index done, Index total)>;

struct LossOptions {
  Index window = 1024;  // inputs of a piece of text
  /// 0: whole windows are prefilled, and every token counts. Else the last output_length targets of a window count; the
  /// tokens before the first of them are prefilled, the others go through the generation pipeline.
  Index output_length = 0;
  Index tokens = 32768;  // of the text, at most; whole windows of them are used
  const SparseAttention* sparse = nullptr;
  EvaluationProgress progress;
};

struct RETICLE_API LossResult {
  double loss = 0;   // nats per token
  Index tokens = 0;  // that counted
  double seconds = 0;
  StageRecord prefill, generation;  // of all windows
  double perplexity() const;
};

/// Over consecutive windows of the text: window w's inputs are tokens [w * window, (w + 1) * window), its targets those
/// one later. ValueError when the text holds no whole window and one token more.
RETICLE_API LossResult evaluate_loss(const Decoder& decoder, std::span<const std::int32_t> text,
                                     const LossOptions& options = {}, const Context& context = {});

/// Contexts with something to be found in them, after RULER (Hsieh et al. 2024).
enum class RetrievalTask : std::uint8_t {
  repeated_phrase,    // a list of words, said twice: the second time is the answer
  needle,             // one number hidden in text
  multi_needle,       // eight, one of which is asked for
  variable_tracking,  // a chain of assignments through the text: the value of the last
};
/// "repeated_phrase", ...
RETICLE_API std::string_view name_of(RetrievalTask task);

struct RetrievalExample {
  std::string prompt, answer;
  std::string unaided;  // as long, with the same question and filler, but nothing to be found
};
/// A prompt of `length` bytes, with its answer, by a seed: filled with pieces of `filler`. ValueError when the length
/// is too short for the task, or the filler has no words.
RETICLE_API RetrievalExample make_example(RetrievalTask task, Index length, std::string_view filler,
                                          std::uint64_t seed);

struct RetrievalOptions {
  RetrievalTask task = RetrievalTask::needle;
  Index length = 1024;  // of a prompt, in bytes
  Index samples = 16;
  std::uint64_t seed = 0;
  /// Ask with nothing to be found in the prompt: what language and chance alone give.
  bool unaided = false;
  const SparseAttention* sparse = nullptr;
  EvaluationProgress progress;
};

struct RetrievalResult {
  double accuracy = 0;  // bytes of the answers that were the most likely ones, given those before
  double exact = 0;     // answers all of whose bytes were
  double seconds = 0;
  StageRecord prefill, generation;
};

/// Of a model with a byte-level vocabulary: prompts are prefilled, answers generated (teacher-forced). ValueError for
/// another vocabulary.
RETICLE_API RetrievalResult evaluate_retrieval(const Decoder& decoder, std::string_view filler,
                                               const RetrievalOptions& options = {}, const Context& context = {});

}  // namespace reticle
