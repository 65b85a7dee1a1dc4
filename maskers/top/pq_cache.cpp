// Keeps the keys of the highest scores after product quantisation of the keys. PQCache (Zhang et al. 2024);
// sparse-attention-hub's PQCache, with seeded clustering, codes of the final centroids, and forbidden keys left out.
#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/product_quantiser.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle::maskers {

struct PqCacheConfig {
  Size heavy_size = 0.1;
  Index pq_group_factor = 8;
  Index pq_bits = 6;
  Index kmeans_iter = 10;
  Index init_offset = 0;
  PqMetric metric = PqMetric::euclidean;
  std::uint64_t seed = 0;

  static constexpr const char* docs[] = {"keys added per query, beyond those already chosen",
                                         "parts that a key is cut into",
                                         "bits per part, 1 to 16: 2^pq_bits centroids",
                                         "most iterations of k-means, at the first keys of a sequence",
                                         "keys at the start that are neither clustered nor candidates",
                                         "measure of nearness in clustering: euclidean distance or inner product (ip)",
                                         "random seed of the first centroids"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(pq_group_factor > 0 && pq_group_factor <= 1024, "pq_group_factor", "must be in [1, 1024]");
    require(pq_bits > 0 && pq_bits <= 16, "pq_bits", "must be in [1, 16]");
    require(kmeans_iter > 0 && kmeans_iter <= 4096, "kmeans_iter", "must be in [1, 4096]");
    require(init_offset >= 0, "init_offset", "must be >= 0");
  }
};

/// Codebooks of the first keys and codes of all keys seen, per (batch, KV head).
struct PqCacheState {
  std::vector<ProductQuantiser> books;
  std::vector<std::vector<std::uint16_t>> codes;  // (keys beyond init_offset, parts)
  SeenKeys keys;
  Index seen = 0;         // of those keys
  Index trained = 0;      // keys that the codebooks were made of
  Index first_query = 0;  // of the call that they were made in: cut before it, there was none
  Index train_on = 0;     // keys to make them of again; 0: all there are

  void truncate(Index count) {
    keys.truncate(count);
    if (count < trained) {
      books.clear();
      codes.clear();
      train_on = count > first_query ? count : 0;
      trained = seen = 0;
    }
    seen = std::min(seen, count);  // at most: keys before init_offset have no codes, and coding again changes nothing
  }
  void select(std::span<const Index> rows) {
    select_rows(books, rows, keys.batch());
    select_rows(codes, rows, keys.batch());
    keys.select(rows);
  }
};

class PqCache final : public Masker {
 public:
  explicit PqCache(const PqCacheConfig& config)
      : config_(config), recipe_{config.pq_group_factor, Index{1} << config.pq_bits,
                                 config.kmeans_iter,     config.init_offset,
                                 config.metric,          config.seed} {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& layer_state,
              const Context& context) const override {
    PqCacheState& state = layer_state.get<PqCacheState>(*this);
    update(inputs, state, context);
    if (state.seen == 0) return Mask::empty(inputs.shape());
    const Index k = config_.heavy_size.resolve(inputs.keys_length());
    return select_by_score(
        inputs, previous,
        [&](std::span<const RowId> rows, float* scores) {
          for (const RowId row : rows) {
            score(inputs, state, row, scores);
            scores += inputs.keys_length();
          }
        },
        [&](std::span<const float> scores, Selection& selection) { top_k(scores, k, selection.indices); }, context);
  }

  std::vector<Rule> rules(Index keys, int) const override {
    Rule rule{Rule::Kind::quantised, config_.heavy_size.resolve(keys)};
    rule.quantiser = &recipe_;
    return {rule};
  }

 private:
  /// Clusters the first keys, encodes those beyond the ones seen. Recorded "centroids" (b, hkv, parts, count, width)
  /// F32 and "codes" (b, keys, hkv, parts) I64, extra tensors, replace ours.
  void update(const AttentionInputs& inputs, PqCacheState& state, const Context& context) const {
    const Index heads = inputs.batch() * inputs.kv_heads();
    const Index count = std::max<Index>(0, inputs.keys_length() - config_.init_offset);
    state.keys.continue_with(inputs);
    if (count == 0) return;
    const bool first = state.books.empty();
    if (first) {
      state.books.resize(static_cast<std::size_t>(heads));
      state.codes.resize(static_cast<std::size_t>(heads));
    }
    const std::optional<TensorView> centroids = inputs.extra("centroids"), codes = inputs.extra("codes");
    if (centroids && codes) check_recorded(*centroids, *codes, inputs, count);
    context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
      for (Index head = begin; head < end; ++head) {
        const Index batch = head / inputs.kv_heads(), kv_head = head % inputs.kv_heads();
        ProductQuantiser& book = state.books[static_cast<std::size_t>(head)];
        const TensorView keys = head_matrix(inputs.keys, batch, kv_head);
        if (first && centroids && codes) {
          book = ProductQuantiser(recorded_book(*centroids, batch, kv_head), inputs.head_dim());
        } else if (first) {
          const Index trained = state.train_on > config_.init_offset ? state.train_on : inputs.keys_length();
          book = recipe_.train(keys.slice(0, 0, trained), inputs.layer, head, ReachableKeys(inputs, batch, kv_head));
        }
        std::vector<std::uint16_t>& of_head = state.codes[static_cast<std::size_t>(head)];
        of_head.resize(static_cast<std::size_t>(count * book.parts()));
        std::vector<float> key(static_cast<std::size_t>(inputs.head_dim()));
        for (Index k = state.seen; k < count; ++k) {
          std::uint16_t* code = of_head.data() + k * book.parts();
          if (centroids && codes) {
            for (Index u = 0; u < book.parts(); ++u)
              code[u] = static_cast<std::uint16_t>(*codes->at<Index>(batch, k, kv_head, u));
            continue;
          }
          load_row(keys, config_.init_offset + k, 1, key);
          book.encode(key, {code, static_cast<std::size_t>(book.parts())});
        }
      }
    });
    if (first) state.first_query = inputs.position(0);
    if (first) state.trained = state.train_on > config_.init_offset ? state.train_on : inputs.keys_length();
    state.seen = count;
    state.keys.finish(inputs);
  }

  static void check_recorded(const TensorView& centroids, const TensorView& codes, const AttentionInputs& inputs,
                             Index count) {
    require_rank(centroids, 5, "centroids");
    require_rank(codes, 4, "codes");
    if (centroids.dtype != DType::f32 || codes.dtype != DType::i64 || centroids.size(0) != inputs.batch() ||
        centroids.size(1) != inputs.kv_heads() || codes.size(0) != inputs.batch() || codes.size(1) < count ||
        codes.size(2) != inputs.kv_heads() || codes.size(3) != centroids.size(2))
      throw ShapeError("centroids and codes: " + centroids.describe() + " and " + codes.describe() +
                       "; expected F32 (b, hkv, parts, count, width) and I64 (b, " + std::to_string(count) +
                       " keys, hkv, parts)");
    for (Index b = 0; b < codes.size(0); ++b) {
      for (Index k = 0; k < count; ++k) {
        for (Index h = 0; h < codes.size(2); ++h) {
          for (Index u = 0; u < codes.size(3); ++u) {
            const Index code = *codes.at<Index>(b, k, h, u);
            if (code < 0 || code >= centroids.size(3) || code > UINT16_MAX)
              throw ShapeError("codes: holds " + std::to_string(code) + "; there are " +
                               std::to_string(centroids.size(3)) + " centroids");
          }
        }
      }
    }
  }

  static TensorView recorded_book(const TensorView& centroids, Index batch, Index kv_head) {
    const TensorView of_head = centroids.slice(0, batch, batch + 1).slice(1, kv_head, kv_head + 1);
    TensorView book = of_head.permute({2, 3, 4, 0, 1});
    book.rank = 3;
    return book;
  }

  void score(const AttentionInputs& inputs, const PqCacheState& state, RowId row, float* scores) const {
    const auto head = static_cast<std::size_t>(row.batch * inputs.kv_heads() + inputs.kv_head(row.head));
    const ProductQuantiser& book = state.books[head];
    std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
    load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
    const std::vector<float> table = book.table(query);
    const std::uint16_t* code = state.codes[head].data();
    std::fill(scores, scores + config_.init_offset, -std::numeric_limits<float>::infinity());
    for (Index key = config_.init_offset; key < inputs.visible_keys(row.query); ++key) {
      float sum = 0;
      for (Index u = 0; u < book.parts(); ++u) sum += table[static_cast<std::size_t>(u * book.centroids() + *code++)];
      scores[key] = sum;
    }
    add_attention_mask(inputs, row, scores);
  }

  PqCacheConfig config_;
  PqRecipe recipe_;
};

RETICLE_REGISTER_MASKER(
    "pq_cache", PqCache, PqCacheConfig,
    {.summary = "Keeps the keys of the highest scores after product quantisation of the keys.",
     .source = "PQCache (Zhang et al. 2024); sparse-attention-hub (PQCache)",
     .rule = "the heavy_size keys of largest sum over parts of q_part . centroid(key_part), + "
             "attention_mask, among those not chosen yet and beyond init_offset",
     .cost = "k-means over the first keys, then O(queries * keys * parts) time; a decode step encodes new "
             "keys only; 2 bytes per part and key of state"});

}  // namespace reticle::maskers
