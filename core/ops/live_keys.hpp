// Caches that evict as they generate: one query at a time, each sees what the one before it left.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The keys that are still there, per (batch, list); a list serves an equal share of the query heads.
class RETICLE_API LiveKeys {
 public:
  struct List {
    std::vector<std::int32_t> keys;  // ascending
    std::vector<float> scores;       // aligned, if the rule keeps any
    void erase(std::size_t i);
  };

  /// Steps that truncate can take back.
  static constexpr std::size_t kStepsBack = 64;

  /// A prompt was prefilled: lists[batch * (lists of a batch) + i].
  void start(const AttentionInputs& prompt, Index lists_per_batch, std::vector<List> lists);

  /// Prefill: everything. Generation: for each query in order, its own key enters, the query attends to what is there,
  /// and evict(row, list, probabilities) may take keys away for later queries; row.head counts lists, `probabilities`
  /// are summed over its query heads and aligned with list.keys. ValueError, naming the masker, when no prompt was
  /// seen; ShapeError unless the queries are the next ones of the sequence.
  Mask generate(std::string_view masker, const AttentionInputs& inputs, const Context& context,
                FunctionRef<void(RowId row, List& list, std::span<const double> probabilities)> evict);

  /// See Masker::lasting: what was there when the query at `first` came, and all later keys. At most kStepsBack back.
  Mask lasting(const AttentionInputs& inputs, Index first, const Context& context) const;

  /// Takes steps back, at most the last kStepsBack, and none of the prompt's keys: CannotFollow.
  void truncate(Index keys);
  void select(std::span<const Index> rows);

 private:
  SeenKeys seen_;
  bool started_ = false;
  Index prompt_ = 0, lists_per_batch_ = 0;
  std::vector<List> lists_;
  std::vector<std::deque<List>> before_;  // what each list was before each of the last steps
};

}  // namespace reticle
