// Samples keys by locality-sensitive hashing: a key is kept if it shares all lsh_k sign bits with the query in one of
// lsh_l tables, and p is the probability of that, so that attention over the sample is an importance-weighted estimate.
// MagicPIG (Chen et al. 2024). The defaults are sparse-attention-hub's, with the simple asymmetric transform of
// Neyshabur and Srebro (2015) and the largest norm taken per sequence. The authors use min_collisions 2 and false for
// lift and center_query.
#include <cstdint>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/lsh.hpp>

namespace reticle::maskers {

enum class SignPacking : std::uint8_t { int64, float32 };

/// Bounds the memory per key, which stores one code per table.
constexpr Index kMaxTables = 4096;

struct MagicPigConfig {
  Index lsh_l = 75;
  Index lsh_k = 8;
  bool center = true;
  SignPacking packing = SignPacking::int64;
  std::uint64_t seed = 42;
  Index min_collisions = 1;
  bool lift = true;
  bool center_query = true;
  Index mean_skips_first = 0;
  Index mean_skips_last = 0;

  static constexpr const char* docs[] = {
      "number of hash tables",
      "sign bits per table, at most 64",
      "subtract the mean key, as the first keys of a sequence have it",
      "how sparse-attention-hub holds signs; bits are packed either way",
      "random seed of the projections, varied by layer",
      "tables, 1 or 2, that a key must share with the query",
      "lift keys by one dimension onto a sphere, so that the angle follows q.k; false: the angle with the key itself",
      "subtract the mean key from queries, too",
      "first keys that the mean leaves out: those that are always attended",
      "last keys, of the first call, that the mean leaves out"};
  void validate() const {
    require(lsh_l > 0 && lsh_l <= kMaxTables, "lsh_l", "must be in [1, 4096]");
    require(lsh_k > 0 && lsh_k <= 64, "lsh_k", "must be in [1, 64]");
    require(min_collisions == 1 || (min_collisions == 2 && lsh_l > 1), "min_collisions",
            "must be 1, or 2 with lsh_l > 1");
    require(mean_skips_first >= 0, "mean_skips_first", "must be >= 0");
    require(mean_skips_last >= 0, "mean_skips_last", "must be >= 0");
  }
};

class MagicPig final : public Masker {
 public:
  explicit MagicPig(const MagicPigConfig& config)
      : recipe_{config.lsh_l,           config.lsh_k,        config.min_collisions,
                config.center,          config.center_query, config.mean_skips_first,
                config.mean_skips_last, config.lift,         config.seed} {}

  bool samples() const override { return true; }
  std::vector<Rule> rules(Index, int) const override {
    Rule rule{Rule::Kind::colliding};
    rule.lsh = &recipe_;
    return {rule};
  }

 private:
  LshRecipe recipe_;
};

RETICLE_REGISTER_MASKER(
    "magic_pig", MagicPig, MagicPigConfig,
    {.summary = "Samples keys that collide with the query under locality-sensitive hashing.",
     .source = "MagicPIG (Chen et al. 2024); sparse-attention-hub (MagicPig)",
     .rule =
         "keys not chosen yet that share all lsh_k bits with the query in at least min_collisions of lsh_l tables; p "
         "is the probability of that, for one 1 - (1 - (1 - angle / pi)^lsh_k)^lsh_l",
     .cost = "O(queries * keys * lsh_l) time; a decode step hashes new keys only; lsh_l * ceil(lsh_k / 8) "
             "bytes per key of state"});

}  // namespace reticle::maskers
