#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/page_bounds.hpp>
#include <reticle/core/ops/quantise.hpp>

namespace reticle {

void PageBounds::update(const AttentionInputs& inputs, Index page_size, Index label_bits) {
  seen_.continue_with(inputs);
  const TensorView& keys = inputs.keys;
  const Index count = keys.size(2), d = keys.size(3), seen = seen_.count();
  if (seen > 0 && page_size != page_size_)
    throw ShapeError("pages of " + std::to_string(page_size) + " keys: the layer's state holds pages of " +
                     std::to_string(page_size_) + "; reset it for another size");
  if (seen == 0) {
    kv_heads_ = keys.size(1);
    head_dim_ = d;
    page_size_ = page_size;
    bounds_.assign(static_cast<std::size_t>(inputs.batch() * kv_heads_), {});
    labels_.assign(label_bits < 16 ? bounds_.size() : 0, {});
  }
  const Index first_page = seen / page_size, pages = (count + page_size - 1) / page_size;
  // The bounds of a page without keys: lower than those of any key, and finite, so that products with 0 are not NaN.
  constexpr float kNone = std::numeric_limits<float>::max();
  std::vector<float> key(static_cast<std::size_t>(d));
  for (Index head = 0; head < inputs.batch() * kv_heads_; ++head) {
    const TensorView matrix = head_matrix(keys, head / kv_heads_, head % kv_heads_);
    const ReachableKeys reachable(inputs, head / kv_heads_, head % kv_heads_);
    std::vector<float>& bounds = bounds_[static_cast<std::size_t>(head)];
    for (Index page = this->pages(); page < pages; ++page) {
      bounds.insert(bounds.end(), key.size(), -kNone);
      bounds.insert(bounds.end(), key.size(), kNone);
    }
    for (Index k = seen; k < count; ++k) {
      if (!reachable(k)) continue;
      load_row(matrix, k, 1, key);
      float* largest = bounds.data() + k / page_size * 2 * d;
      for (Index i = 0; i < d; ++i) {
        largest[i] = std::max(largest[i], key[static_cast<std::size_t>(i)]);
        largest[d + i] = std::min(largest[d + i], key[static_cast<std::size_t>(i)]);
      }
    }
    if (labels_.empty()) continue;
    std::vector<float>& labels = labels_[static_cast<std::size_t>(head)];
    labels.resize(bounds.size());
    for (Index page = first_page; page < pages; ++page) {
      for (const Index half : {page * 2 * d, page * 2 * d + d}) {
        std::copy_n(bounds.begin() + half, d, labels.begin() + half);
        if (std::abs(bounds[static_cast<std::size_t>(half)]) == kNone) continue;
        fake_quantise({labels.data() + half, static_cast<std::size_t>(d)}, label_bits);
      }
    }
  }
  keys_read_ += (count - seen) * inputs.batch() * kv_heads_;
  seen_.finish(inputs);
}

void PageBounds::truncate(Index keys) {
  if (keys >= seen_.count()) return;
  seen_.truncate(keys / page_size_ * page_size_);
  const auto floats = static_cast<std::size_t>(pages() * 2 * head_dim_);
  for (std::vector<float>& bounds : bounds_) bounds.resize(floats);
  for (std::vector<float>& labels : labels_) labels.resize(floats);
}

void PageBounds::select(std::span<const Index> rows) {
  select_rows(bounds_, rows, seen_.batch());
  select_rows(labels_, rows, seen_.batch());
  seen_.select(rows);
}

void PageBounds::score(std::span<const float> query, Index batch, Index kv_head, std::span<float> scores) const {
  // max(q * least, q * largest) is q+ * largest + q- * least: one dot product with [largest | least].
  std::vector<float> parts(2 * query.size());
  for (std::size_t i = 0; i < query.size(); ++i) {
    parts[i] = std::max(query[i], 0.0f);
    parts[query.size() + i] = std::min(query[i], 0.0f);
  }
  const std::vector<std::vector<float>>& heads = labels_.empty() ? bounds_ : labels_;
  const std::vector<float>& bounds = heads[static_cast<std::size_t>(batch * kv_heads_ + kv_head)];
  dot(parts.data(), 1, TensorView(bounds.data(), DType::f32, {pages(), 2 * head_dim_}), scores.data(), pages());
}

}  // namespace reticle
