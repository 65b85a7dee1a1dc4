// What attention is computed from, as maskers and the executor see it.
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

/// The keys that a cache still holds after it evicted others, of b * hkv lists, one to each sequence and KV head. Rows
/// [begin, end) of a head's keys and values are list batch * hkv + head; the other rows belong to other lists, or to
/// none.
struct StoredKeys {
  std::span<const std::int32_t> positions;  // (sk) where each row stands in its sequence, ascending in a list
  std::span<const Index> begin, end;        // (b * hkv) rows of a list
  Index length = 0;                         // keys of a sequence, evicted ones included
};

/// Tensors of one attention layer. Query head h reads KV head h / (hq / hkv); the last query is aligned with the last
/// key.
struct RETICLE_API AttentionInputs {
  TensorView queries;  // (b, hq, sq, d), F32, F16 or BF16
  TensorView keys;     // (b, hkv, sk, d)
  TensorView values;   // (b, hkv, sk, dv)
  /// Added to the scores; broadcastable to (b, hq, sq, sk). Entries at or below half the dtype's lowest value (so also
  /// -inf) forbid a key.
  std::optional<TensorView> attention_mask;
  float scaling = 1;
  /// Keys after a query's own position are forbidden.
  bool causal = false;
  int layer = 0;
  Stage stage = Stage::prefill;
  /// Further tensors that a masker may ask for by name: an indexer's queries, recorded draws.
  std::span<const NamedTensor> extras;
  /// Per query head, whether a masker's choice for it is used; empty: all are. A masker may spare itself the others.
  std::span<const std::uint8_t> wanted_heads;
  /// Where the keys stand, when others were evicted; key i stands at i without it. Maskers, masks and causality count
  /// positions of the sequence. For generation, on the CPU, without an attention mask.
  std::optional<StoredKeys> stored;

  /// ShapeError when the tensors do not fit together, DeviceError when they lie on different devices; the message names
  /// them.
  void validate() const;
  /// The same, and DeviceError unless the tensors lie in the memory of such a device, where the caller reads them.
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
  /// Where a query stands among the keys; negative when there are more queries than keys.
  Index position(Index query) const { return keys_length() - queries_length() + query; }
  /// Keys [0, n) that causality leaves to a query.
  Index visible_keys(Index query) const;
  /// Queries [from, to) and the keys up to the last one's position: what a decode step or a chunk of a prompt sees.
  /// Extras are handed on as they are. ShapeError when there are no such queries.
  AttentionInputs rows(Index from, Index to) const;
  MaskShape shape() const { return {batch(), heads(), queries_length(), keys_length()}; }
  /// Of one query that sees all keys.
  MaskShape one_query() const { return {batch(), heads(), 1, keys_length()}; }
  std::optional<TensorView> extra(std::string_view name) const;

 private:
  void validate_stored() const;
};

/// Where the keys of one sequence and KV head lie, by their positions. What it is made from must outlive it.
class RETICLE_API KeyRows {
 public:
  KeyRows() = default;  // key i lies in row i
  KeyRows(const AttentionInputs& inputs, Index batch, Index kv_head);
  /// Whether row i holds something else than key i.
  bool moved() const { return moved_; }
  /// A row that holds a key.
  std::int32_t any() const { return first_; }
  /// -1: the key was evicted.
  std::int32_t find(std::int32_t position) const;
  /// Of ascending positions; `rows` may be where they are. Linear when they are dense. An evicted key gets `missing`,
  /// or ValueError without it.
  void find(std::span<const std::int32_t> positions, std::int32_t* rows,
            std::optional<std::int32_t> missing = std::nullopt) const;

 private:
  bool moved_ = false;
  std::span<const std::int32_t> positions_;
  std::int32_t first_ = 0;  // row of positions_[0]
};

/// How far a masker's state has read a batch's keys. What it keeps is laid out by these extents, so a call with others
/// is refused before anything is read by them; and so is one whose last key that was read is another (beams that were
/// reordered, a cache that was replaced).
class RETICLE_API SeenKeys {
 public:
  /// Keys read so far: new ones are [count(), inputs.keys_length()).
  Index count() const { return count_; }
  Index batch() const { return batch_; }
  /// ShapeError unless the inputs have the extents of the first call and begin with the keys that were read.
  void continue_with(const AttentionInputs& inputs);
  /// The same of what has begun.
  void require_continued(const AttentionInputs& inputs) const;
  /// All keys of the inputs have been read.
  void finish(const AttentionInputs& inputs);
  /// Keys from position `keys` on are to be read again.
  void truncate(Index keys);
  /// The batch becomes one of `rows` sequences. ShapeError when there is no such sequence.
  void select(std::span<const Index> rows);

 private:
  bool begun_ = false;
  Index batch_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, count_ = 0;
  std::vector<std::uint64_t> last_;  // of each sequence's last key that was read, a few bytes; none after truncate
};

/// Of lists by (batch, i), as many to each of `batch` sequences, those of the sequences in `rows`: what is kept by list
/// follows SequenceState::select. Nothing happens where nothing is kept yet. ShapeError when there is no such sequence.
template <class T>
void select_rows(std::vector<T>& lists, std::span<const Index> rows, Index batch) {
  if (lists.empty()) return;
  const Index of_batch = static_cast<Index>(lists.size()) / batch;
  std::vector<T> selected;
  selected.reserve(rows.size() * static_cast<std::size_t>(of_batch));
  for (const Index row : rows) {
    if (row >= batch)
      throw ShapeError("select: row " + std::to_string(row) + "; there are " + std::to_string(batch) + " sequences");
    const auto first = lists.begin() + row * of_batch;
    selected.insert(selected.end(), first, first + of_batch);
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

/// Adds the attention mask's row to scores[0, keys), and sets those beyond what causality leaves to -infinity.
RETICLE_API void add_attention_mask(const AttentionInputs& inputs, RowId row, float* scores);

/// The keys that the attention mask forbids to a row, as ascending runs; none without an attention mask.
RETICLE_API std::vector<Run> forbidden_keys(const AttentionInputs& inputs, RowId row);

/// Which keys some query of a KV head's query heads may attend to, by the attention mask. What the others hold must not
/// decide anything, so that whatever is made of many keys (bounds, means, codebooks) passes them over. O(keys) for a
/// mask of padding, at most O(queries * keys) for others.
class RETICLE_API ReachableKeys {
 public:
  ReachableKeys(const AttentionInputs& inputs, Index batch, Index kv_head);
  bool all() const { return reachable_.empty(); }
  bool operator()(Index key) const { return all() || reachable_[static_cast<std::size_t>(key)] != 0; }

 private:
  std::vector<std::uint8_t> reachable_;  // by key; empty: all are
};

/// A recorded key as an index; ShapeError, naming the tensor, when there is no such key.
RETICLE_API std::int32_t recorded_key(Index key, const AttentionInputs& inputs, std::string_view name);

}  // namespace reticle
