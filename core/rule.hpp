// What a masker chooses, said as data: for executors that choose where the tensors lie, such as a GPU's.
#pragma once

#include <cstdint>

#include <reticle/core/base/types.hpp>

namespace reticle {

/// One step of choosing a row's keys among those that causality leaves, after the steps before it.
struct Rule {
  enum class Kind : std::uint8_t {
    sinks,   // the first `count` keys
    window,  // the last `count` keys up to the row's own position
    top_k,   // the `count` keys of highest exact score that are not chosen yet
    top_p,   // the fewest of highest exact score whose mass over those not chosen yet exceeds `share`
    pages,   // whole pages of `page_size` keys, the `count` of highest upper bound of q.k, chosen before or not
    sample,  // round(share * n) of the n keys not chosen yet, at least one, p = drawn / n
  };

  Kind kind = Kind::sinks;
  Index count = 0;
  double share = 0;
  Index page_size = 0;
  std::uint64_t seed = 0;  // of `sample`

  bool scores() const { return kind == Kind::top_k || kind == Kind::top_p; }
  bool samples() const { return kind == Kind::sample; }
};

}  // namespace reticle
