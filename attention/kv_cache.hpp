// The keys and values of one sequence, for every layer of a model.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <reticle/core/mask/mask.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {

/// How many of the newest keys are held as they were given beside codes, unless the caller says otherwise: as many as
/// transformers' QuantizedCache holds.
inline constexpr Index kRecentKeys = 128;

struct KvCacheShape {
  int layers = 1;
  Index kv_heads = 1, head_dim = 64, value_dim = 64;
  Index capacity = 4096;     // keys per layer
  DType dtype = DType::f32;  // of storage: F32, F16, BF16, Q8 or Q4
  Index recent = 0;  // of the newest keys, how many are also held as they were given, when the dtype is Q8 or Q4
};

/// Counters since construction: tokens of the sequence, except `evicted`, which counts keys over all layers.
struct KvCacheCounters {
  Index appended = 0, truncated = 0, evicted = 0;
  /// Prompt tokens looked up by `reuse`: those whose keys were in the cache, and those whose keys were not.
  Index hits = 0, misses = 0;
};

/// Allocated once, for `capacity` keys. A batch is a vector of caches: sequences of uneven lengths waste nothing.
/// Movable; to copy, call `fork`. Not thread-safe.
class RETICLE_API KvCache {
 public:
  /// ShapeError for sizes that are not positive or too large.
  explicit KvCache(const KvCacheShape& shape);

  const KvCacheShape& shape() const { return shape_; }
  /// Tokens of the sequence so far, including evicted ones: the position of the next token.
  Index length() const { return static_cast<Index>(tokens_.size()); }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  /// Keys that a layer holds.
  Index stored(int layer) const;
  /// The positions of those keys in the sequence, ascending.
  std::span<const Index> positions(int layer) const;

  /// Reserves space for tokens, whose keys `append` then adds layer by layer. ValueError, changing nothing, when a
  /// layer has too little space left; the message says how much there is and what to do.
  void extend(std::span<const std::int32_t> tokens);
  /// Adds the keys and values (n, kv_heads, d) F32 of the tokens of the last `extend`. ShapeError unless n is their
  /// number.
  void append(int layer, const TensorView& keys, const TensorView& values);
  /// Views (1, kv_heads, stored, d) of the cache's memory.
  TensorView keys(int layer) const;
  TensorView values(int layer) const;
  /// Views (1, kv_heads, n, d) F32 of the newest stored keys as they were given, at most shape().recent.
  TensorView recent_keys(int layer) const;
  TensorView recent_values(int layer) const;

  /// Drops the newest tokens, so that `length` remain. ShapeError when there are fewer.
  void truncate(Index length);
  /// Drops the keys of a layer that no row of `kept` (1, heads, queries, stored) attends to, and returns how many. For
  /// rules that never return to a key they have dropped. ShapeError when the mask has other extents.
  Index evict(int layer, const Mask& kept);
  /// Returns how many leading tokens of a prompt are in the cache, and drops the tokens after them. Counts hits and
  /// misses. A cache with evicted keys reuses nothing.
  Index reuse(std::span<const std::int32_t> prompt);
  void reset() { truncate(0); }
  /// An independent copy.
  KvCache fork() const;

  /// Bytes allocated, and the bytes of these that hold keys and values.
  Index bytes() const;
  Index bytes_used() const;
  const KvCacheCounters& counters() const { return counters_; }

 private:
  struct Layer {
    Tensor keys, values;  // (kv_heads, capacity, d)
    std::vector<Index> positions;
    Tensor recent_keys,
        recent_values;  // (kv_heads, 2 * recent, d), the rows [recent_begin, recent_begin + recent_count)
    Index recent_begin = 0, recent_count = 0;
  };
  const Layer& at(int layer) const;
  Layer& at(int layer) { return const_cast<Layer&>(std::as_const(*this).at(layer)); }
  Index bytes_per_key() const;
  Index bytes_per_recent_key() const;
  static TensorView stored_view(const Tensor& tensor, Index begin, Index end);
  void append_recent(Layer& layer, const TensorView& keys, const TensorView& values) const;

  KvCacheShape shape_;
  std::vector<Layer> layers_;
  std::vector<std::int32_t> tokens_;
  Index announced_ = 0;  // number of tokens in the last extend
  KvCacheCounters counters_;
};

}  // namespace reticle
