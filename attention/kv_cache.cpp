#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include <reticle/attention/kv_cache.hpp>

namespace reticle {

KvCache::KvCache(const KvCacheShape& shape) : shape_(shape) {
  if (shape.layers < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.value_dim < 1 || shape.capacity < 1)
    throw ShapeError("KV cache: layers, kv_heads, head_dim, value_dim and capacity must be positive");
  dispatch_float(shape.dtype, "KV cache", []<class T>() {});
  for (int layer = 0; layer < shape.layers; ++layer)
    layers_.push_back({Tensor(shape.dtype, {shape.kv_heads, shape.capacity, shape.head_dim}),
                       Tensor(shape.dtype, {shape.kv_heads, shape.capacity, shape.value_dim}),
                       {}});
}

const KvCache::Layer& KvCache::at(int layer) const {
  if (layer < 0 || layer >= shape_.layers)
    throw ShapeError("KV cache: no layer " + std::to_string(layer) + "; there are " + std::to_string(shape_.layers));
  return layers_[static_cast<std::size_t>(layer)];
}

Index KvCache::stored(int layer) const { return static_cast<Index>(at(layer).positions.size()); }
std::span<const Index> KvCache::positions(int layer) const { return at(layer).positions; }

void KvCache::extend(std::span<const std::int32_t> tokens) {
  for (int layer = 0; layer < shape_.layers; ++layer) {
    if (stored(layer) + static_cast<Index>(tokens.size()) <= shape_.capacity) continue;
    throw ValueError("KV cache: " + std::to_string(tokens.size()) + " more tokens do not fit; layer " +
                     std::to_string(layer) + " holds " + std::to_string(stored(layer)) + " keys of at most " +
                     std::to_string(shape_.capacity) + " (make the cache with more capacity, truncate or evict)");
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  announced_ = static_cast<Index>(tokens.size());
  counters_.appended += announced_;
}

void KvCache::append(int layer, const TensorView& keys, const TensorView& values) {
  Layer& to = at(layer);
  require_rank(keys, 3, "KV cache: keys");
  require_rank(values, 3, "KV cache: values");
  require_on(keys, Device::Kind::cpu, "KV cache: keys");
  require_on(values, Device::Kind::cpu, "KV cache: values");
  const Index first = stored(layer), count = keys.size(0), position = length() - count;
  const auto fits = [&](const TensorView& view, Index width) {
    return view.dtype == DType::f32 && view.size(0) == count && view.size(1) == shape_.kv_heads &&
           view.size(2) == width;
  };
  const bool has_them = count > 0 && !to.positions.empty() && to.positions.back() >= position;
  if (!fits(keys, shape_.head_dim) || !fits(values, shape_.value_dim) || count != announced_ || has_them)
    throw ShapeError("KV cache: keys " + keys.describe() + " and values " + values.describe() + " for layer " +
                     std::to_string(layer) + "; expected F32 (n, " + std::to_string(shape_.kv_heads) + ", " +
                     std::to_string(shape_.head_dim) + ") and (n, " + std::to_string(shape_.kv_heads) + ", " +
                     std::to_string(shape_.value_dim) + ") of the " + std::to_string(announced_) +
                     " tokens that extend() announced, once");
  dispatch_float(shape_.dtype, "KV cache", [&]<class T>() {
    const auto copy = [&](const TensorView& from, Tensor& store) {
      const Index width = from.size(2);
      for (Index head = 0; head < shape_.kv_heads; ++head) {
        T* row = static_cast<T*>(store.data()) + (head * shape_.capacity + first) * width;
        for (Index i = 0; i < count; ++i, row += width) {
          for (Index j = 0; j < width; ++j) row[j] = from_float<T>(*from.at<float>(i, head, j));
        }
      }
    };
    copy(keys, to.keys);
    copy(values, to.values);
  });
  for (Index i = 0; i < count; ++i) to.positions.push_back(position + i);
}

TensorView KvCache::stored_view(const Tensor& tensor, Index stored) const {
  TensorView view = tensor.view().slice(1, 0, stored);
  view.rank = 4;
  view.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  view.strides = {view.strides[0] * view.shape[1], view.strides[0], view.strides[1], view.strides[2]};
  return view;
}
TensorView KvCache::keys(int layer) const { return stored_view(at(layer).keys, stored(layer)); }
TensorView KvCache::values(int layer) const { return stored_view(at(layer).values, stored(layer)); }

void KvCache::truncate(Index length) {
  if (length < 0 || length > this->length())
    throw ShapeError("KV cache: cannot truncate to " + std::to_string(length) + " tokens; there are " +
                     std::to_string(this->length()));
  counters_.truncated += this->length() - length;
  announced_ = 0;
  tokens_.resize(static_cast<std::size_t>(length));
  for (Layer& layer : layers_)
    layer.positions.erase(std::lower_bound(layer.positions.begin(), layer.positions.end(), length),
                          layer.positions.end());
}

Index KvCache::evict(int layer, const Mask& kept) {
  Layer& store = at(layer);
  const MaskShape& shape = kept.shape();
  if (shape.batch != 1 || shape.keys != stored(layer))
    throw ShapeError("KV cache: a mask " + shape.describe() + " cannot say what to keep of layer " +
                     std::to_string(layer) + "; expected (1, heads, queries, " + std::to_string(stored(layer)) + ")");
  std::vector<std::uint8_t> keep(store.positions.size(), 0);
  std::vector<Run> runs;
  for (Index stored_row = 0; stored_row < shape.stored_rows(); ++stored_row) {
    runs.clear();
    kept.row(shape.row_of_stored(stored_row), runs);
    for (const Run& run : runs) std::fill(keep.begin() + run.begin, keep.begin() + run.end, std::uint8_t{1});
  }
  // In each head alike, the rows that are kept move down over the evicted ones.
  const auto compact = [&](Tensor& tensor) {
    const Index row_bytes = tensor.view().size(2) * size_of(shape_.dtype);
    for (Index head = 0; head < shape_.kv_heads; ++head) {
      std::byte* const base = static_cast<std::byte*>(tensor.data()) + head * shape_.capacity * row_bytes;
      Index to = 0;
      for (std::size_t i = 0; i < keep.size(); ++i) {
        if (keep[i] == 0) continue;
        const auto from = static_cast<Index>(i);
        if (from != to)
          std::memcpy(base + to * row_bytes, base + from * row_bytes, static_cast<std::size_t>(row_bytes));
        ++to;
      }
    }
  };
  compact(store.keys);
  compact(store.values);
  std::size_t left = 0;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (keep[i] != 0) store.positions[left++] = store.positions[i];
  }
  const auto dropped = static_cast<Index>(keep.size() - left);
  store.positions.resize(left);
  counters_.evicted += dropped;
  return dropped;
}

Index KvCache::reuse(std::span<const std::int32_t> prompt) {
  const bool whole = std::all_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
    return static_cast<Index>(layer.positions.size()) == length();
  });
  const auto end = std::mismatch(prompt.begin(), prompt.end(), tokens_.begin(), tokens_.end()).first;
  const Index found = whole ? end - prompt.begin() : 0;
  truncate(found);
  counters_.hits += found;
  counters_.misses += static_cast<Index>(prompt.size()) - found;
  return found;
}

KvCache KvCache::fork() const {
  KvCache copy(shape_);
  for (int layer = 0; layer < shape_.layers; ++layer) {
    Layer& to = copy.at(layer);
    const Layer& from = at(layer);
    to.positions = from.positions;
    const auto copy_rows = [&](const Tensor& source, Tensor& target) {
      const Index head_bytes = shape_.capacity * source.view().size(2) * size_of(shape_.dtype);
      const Index used_bytes = stored(layer) * source.view().size(2) * size_of(shape_.dtype);
      for (Index head = 0; head < shape_.kv_heads; ++head)
        std::memcpy(static_cast<std::byte*>(target.data()) + head * head_bytes,
                    static_cast<const std::byte*>(source.view().data) + head * head_bytes,
                    static_cast<std::size_t>(used_bytes));
    };
    copy_rows(from.keys, to.keys);
    copy_rows(from.values, to.values);
  }
  copy.tokens_ = tokens_;
  copy.counters_ = counters_;
  return copy;
}

Index KvCache::bytes() const {
  return shape_.layers * shape_.kv_heads * shape_.capacity * (shape_.head_dim + shape_.value_dim) *
         size_of(shape_.dtype);
}

Index KvCache::bytes_used() const {
  Index keys = 0;
  for (const Layer& layer : layers_) keys += static_cast<Index>(layer.positions.size());
  return keys * shape_.kv_heads * (shape_.head_dim + shape_.value_dim) * size_of(shape_.dtype);
}

}  // namespace reticle
