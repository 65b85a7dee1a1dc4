// The inputs of attention, as maskers and the executor see them.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/mask/run.hpp>
#include <reticle/core/mask/shape.hpp>
#include <reticle/core/tensor/safetensors.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

enum class Stage : std::uint8_t { prefill, generation };

/// The keys that a cache still holds after it evicted others, as b * hkv lists, one per sequence and KV head. List
/// batch * hkv + head is rows [begin, end) of that head's keys and values; the other rows belong to other lists, or to
/// none.
struct StoredKeys {
  std::span<const std::int32_t> positions;  // (sk) position of each row in its sequence, ascending in a list
  std::span<const Index> begin, end;        // (b * hkv) the rows of each list
  Index length = 0;                         // keys of a sequence, evicted ones included
};

/// Tensors of one attention layer. Query head h reads KV head h / (hq / hkv); the last query is aligned with the last
/// key.
struct RETICLE_API AttentionInputs {
  TensorView queries;  // (b, hq, sq, d), F32, F16 or BF16
  TensorView keys;     // (b, hkv, sk, d); on the CPU also Q8 or Q4
  TensorView values;   // (b, hkv, sk, dv); likewise
  /// The last n keys and values as they were before they were quantised, F32, F16 or BF16: (b, hkv, n, d) and (b, hkv,
  /// n, dv). Attention reads them instead; maskers read the codes of all keys.
  std::optional<TensorView> recent_keys, recent_values;
  /// Added to the scores; broadcastable to (b, hq, sq, sk). Entries at or below half the dtype's lowest value (so also
  /// -inf) forbid a key.
  std::optional<TensorView> attention_mask;
  float scaling = 1;
  /// Keys after a query's own position are forbidden.
  bool causal = false;
  int layer = 0;
  Stage stage = Stage::prefill;
  /// Further tensors that a masker may ask for by name, e.g. an indexer's queries or recorded draws.
  std::span<const NamedTensor> extras;
  /// Per query head, whether a masker's choice for it is used; empty: all are. Maskers may skip the other heads.
  std::span<const std::uint8_t> wanted_heads;
  /// The positions of the keys after others were evicted; without it key i is at position i. Maskers, masks and
  /// causality count positions of the sequence. Only for generation, on the CPU, without an attention mask.
  std::optional<StoredKeys> stored;

  /// ShapeError when the tensors do not fit together, DeviceError when they lie on different devices; the message names
  /// them.
  void validate() const;
  /// The same checks, and DeviceError unless the tensors lie on a device of this kind, where the caller reads them.
  void validate_on(Device::Kind device) const;

  Index batch() const { return queries.size(0); }
  Index heads() const { return queries.size(1); }
  Index kv_heads() const { return keys.size(1); }
  Index queries_length() const { return queries.size(2); }
  Index keys_length() const { return stored ? stored->length : keys.size(2); }
  Index head_dim() const { return queries.size(3); }
  /// Query heads per KV head.
  Index group() const { return kv_heads() == 0 ? 0 : heads() / kv_heads(); }
  Index kv_head(Index head) const { return head * kv_heads() / heads(); }
  bool wants(Index head) const { return wanted_heads.empty() || wanted_heads[static_cast<std::size_t>(head)] != 0; }
  /// The position of a query among the keys; negative for the first queries if there are more queries than keys.
  Index position(Index query) const { return keys_length() - queries_length() + query; }
  /// The number n of keys [0, n) that causality leaves to a query.
  Index visible_keys(Index query) const;
  /// Queries [from, to) and the keys up to the last one's position: the inputs of a decode step or of a chunk of a
  /// prompt. Extras are passed on unchanged. ShapeError when there are no such queries.
  AttentionInputs rows(Index from, Index to) const;
  MaskShape shape() const { return {batch(), heads(), queries_length(), keys_length()}; }
  /// The shape of a mask for one query that sees all keys.
  MaskShape one_query() const { return {batch(), heads(), 1, keys_length()}; }
  std::optional<TensorView> extra(std::string_view name) const;

 private:
  void validate_recent() const;
  void validate_stored() const;
};

/// Maps positions of one sequence and KV head to rows of its keys. The data behind inputs.stored must outlive it.
class RETICLE_API KeyRows {
 public:
  KeyRows() = default;  // key i lies in row i
  KeyRows(const AttentionInputs& inputs, Index batch, Index kv_head);
  /// Whether rows must be looked up because keys were evicted; otherwise row i holds key i.
  bool moved() const { return moved_; }
  /// A row that holds a key.
  std::int32_t any() const { return first_; }
  /// The row of a position; -1 if its key was evicted.
  std::int32_t find(std::int32_t position) const;
  /// The rows of ascending positions; `rows` may alias `positions`. Linear when the positions are dense. An evicted key
  /// gets `missing`; without `missing` it is a ValueError.
  void find(std::span<const std::int32_t> positions, std::int32_t* rows,
            std::optional<std::int32_t> missing = std::nullopt) const;

 private:
  bool moved_ = false;
  std::span<const std::int32_t> positions_;
  std::int32_t first_ = 0;  // row of positions_[0]
};

/// Tracks how many keys of a batch's sequences a masker has read. The masker's state is laid out by the extents of the
/// first call, so calls with other extents are refused before anything is read. Calls in which the last key that was
/// read has changed are refused too (beams that were reordered, a cache that was replaced).
class RETICLE_API SeenKeys {
 public:
  /// Keys read so far: new ones are [count(), inputs.keys_length()).
  Index count() const { return count_; }
  Index batch() const { return batch_; }
  /// ShapeError unless the inputs have the extents of the first call and begin with the keys that were read.
  void continue_with(const AttentionInputs& inputs);
  /// The same check, after the first call.
  void require_continued(const AttentionInputs& inputs) const;
  /// Records that all keys of the inputs have been read.
  void finish(const AttentionInputs& inputs);
  /// Forgets keys from position `keys` on, which are to be read again.
  void truncate(Index keys);
  /// Sequence i becomes what sequence rows[i] was. ShapeError when there is no such sequence.
  void select(std::span<const Index> rows);

 private:
  bool begun_ = false;
  Index batch_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, count_ = 0;
  std::vector<std::uint64_t> last_;  // per sequence: a few bytes of the last key read; empty after truncate
};

/// Selects the lists of the sequences in `rows`; `lists` is ordered by (batch, i), with equally many lists per
/// sequence. State that is stored in such lists follows SequenceState::select by it. Empty `lists` stay empty.
/// ShapeError when there is no such sequence.
template <class T>
void select_rows(std::vector<T>& lists, std::span<const Index> rows, Index batch) {
  if (lists.empty()) return;
  const Index per_sequence = static_cast<Index>(lists.size()) / batch;
  std::vector<T> selected;
  selected.reserve(rows.size() * static_cast<std::size_t>(per_sequence));
  for (const Index row : rows) {
    if (row >= batch)
      throw ShapeError("select: row " + std::to_string(row) + "; there are " + std::to_string(batch) + " sequences");
    const auto first = lists.begin() + row * per_sequence;
    selected.insert(selected.end(), first, first + per_sequence);
  }
  lists = std::move(selected);
}

/// The (n, width) matrix of one head of a (b, h, n, width) tensor; no copy.
RETICLE_API TensorView head_matrix(const TensorView& tensor, Index batch, Index head);
/// One row of a matrix as float, multiplied by `factor`.
RETICLE_API void load_row(const TensorView& matrix, Index row, float factor, std::span<float> to);

/// One row of an additive attention mask, broadcast as needed.
class RETICLE_API AttentionMaskRow {
 public:
  AttentionMaskRow(const TensorView& attention_mask, RowId row);
  /// The bias of a key; -infinity when it is forbidden.
  float operator()(Index key) const;

 private:
  TensorView row_;
  Index stride_;
  float forbidden_;
};

/// Adds the attention mask's row to scores[0, keys), and sets the scores of keys that causality forbids to -infinity.
RETICLE_API void add_attention_mask(const AttentionInputs& inputs, RowId row, float* scores);

/// The keys that the attention mask forbids to a row, as ascending runs; none without an attention mask.
RETICLE_API std::vector<Run> forbidden_keys(const AttentionInputs& inputs, RowId row);

/// The keys that the attention mask allows to at least one query of a KV head's query heads. The contents of the other
/// keys must not influence anything, so whatever summarises many keys (bounds, means, codebooks) skips them. O(keys)
/// for a mask of padding, at most O(queries * keys) for others.
class RETICLE_API ReachableKeys {
 public:
  ReachableKeys(const AttentionInputs& inputs, Index batch, Index kv_head);
  bool all() const { return reachable_.empty(); }
  bool operator()(Index key) const { return all() || reachable_[static_cast<std::size_t>(key)] != 0; }

 private:
  std::vector<std::uint8_t> reachable_;  // by key; empty: all are reachable
};

/// Checks a recorded key's index; ShapeError, naming the tensor, when there is no such key.
RETICLE_API std::int32_t recorded_key(Index key, const AttentionInputs& inputs, std::string_view name);

}  // namespace reticle
