// The cost of a sparse pattern in quality: loss over text, and retrieval from generated contexts. The tasks are for the
// byte models that the command runs; reticle.research.benchmarks has tasks of whole words, for Hugging Face models.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <reticle/attention/llama/decoder.hpp>

namespace reticle::tools {

/// Called before each part of a long evaluation with the parts done so far; may throw to stop it.
using EvaluationProgress = std::function<void(Index done, Index total)>;

struct LossOptions {
  Index window = 1024;  // input tokens per window of text
  /// 0: whole windows are prefilled, and every token counts. Otherwise the last output_length targets of a window
  /// count: the tokens before the first of them are prefilled, the others go through the generation pipeline.
  Index output_length = 0;
  Index tokens = 32768;  // at most this many tokens of the text; only whole windows are used
  const SparseAttention* sparse = nullptr;
  EvaluationProgress progress;
};

struct LossResult {
  double loss = 0;   // nats per token
  Index tokens = 0;  // tokens that counted
  double seconds = 0;
  StageRecord prefill, generation;  // over all windows
  double perplexity() const;
};

/// The loss over consecutive windows of the text: window w's inputs are tokens [w * window, (w + 1) * window), its
/// targets the same tokens shifted by one. ValueError when the text has no whole window and one more token.
LossResult evaluate_loss(const Decoder& decoder, std::span<const std::int32_t> text, const LossOptions& options = {},
                         const Context& context = {});

/// Generated contexts with something to retrieve, after RULER (Hsieh et al. 2024).
enum class RetrievalTask : std::uint8_t {
  repeated_phrase,    // a list of words, given twice; the answer is its second occurrence
  needle,             // one number hidden in text
  multi_needle,       // eight numbers, one of which is asked for
  variable_tracking,  // a chain of assignments distributed over the text; the answer is the value of the last
};

struct RetrievalExample {
  std::string prompt, answer;
  std::string unaided;  // same length, question and filler, but without the answer
};
/// A prompt of `length` bytes filled with pieces of `filler`, and its answer, determined by the seed. With a depth,
/// which is a fraction of the filler, all hidden sentences stand there, and otherwise at random places. ValueError when
/// the length is too short for the task, or the filler has no words.
RetrievalExample make_example(RetrievalTask task, Index length, std::string_view filler, std::uint64_t seed,
                              std::optional<double> depth = {});

struct RetrievalOptions {
  RetrievalTask task = RetrievalTask::needle;
  Index length = 1024;  // of a prompt, in bytes
  Index samples = 16;
  std::uint64_t seed = 0;
  std::optional<double> depth;  // in [0, 1], as for make_example
  /// Ask without the answer in the prompt, which measures what language and chance alone give.
  bool unaided = false;
  const SparseAttention* sparse = nullptr;
  EvaluationProgress progress;
};

struct RetrievalResult {
  double accuracy = 0;  // fraction of the answers' bytes that were predicted, given the bytes before
  double exact = 0;     // fraction of answers of which all bytes were predicted
  double seconds = 0;
  StageRecord prefill, generation;
};

/// For a model with a byte-level vocabulary: prompts are prefilled, answers generated (teacher-forced). ValueError for
/// another vocabulary.
RetrievalResult evaluate_retrieval(const Decoder& decoder, std::string_view filler,
                                   const RetrievalOptions& options = {}, const Context& context = {});

}  // namespace reticle::tools
