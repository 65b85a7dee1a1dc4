// Elementwise minimum and maximum of the keys of fixed pages. An upper bound of q.k over a page reads these two vectors
// instead of the page. Quest (Tang et al. 2024).
#pragma once

#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>

namespace reticle {

/// The bounds of every page of every KV head of one layer; kept across decode steps, in which only new keys are read.
class RETICLE_API PageBounds {
 public:
  /// Appends the keys beyond those seen. ShapeError when the inputs do not continue the sequence. label_bits < 16
  /// quantises each page's minimum and maximum.
  void update(const AttentionInputs& inputs, Index page_size, Index label_bits);

  /// Forgets keys from position `keys` on; earlier keys of the same page are read again.
  void truncate(Index keys);
  void select(std::span<const Index> rows);

  Index pages() const { return page_size_ == 0 ? 0 : (seen_.count() + page_size_ - 1) / page_size_; }
  /// Keys read so far, over all updates; shows what a decode step costs.
  Index keys_read() const { return keys_read_; }
  /// scores[p] = sum over d of max(q_d * least_d, q_d * largest_d), an upper bound of q.k over page p. `query` (d) F32.
  void score(std::span<const float> query, Index batch, Index kv_head, std::span<float> scores) const;

 private:
  SeenKeys seen_;
  Index kv_heads_ = 0, head_dim_ = 0, page_size_ = 0, keys_read_ = 0;
  // Per (batch, KV head): pages x [largest | least], and the same quantised when label_bits < 16.
  std::vector<std::vector<float>> bounds_, labels_;
};

}  // namespace reticle
