// Caches that evict during generation: queries come one at a time, and each sees the keys that the query before it
// left.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/base/function_ref.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// The keys that were not evicted, per (batch, list); each list belongs to an equal share of the query heads.
class RETICLE_API LiveKeys {
 public:
  struct List {
    std::vector<std::int32_t> keys;  // ascending
    std::vector<float> scores;       // aligned with keys; empty if the masker keeps none
    void erase(std::size_t i);
  };

  /// The number of steps that truncate can undo.
  static constexpr std::size_t kStepsBack = 64;

  /// Starts after the prefill of a prompt, with lists[batch * lists_per_batch + i].
  void start(const AttentionInputs& prompt, Index lists_per_batch, std::vector<List> lists);

  /// Prefill: everything. Generation: each query in order adds its own key to its list and attends to the list's keys;
  /// evict(row, list, probabilities) may then remove keys for later queries. row.head is the number of the list;
  /// `probabilities` are summed over its query heads and aligned with list.keys. ValueError, naming the masker, when no
  /// prompt was seen; ShapeError unless the queries are the next ones of the sequence.
  Mask generate(std::string_view masker, const AttentionInputs& inputs, const Context& context,
                FunctionRef<void(RowId row, List& list, std::span<const double> probabilities)> evict);

  /// See Masker::lasting: the keys that were present when the query at `first` came, and all later keys. Goes back at
  /// most kStepsBack steps.
  Mask lasting(const AttentionInputs& inputs, Index first, const Context& context) const;

  /// Undoes steps; CannotFollow beyond the last kStepsBack and for keys of the prompt.
  void truncate(Index keys);
  void select(std::span<const Index> rows);

 private:
  SeenKeys seen_;
  bool started_ = false;
  Index prompt_ = 0, lists_per_batch_ = 0;
  std::vector<List> lists_;
  std::vector<std::deque<List>> before_;  // each list before each of the last steps
};

}  // namespace reticle
