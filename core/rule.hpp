// What a masker chooses, said as data: core/ops/select_by_rules.hpp chooses by it on the CPU, core/cuda/choose.hpp
// where the tensors lie on a GPU.
#pragma once

#include <cstdint>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>
#include <reticle/core/config/size.hpp>

namespace reticle {

struct LearnedHash;
struct LshRecipe;
struct PqRecipe;

/// One step of choosing a row's keys among those that causality leaves, after the steps before it.
struct Rule {
  enum class Kind : std::uint8_t {
    sinks,      // the first `count` keys
    window,     // `count` keys, `dilation` apart, back from the row's own position
    top_k,      // the `count` keys of highest exact score that are not chosen yet
    top_p,      // the fewest of highest exact score whose mass over those not chosen yet exceeds `share`
    hashed,     // the `count` keys whose codes share the most bits with the query's that are not chosen yet
    quantised,  // ... of highest score once product quantisation has rounded them
    pages,      // whole pages of `page_size` keys, the `count` of highest upper bound of q.k, chosen before or not
    sample,     // round(share * n) of the n keys not chosen yet, at least one, p = drawn / n
    // As many of the n keys in [first, last) that are not chosen yet as adaptive_budget says (core/ops/statistics.hpp),
    // at least the `base` sample that it is estimated from, which is at least 2; p = drawn / n.
    adaptive,
    colliding,  // those not chosen yet whose codes collide with the query's (core/ops/lsh.hpp); p = how likely that is
  };

  Kind kind = Kind::sinks;
  Index count = 0, dilation = 1;
  double share = 0;
  Index page_size = 0;
  Index label_bits = 16;                    // of the bounds of `pages`; 16 keeps them exact
  bool by_group = false, own_page = false;  // `pages` for a KV head's queries alike; and always the query's own page
  Size base = 0;
  double epsilon = 0, quantile = 0;
  Index first = 0, last = 0;
  std::uint64_t seed = 0;  // of `sample` and `adaptive`
  // Of `hashed`, `quantised` and `colliding`; the masker's, and alive as long.
  const LearnedHash* hash = nullptr;
  const PqRecipe* quantiser = nullptr;
  const LshRecipe* lsh = nullptr;

  /// Whether a GPU has a kernel for it; else it is followed on the CPU.
  bool has_kernel() const { return label_bits == 16 && !by_group && !own_page; }
  /// Whether something is kept of the keys between calls (KeptByRules).
  bool keeps() const { return kind == Kind::pages || codes(); }
  RETICLE_HD bool scores() const { return kind == Kind::top_k || kind == Kind::top_p || kind == Kind::adaptive; }
  RETICLE_HD bool codes() const { return kind == Kind::hashed || kind == Kind::quantised || kind == Kind::colliding; }
  /// Whether it goes by what is made of many keys: those that nobody may attend to are left out of it.
  RETICLE_HD bool summarises() const {
    return kind == Kind::pages || kind == Kind::quantised || kind == Kind::colliding;
  }
  RETICLE_HD bool weighs() const { return kind == Kind::sample || kind == Kind::adaptive || kind == Kind::colliding; }
};

}  // namespace reticle
