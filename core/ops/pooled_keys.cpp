#include <algorithm>
#include <limits>
#include <span>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/pooled_keys.hpp>

namespace reticle {

void PooledKeys::update(const AttentionInputs& inputs, Index kernel, Index stride) {
  seen_.continue_with(inputs);
  kernel_ = kernel;
  stride_ = stride;
  head_dim_ = inputs.head_dim();
  kv_heads_ = inputs.kv_heads();
  means_.resize(static_cast<std::size_t>(inputs.batch() * kv_heads_));
  forbidden_.resize(means_.size());
  const Index before = count(seen_.count()), after = count(inputs.keys_length());
  const auto d = static_cast<std::size_t>(head_dim_);
  std::vector<float> key(d);
  std::vector<double> sum(d);
  for (std::size_t head = 0; head < means_.size(); ++head) {
    const auto h = static_cast<Index>(head);
    const TensorView keys = head_matrix(inputs.keys, h / kv_heads_, h % kv_heads_);
    const ReachableKeys reachable(inputs, h / kv_heads_, h % kv_heads_);
    means_[head].resize(static_cast<std::size_t>(after) * d);
    forbidden_[head].resize(static_cast<std::size_t>(after));
    for (Index window = before; window < after; ++window) {
      std::fill(sum.begin(), sum.end(), 0.0);
      Index read = 0;
      for (Index k = window * stride; k < window * stride + kernel; ++k) {
        if (!reachable(k)) continue;
        ++read;
        load_row(keys, k, 1, key);
        for (std::size_t c = 0; c < d; ++c) sum[c] += static_cast<double>(key[c]);
      }
      for (std::size_t c = 0; c < d; ++c)
        means_[head][static_cast<std::size_t>(window) * d + c] =
            read == 0 ? 0.0f : static_cast<float>(sum[c] / static_cast<double>(read));
      forbidden_[head][static_cast<std::size_t>(window)] = read == 0 ? 1 : 0;
      keys_read_ += read;
    }
  }
  seen_.finish(inputs);
}

TensorView PooledKeys::means(Index batch, Index kv_head, Index count) const {
  return {means_[static_cast<std::size_t>(batch * kv_heads_ + kv_head)].data(), DType::f32, {count, head_dim_}};
}

void PooledKeys::score(std::span<const float> query, Index batch, Index kv_head, Index count,
                       std::span<float> scores) const {
  dot(query.data(), 1, means(batch, kv_head, count), scores.data(), count);
  const std::vector<std::uint8_t>& forbidden = forbidden_[static_cast<std::size_t>(batch * kv_heads_ + kv_head)];
  for (Index i = 0; i < count; ++i) {
    if (forbidden[static_cast<std::size_t>(i)] != 0)
      scores[static_cast<std::size_t>(i)] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace reticle
