// Selection steps as plain data: core/ops/select_by_rules.hpp executes them on the CPU, core/cuda/choose.hpp on a GPU,
// where the tensors lie.
#pragma once

#include <cstdint>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/config/size.hpp>

namespace reticle {

struct LearnedHash;
struct LshRecipe;
struct PqRecipe;

/// One step of selecting a row's keys, among those that causality leaves and after the steps before it.
struct Rule {
  enum class Kind : std::uint8_t {
    sinks,      // the first `count` keys
    window,     // `count` keys, `dilation` apart, ending at the row's position
    top_k,      // the `count` keys of highest exact score that are not chosen yet
    top_p,      // the fewest of highest exact score whose share of the mass not chosen yet exceeds `share`
    hashed,     // the `count` keys not chosen yet whose codes share the most bits with the query's
    quantised,  // the `count` keys not chosen yet with the highest scores after product quantisation
    pages,      // the `count` pages of `page_size` keys with the highest upper bounds of q.k, chosen before or not
    sample,     // round(share * n) of the n keys not chosen yet, at least one, p = drawn / n
    // As many of the n keys in [first, last) not chosen yet as adaptive_budget says (core/ops/statistics.hpp), but at
    // least the size of the `base` sample from which it is estimated, which is at least 2; p = drawn / n.
    adaptive,
    colliding,  // the keys not chosen yet whose codes collide with the query's (core/ops/lsh.hpp), p = P(collision)
  };

  Kind kind = Kind::sinks;
  Index count = 0, dilation = 1;
  double share = 0;
  Index page_size = 0;
  Index label_bits = 16;                    // bits of the bounds of `pages`; 16 keeps them exact
  bool by_group = false, own_page = false;  // `pages`: one choice per KV head; always the query's page
  Size base = 0;
  double epsilon = 0, quantile = 0;
  Index first = 0, last = 0;
  std::uint64_t masker = 0;  // Masker::id of whose rule it is: what is kept of keys is known by it; set by the pipeline
  std::uint64_t seed = 0;    // for `sample` and `adaptive`
  // For `hashed`, `quantised` and `colliding`. Borrowed from the masker; must not outlive it.
  const LearnedHash* hash = nullptr;
  const PqRecipe* quantiser = nullptr;
  const LshRecipe* lsh = nullptr;

  /// Whether a GPU has a kernel for it; otherwise the CPU executes it.
  bool has_kernel() const { return label_bits == 16 && !by_group && !own_page; }
  /// Whether it keeps state about the keys between calls (KeptByRules).
  bool keeps() const { return kind == Kind::pages || codes(); }
  RETICLE_HD bool scores() const { return kind == Kind::top_k || kind == Kind::top_p || kind == Kind::adaptive; }
  RETICLE_HD bool codes() const { return kind == Kind::hashed || kind == Kind::quantised || kind == Kind::colliding; }
  /// Whether it uses summaries of many keys, which must leave out keys that nobody may attend to.
  RETICLE_HD bool summarises() const {
    return kind == Kind::pages || kind == Kind::quantised || kind == Kind::colliding;
  }
  RETICLE_HD bool weighs() const { return kind == Kind::sample || kind == Kind::adaptive || kind == Kind::colliding; }
};

}  // namespace reticle
