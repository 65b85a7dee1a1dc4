// Keeps the keys of the highest scores after product quantisation of the keys. PQCache (Zhang et al. 2024);
// sparse-attention-hub's PQCache, with seeded clustering, codes of the final centroids, and forbidden keys left out.
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/product_quantiser.hpp>

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

class PqCache final : public Masker {
 public:
  explicit PqCache(const PqCacheConfig& config)
      : heavy_size_(config.heavy_size), recipe_{config.pq_group_factor, Index{1} << config.pq_bits,
                                                config.kmeans_iter,     config.init_offset,
                                                config.metric,          config.seed} {}

  std::vector<Rule> rules(Index keys, int) const override {
    Rule rule{Rule::Kind::quantised, heavy_size_.resolve(keys)};
    rule.quantiser = &recipe_;
    return {rule};
  }

 private:
  Size heavy_size_;
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
