// Means of windows of keys, kept across decode steps: NSA's average pooling and MoBA's block representatives.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/attention_inputs.hpp>

namespace reticle {

/// Mean i of a KV head is the mean of keys [i * stride, i * stride + kernel), without those that the attention mask
/// forbids to all queries; only complete windows count.
class RETICLE_API PooledKeys {
 public:
  /// Reads the keys beyond those seen. ShapeError when the inputs do not continue the sequence.
  void update(const AttentionInputs& inputs, Index kernel, Index stride);
  void truncate(Index keys) { seen_.truncate(keys); }
  void select(std::span<const Index> rows) {
    select_rows(means_, rows, seen_.batch());
    select_rows(forbidden_, rows, seen_.batch());
    seen_.select(rows);
  }
  /// Complete windows within the first n keys.
  Index count(Index n) const { return n < kernel_ ? 0 : (n - kernel_) / stride_ + 1; }
  /// The first `count` means, (count, d) F32.
  TensorView means(Index batch, Index kv_head, Index count) const;
  /// scores[i] = query . mean i, for i < count; -infinity where all keys of the window are forbidden.
  void score(std::span<const float> query, Index batch, Index kv_head, Index count, std::span<float> scores) const;
  /// Keys read so far, over all updates; shows what a decode step costs.
  Index keys_read() const { return keys_read_; }

 private:
  SeenKeys seen_;
  Index kernel_ = 1, stride_ = 1, head_dim_ = 0, kv_heads_ = 0, keys_read_ = 0;
  // Per (batch, KV head): the means, and for each whether all its keys are forbidden.
  std::vector<std::vector<float>> means_;
  std::vector<std::vector<std::uint8_t>> forbidden_;
};

}  // namespace reticle
