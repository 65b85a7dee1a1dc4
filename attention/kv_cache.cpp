#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include <reticle/attention/kv_cache.hpp>
#include <reticle/core/tensor/quantised_rows.hpp>

namespace reticle {

KvCache::KvCache(const KvCacheShape& shape) : shape_(shape) {
  if (shape.layers < 1 || shape.kv_heads < 1 || shape.head_dim < 1 || shape.value_dim < 1 || shape.capacity < 1)
    throw ShapeError("KV cache: layers, kv_heads, head_dim, value_dim and capacity must be positive");
  if (!is_quantised(shape.dtype)) dispatch_float(shape.dtype, "KV cache", []<class T>() {});
  if (is_quantised(shape.dtype) && std::max(shape.head_dim, shape.value_dim) > kMaxQuantisedWidth)
    throw ShapeError("KV cache: head_dim " + std::to_string(shape.head_dim) + ", value_dim " +
                     std::to_string(shape.value_dim) + "; expected at most " + std::to_string(kMaxQuantisedWidth) +
                     " for quantised keys and values");
  if (shape.recent < 0 || (shape.recent > 0 && !is_quantised(shape.dtype)))
    throw ValueError("KV cache: recent is " + std::to_string(shape.recent) + " for keys in " +
                     std::string(name_of(shape.dtype)) + "; expected 0, or a number of keys beside Q8 or Q4");
  for (int layer = 0; layer < shape.layers; ++layer)
    layers_.push_back({Tensor(shape.dtype, {shape.kv_heads, shape.capacity, shape.head_dim}),
                       Tensor(shape.dtype, {shape.kv_heads, shape.capacity, shape.value_dim}),
                       {},
                       Tensor(DType::f32, {shape.kv_heads, 2 * shape.recent, shape.head_dim}),
                       Tensor(DType::f32, {shape.kv_heads, 2 * shape.recent, shape.value_dim})});
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
  std::vector<float> row;
  const auto copy = [&](const TensorView& from, Tensor& store) {
    row.resize(static_cast<std::size_t>(from.size(2)));
    const Index bytes = row_bytes(shape_.dtype, from.size(2));
    for (Index head = 0; head < shape_.kv_heads; ++head) {
      auto* at = static_cast<std::byte*>(store.data()) + (head * shape_.capacity + first) * bytes;
      for (Index i = 0; i < count; ++i, at += bytes) {
        for (std::size_t j = 0; j < row.size(); ++j) row[j] = *from.at<float>(i, head, j);
        store_row(row, shape_.dtype, at);
      }
    }
  };
  copy(keys, to.keys);
  copy(values, to.values);
  if (shape_.recent > 0) append_recent(to, keys, values);
  for (Index i = 0; i < count; ++i) to.positions.push_back(position + i);
}

void KvCache::append_recent(Layer& layer, const TensorView& keys, const TensorView& values) const {
  const Index added = std::min(keys.size(0), shape_.recent), from = keys.size(0) - added,
              left = std::min(layer.recent_count, shape_.recent - added),
              begin = layer.recent_begin + layer.recent_count - left;
  // The rows move to the front once in `recent` tokens.
  const Index to = begin + left + added > 2 * shape_.recent ? 0 : begin;
  for (const auto& [given, store] : {std::pair{&keys, &layer.recent_keys}, std::pair{&values, &layer.recent_values}}) {
    const Index width = given->size(2);
    for (Index head = 0; head < shape_.kv_heads; ++head) {
      float* const base = store->span<float>().data() + head * 2 * shape_.recent * width;
      std::memmove(base + to * width, base + begin * width, static_cast<std::size_t>(left * width) * sizeof(float));
      for (Index i = 0; i < added; ++i) {
        for (Index j = 0; j < width; ++j) base[(to + left + i) * width + j] = *given->at<float>(from + i, head, j);
      }
    }
  }
  layer.recent_begin = to;
  layer.recent_count = left + added;
}

TensorView KvCache::stored_view(const Tensor& tensor, Index begin, Index end) {
  TensorView view = tensor.view().slice(1, begin, end);
  view.rank = 4;
  view.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  view.strides = {view.strides[0] * view.shape[1], view.strides[0], view.strides[1], view.strides[2]};
  return view;
}
TensorView KvCache::keys(int layer) const { return stored_view(at(layer).keys, 0, stored(layer)); }
TensorView KvCache::values(int layer) const { return stored_view(at(layer).values, 0, stored(layer)); }
TensorView KvCache::recent_keys(int layer) const {
  const Layer& from = at(layer);
  return stored_view(from.recent_keys, from.recent_begin, from.recent_begin + from.recent_count);
}
TensorView KvCache::recent_values(int layer) const {
  const Layer& from = at(layer);
  return stored_view(from.recent_values, from.recent_begin, from.recent_begin + from.recent_count);
}

void KvCache::truncate(Index length) {
  if (length < 0 || length > this->length())
    throw ShapeError("KV cache: cannot truncate to " + std::to_string(length) + " tokens; there are " +
                     std::to_string(this->length()));
  counters_.truncated += this->length() - length;
  announced_ = 0;
  tokens_.resize(static_cast<std::size_t>(length));
  for (Layer& layer : layers_) {
    const auto end = std::lower_bound(layer.positions.begin(), layer.positions.end(), length);
    layer.recent_count = std::max<Index>(0, layer.recent_count - (layer.positions.end() - end));
    layer.positions.erase(end, layer.positions.end());
  }
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
  // In each head alike, the rows that are kept move down over the evicted ones. `first` is the number of a tensor's
  // first row among those that are stored.
  const auto compact = [&](Tensor& tensor, Index first, Index begin) {
    const TensorView& view = tensor.view();
    const Index bytes = row_bytes(view.dtype, view.size(2));
    Index left = 0;
    for (Index head = 0; head < shape_.kv_heads; ++head) {
      std::byte* const base = static_cast<std::byte*>(tensor.data()) + (head * view.size(1) + begin) * bytes;
      Index to = 0;
      for (std::size_t i = static_cast<std::size_t>(first); i < keep.size(); ++i) {
        if (keep[i] == 0) continue;
        const Index from = static_cast<Index>(i) - first;
        if (from != to) std::memcpy(base + to * bytes, base + from * bytes, static_cast<std::size_t>(bytes));
        ++to;
      }
      left = to;
    }
    return left;
  };
  compact(store.keys, 0, 0);
  compact(store.values, 0, 0);
  const Index first_recent = static_cast<Index>(keep.size()) - store.recent_count;
  compact(store.recent_keys, first_recent, store.recent_begin);
  store.recent_count = compact(store.recent_values, first_recent, store.recent_begin);
  std::size_t count = 0;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (keep[i] != 0) store.positions[count++] = store.positions[i];
  }
  const auto dropped = static_cast<Index>(keep.size() - count);
  store.positions.resize(count);
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
      const Index bytes = row_bytes(shape_.dtype, source.view().size(2));
      const Index head_bytes = shape_.capacity * bytes, used_bytes = stored(layer) * bytes;
      for (Index head = 0; head < shape_.kv_heads; ++head)
        std::memcpy(static_cast<std::byte*>(target.data()) + head * head_bytes,
                    static_cast<const std::byte*>(source.view().data) + head * head_bytes,
                    static_cast<std::size_t>(used_bytes));
    };
    copy_rows(from.keys, to.keys);
    copy_rows(from.values, to.values);
    to.recent_keys = Tensor::copy(from.recent_keys, DType::f32);
    to.recent_values = Tensor::copy(from.recent_values, DType::f32);
    to.recent_begin = from.recent_begin;
    to.recent_count = from.recent_count;
  }
  copy.tokens_ = tokens_;
  copy.counters_ = counters_;
  return copy;
}

Index KvCache::bytes_per_key() const {
  return shape_.kv_heads * (row_bytes(shape_.dtype, shape_.head_dim) + row_bytes(shape_.dtype, shape_.value_dim));
}

Index KvCache::bytes_per_recent_key() const {
  return shape_.kv_heads * (shape_.head_dim + shape_.value_dim) * size_of(DType::f32);
}

Index KvCache::bytes() const {
  return shape_.layers * (shape_.capacity * bytes_per_key() + 2 * shape_.recent * bytes_per_recent_key());
}

Index KvCache::bytes_used() const {
  Index keys = 0, recent = 0;
  for (const Layer& layer : layers_) {
    keys += static_cast<Index>(layer.positions.size());
    recent += layer.recent_count;
  }
  return keys * bytes_per_key() + recent * bytes_per_recent_key();
}

}  // namespace reticle
