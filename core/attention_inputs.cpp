#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/tensor/quantised_rows.hpp>

namespace reticle {
namespace {

void require_float(const TensorView& view, std::string_view name) {
  dispatch_float(view.dtype, name, []<class T>() {});
}

void require_float_or_quantised(const TensorView& view, std::string_view name) {
  if (!is_quantised(view.dtype)) return require_float(view, name);
  if (view.device.kind != Device::Kind::cpu)
    throw DeviceError(std::string(name) + ": " + view.describe() + " on " + view.device.describe() +
                      "; quantised keys and values are supported on the CPU; expected F32, F16 or BF16 on a GPU");
  if (view.size(3) > kMaxQuantisedWidth || view.stride(3) != 1)
    throw ShapeError(std::string(name) + ": " + view.describe() + "; expected quantised rows of at most " +
                     std::to_string(kMaxQuantisedWidth) + " channels, stored one after the other");
}

}  // namespace

void AttentionInputs::validate() const {
  require_rank(queries, 4, "queries");
  require_rank(keys, 4, "keys");
  require_rank(values, 4, "values");
  require_float(queries, "queries");
  require_float_or_quantised(keys, "keys");
  require_float_or_quantised(values, "values");
  const auto reject = [&](const std::string& what) {
    throw ShapeError(what + " (queries " + queries.describe() + ", keys " + keys.describe() + ", values " +
                     values.describe() + ")");
  };
  if (keys.size(0) != batch() || values.size(0) != batch()) reject("queries, keys and values need one batch size");
  if (values.size(1) != kv_heads() || values.size(2) != keys.size(2))
    reject("values need the heads and the length of the keys");
  if (keys.size(3) != head_dim()) reject("keys need the head_dim of the queries");
  if (kv_heads() == 0 ? heads() != 0 : heads() % kv_heads() != 0)
    reject("the query heads, " + std::to_string(heads()) + ", must be a multiple of the KV heads, " +
           std::to_string(kv_heads()));
  if (!(std::abs(scaling) <= std::numeric_limits<float>::max()))
    throw ValueError("scaling is " + std::to_string(scaling) + "; expected a finite number");
  if (layer < 0) throw ValueError("layer is " + std::to_string(layer) + "; expected the number of a layer, from 0");
  if (attention_mask) {
    require_rank(*attention_mask, 4, "attention_mask");
    require_float(*attention_mask, "attention_mask");
    const Index wanted[] = {batch(), heads(), queries_length(), keys_length()};
    for (int dim = 0; dim < 4; ++dim) {
      const Index extent = attention_mask->size(dim);
      if (extent != wanted[dim] && extent != 1)
        throw ShapeError("attention_mask: " + attention_mask->describe() + " does not broadcast to " +
                         shape().describe());
    }
  }
  const auto require_with_queries = [&](const TensorView& view, std::string_view name) {
    if (view.device != queries.device)
      throw DeviceError(std::string(name) + ": on " + view.device.describe() + ", and the queries on " +
                        queries.device.describe() + "; expected one device for all tensors");
  };
  require_with_queries(keys, "keys");
  require_with_queries(values, "values");
  if (attention_mask) require_with_queries(*attention_mask, "attention_mask");
  for (const NamedTensor& extra : extras) require_with_queries(extra.tensor, extra.name);
  shape().validate();
  if (recent_keys || recent_values) validate_recent();
  if (stored) validate_stored();
}

void AttentionInputs::validate_recent() const {
  const auto fits = [&](const std::optional<TensorView>& recent, const TensorView& all) {
    return recent && recent->rank == 4 && !is_quantised(recent->dtype) && recent->device == all.device &&
           recent->size(0) == all.size(0) && recent->size(1) == all.size(1) && recent->size(2) <= all.size(2) &&
           recent->size(3) == all.size(3);
  };
  const auto describe = [](const std::optional<TensorView>& recent) { return recent ? recent->describe() : "none"; };
  if (!fits(recent_keys, keys) || !fits(recent_values, values) || recent_keys->size(2) != recent_values->size(2))
    throw ShapeError("recent keys: " + describe(recent_keys) + ", recent values: " + describe(recent_values) +
                     "; expected both, or neither: the last n of keys " + keys.describe() + " and values " +
                     values.describe() + " in a floating dtype");
  require_float(*recent_keys, "recent keys");
  require_float(*recent_values, "recent values");
  if (stored || queries.device.kind != Device::Kind::cpu)
    throw ValueError("recent keys: expected tensors on the CPU, and a cache that evicts no keys");
}

void AttentionInputs::validate_stored() const {
  const auto rows = static_cast<std::size_t>(keys.size(2)), lists = static_cast<std::size_t>(batch() * kv_heads());
  if (stage != Stage::generation || attention_mask)
    throw ValueError("stored keys: expected the generation stage and no attention_mask");
  if (queries.device.kind != Device::Kind::cpu)
    throw DeviceError("stored keys: on " + queries.device.describe() + "; caches that evict are supported on the CPU");
  if (stored->positions.size() != rows || stored->begin.size() != lists || stored->end.size() != lists)
    throw ShapeError("stored keys: " + std::to_string(stored->positions.size()) + " positions, " +
                     std::to_string(stored->begin.size()) + " begins and " + std::to_string(stored->end.size()) +
                     " ends; expected a position of each of " + std::to_string(rows) + " rows, and " +
                     std::to_string(lists) + " lists");
  for (std::size_t i = 0; i < lists; ++i) {
    if (stored->begin[i] < 0 || stored->end[i] < stored->begin[i] || stored->end[i] > keys.size(2))
      throw ShapeError("stored keys: list " + std::to_string(i) + " is rows [" + std::to_string(stored->begin[i]) +
                       ", " + std::to_string(stored->end[i]) + ") of " + std::to_string(rows));
  }
}

void AttentionInputs::validate_on(Device::Kind device) const {
  validate();
  require_on(queries, device, "queries");
}

Index AttentionInputs::visible_keys(Index query) const {
  return causal ? std::clamp<Index>(position(query) + 1, 0, keys_length()) : keys_length();
}

AttentionInputs AttentionInputs::rows(Index from, Index to) const {
  AttentionInputs part = *this;
  const Index end = std::max<Index>(0, keys_length() - queries_length() + to);
  part.queries = queries.slice(2, from, to);
  if (part.stored) {
    part.stored->length = end;
  } else {
    part.keys = keys.slice(2, 0, end);
    part.values = values.slice(2, 0, end);
    for (std::optional<TensorView>* recent : {&part.recent_keys, &part.recent_values}) {
      if (*recent) *recent = (*recent)->slice(2, 0, std::max<Index>(0, (*recent)->size(2) - (keys_length() - end)));
    }
  }
  if (part.attention_mask) {
    if (attention_mask->size(2) != 1) part.attention_mask = part.attention_mask->slice(2, from, to);
    if (attention_mask->size(3) != 1) part.attention_mask = part.attention_mask->slice(3, 0, end);
  }
  return part;
}

std::optional<TensorView> AttentionInputs::extra(std::string_view name) const {
  for (const NamedTensor& entry : extras) {
    if (entry.name == name) return entry.tensor;
  }
  return std::nullopt;
}

KeyRows::KeyRows(const AttentionInputs& inputs, Index batch, Index kv_head) : moved_(inputs.stored.has_value()) {
  if (!moved_) return;
  const auto list = static_cast<std::size_t>(batch * inputs.kv_heads() + kv_head);
  const Index begin = inputs.stored->begin[list], end = inputs.stored->end[list];
  positions_ = inputs.stored->positions.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  first_ = static_cast<std::int32_t>(begin);
}

std::int32_t KeyRows::find(std::int32_t position) const {
  if (!moved_) return position;
  const auto at = std::lower_bound(positions_.begin(), positions_.end(), position);
  if (at == positions_.end() || *at != position) return -1;
  return first_ + static_cast<std::int32_t>(at - positions_.begin());
}

void KeyRows::find(std::span<const std::int32_t> positions, std::int32_t* rows,
                   std::optional<std::int32_t> missing) const {
  if (positions.empty()) return;
  std::size_t at = 0;
  if (moved_)
    at = static_cast<std::size_t>(std::lower_bound(positions_.begin(), positions_.end(), positions[0]) -
                                  positions_.begin());
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const std::int32_t position = positions[i];
    if (!moved_) {
      rows[i] = position;
      continue;
    }
    while (at < positions_.size() && positions_[at] < position) ++at;
    if (at < positions_.size() && positions_[at] == position) {
      rows[i] = first_ + static_cast<std::int32_t>(at);
    } else if (missing) {
      rows[i] = *missing;
    } else {
      throw ValueError("stored keys: the key at position " + std::to_string(position) +
                       " was evicted, and is attended to again");
    }
  }
}

namespace {

/// The first bytes, up to eight, of the key at `position` of the last KV head; nothing when it was evicted.
std::optional<std::uint64_t> mark_of(const AttentionInputs& inputs, Index batch, Index position) {
  const TensorView& keys = inputs.keys;
  if (keys.size(1) == 0) return 0;
  const Index row = KeyRows(inputs, batch, keys.size(1) - 1).find(static_cast<std::int32_t>(position));
  if (row < 0) return std::nullopt;
  const TensorView matrix = head_matrix(keys, batch, keys.size(1) - 1);
  const auto width = static_cast<std::size_t>(size_of(keys.dtype));
  std::uint64_t mark = 0;
  for (std::size_t i = 0; i < std::min(sizeof(mark) / width, static_cast<std::size_t>(keys.size(3))); ++i) {
    const Index element = row * matrix.stride(0) + static_cast<Index>(i) * matrix.stride(1);
    std::memcpy(reinterpret_cast<char*>(&mark) + i * width,
                static_cast<const char*>(matrix.data) + element * static_cast<Index>(width), width);
  }
  return mark;
}

}  // namespace

void SeenKeys::continue_with(const AttentionInputs& inputs) {
  if (!begun_) {
    begun_ = true;
    batch_ = inputs.batch();
    heads_ = inputs.heads();
    kv_heads_ = inputs.kv_heads();
    head_dim_ = inputs.head_dim();
  }
  require_continued(inputs);
}

void SeenKeys::require_continued(const AttentionInputs& inputs) const {
  const auto reject = [&](const char* what) {
    throw ShapeError("queries " + inputs.queries.describe() + " and keys " + inputs.keys.describe() +
                     " do not continue the " + std::to_string(count_) + " keys of (" + std::to_string(batch_) + ", " +
                     std::to_string(kv_heads_) + ", n, " + std::to_string(head_dim_) + "), " + std::to_string(heads_) +
                     " query heads, that the layer's state holds" + what);
  };
  if (inputs.batch() != batch_ || inputs.heads() != heads_ || inputs.kv_heads() != kv_heads_ ||
      inputs.head_dim() != head_dim_ || inputs.keys_length() < count_)
    reject("; reset it for a new sequence");
  for (std::size_t row = 0; row < last_.size(); ++row) {
    if (mark_of(inputs, static_cast<Index>(row), count_ - 1).value_or(last_[row]) != last_[row])
      reject(
          ": the last of them is another now; select or truncate the state as the cache was, or reset it for new "
          "sequences");
  }
}

void SeenKeys::finish(const AttentionInputs& inputs) {
  count_ = inputs.keys_length();
  last_.resize(count_ == 0 ? 0 : static_cast<std::size_t>(batch_));
  for (std::size_t row = 0; row < last_.size(); ++row)
    last_[row] = mark_of(inputs, static_cast<Index>(row), count_ - 1).value_or(0);
}

void SeenKeys::truncate(Index keys) {
  if (keys >= count_) return;
  count_ = keys;
  last_.clear();
}

void SeenKeys::select(std::span<const Index> rows) {
  if (!begun_) return;
  select_rows(last_, rows, batch_);
  batch_ = static_cast<Index>(rows.size());
}

TensorView head_matrix(const TensorView& tensor, Index batch, Index head) {
  TensorView matrix;
  matrix.data = static_cast<const std::byte*>(tensor.data) +
                (batch * tensor.stride(0) + head * tensor.stride(1)) * size_of(tensor.dtype);
  matrix.dtype = tensor.dtype;
  matrix.rank = 2;
  matrix.shape = {tensor.size(2), tensor.size(3)};
  matrix.strides = {tensor.stride(2), tensor.stride(3)};
  return matrix;
}

void load_row(const TensorView& matrix, Index row, float factor, std::span<float> to) {
  if (is_quantised(matrix.dtype))
    return dequantise_row(static_cast<const std::byte*>(matrix.data) + row * matrix.stride(0), matrix.dtype, factor,
                          to);
  dispatch_float(matrix.dtype, "tensor", [&]<class T>() {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = factor * to_float(*matrix.at<T>(row, i));
  });
}

AttentionMaskRow::AttentionMaskRow(const TensorView& attention_mask, RowId row) : row_(attention_mask) {
  const auto step = [&](int dim, Index i) {
    return attention_mask.size(dim) == 1 ? 0 : i * attention_mask.stride(dim);
  };
  const Index offset = step(0, row.batch) + step(1, row.head) + step(2, row.query);
  row_.data = static_cast<const std::byte*>(attention_mask.data) + offset * size_of(attention_mask.dtype);
  stride_ = attention_mask.size(3) == 1 ? 0 : attention_mask.stride(3);
  forbidden_ = attention_mask.dtype == DType::f16 ? -65504.0f / 2 : -std::numeric_limits<float>::max() / 2;
}

float AttentionMaskRow::operator()(Index key) const {
  const float bias = read_float(row_, key * stride_);
  return bias <= forbidden_ ? -std::numeric_limits<float>::infinity() : bias;
}

void add_attention_mask(const AttentionInputs& inputs, RowId row, float* scores) {
  const Index visible = inputs.visible_keys(row.query);
  std::fill(scores + visible, scores + inputs.keys_length(), -std::numeric_limits<float>::infinity());
  if (!inputs.attention_mask) return;
  const AttentionMaskRow bias(*inputs.attention_mask, row);
  for (Index key = 0; key < visible; ++key) {
    const float added = bias(key);  // a forbidden key gets -infinity even if its score is NaN
    scores[key] = added == -std::numeric_limits<float>::infinity() ? added : scores[key] + added;
  }
}

std::vector<Run> forbidden_keys(const AttentionInputs& inputs, RowId row) {
  std::vector<Run> forbidden;
  if (!inputs.attention_mask) return forbidden;
  const AttentionMaskRow bias(*inputs.attention_mask, row);
  auto emit = [&](Run run) { forbidden.push_back(run); };
  RunJoiner join(emit);
  for (std::int32_t key = 0; key < inputs.keys_length(); ++key) {
    if (bias(key) == -std::numeric_limits<float>::infinity()) join(key, key + 1, 1.0f);
  }
  join.flush();
  return forbidden;
}

ReachableKeys::ReachableKeys(const AttentionInputs& inputs, Index batch, Index kv_head) {
  if (!inputs.attention_mask) return;
  std::vector<std::int32_t> unseen(static_cast<std::size_t>(inputs.keys_length()));
  std::iota(unseen.begin(), unseen.end(), 0);
  // A broadcast dimension repeats its rows. Queries are visited last to first, since late ones see most keys.
  const Index heads = inputs.attention_mask->size(1) == 1 ? 1 : inputs.group();
  const Index queries = inputs.attention_mask->size(2) == 1 ? 1 : inputs.queries_length();
  for (Index head = kv_head * inputs.group(); head < kv_head * inputs.group() + heads; ++head) {
    for (Index query = queries - 1; query >= 0 && !unseen.empty(); --query) {
      const AttentionMaskRow bias(*inputs.attention_mask, {batch, head, query});
      std::erase_if(unseen, [&](std::int32_t key) { return bias(key) != -std::numeric_limits<float>::infinity(); });
    }
  }
  if (unseen.empty()) return;
  reachable_.assign(static_cast<std::size_t>(inputs.keys_length()), 1);
  for (const std::int32_t key : unseen) reachable_[static_cast<std::size_t>(key)] = 0;
}

std::int32_t recorded_key(Index key, const AttentionInputs& inputs, std::string_view name) {
  if (key < 0 || key >= inputs.keys_length())
    throw ShapeError(std::string(name) + ": holds " + std::to_string(key) + "; there are " +
                     std::to_string(inputs.keys_length()) + " keys");
  return static_cast<std::int32_t>(key);
}

}  // namespace reticle
