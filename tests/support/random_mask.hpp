// Random masks in every representation and with every sharing of dimensions.
#pragma once

#include <random>
#include <string>
#include <vector>

#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle::testing {

struct NamedMask {
  std::string name;
  Mask mask;
};

inline constexpr MaskKind kStoredKinds[] = {MaskKind::bits, MaskKind::dense, MaskKind::csr, MaskKind::runs};

/// Random p per stored position: 0 with probability 1 - density, else 1, or (if weighted) a multiple of 1/8, so that
/// sums are exact and merge is associative to the bit. Correlated along keys, so that runs occur.
inline std::vector<float> random_p(const MaskShape& shape, double density, bool weighted, std::mt19937& random) {
  std::vector<float> p(static_cast<std::size_t>(shape.stored_rows() * shape.keys));
  std::uniform_real_distribution<double> uniform(0, 1);
  float last = 0;
  for (float& value : p) {
    if (uniform(random) < 0.5) {
      value = last;
      continue;
    }
    value = 0;
    if (uniform(random) < density) value = weighted ? static_cast<float>(1 + random() % 8) / 8 : 1.0f;
    last = value;
  }
  return p;
}

/// One mask per representation, sharing and (if requested) weighting, all with the same logical shape.
inline std::vector<NamedMask> random_masks(const MaskShape& logical, std::mt19937& random, bool with_weighted = true) {
  std::vector<NamedMask> masks{{"empty", Mask::empty(logical)}, {"full", Mask::full(logical)}};
  const MaskShape shapes[] = {logical.unshared(), logical.one_head(), logical.one_row()};
  const char* const sharing[] = {"", " one head", " one row"};
  for (std::size_t s = 0; s < 3; ++s) {
    for (const bool weighted : {false, true}) {
      if (weighted && !with_weighted) continue;
      for (const MaskKind kind : kStoredKinds) {
        if (weighted && kind == MaskKind::bits) continue;
        const double density = std::uniform_real_distribution<double>(0.05, 0.95)(random);
        const Mask mask = Mask::dense(shapes[s], random_p(shapes[s], density, weighted, random));
        // A mask that is empty, full or unweighted by chance cannot be stored in every form, and is tested as it is.
        const bool storable = mask.kind() != MaskKind::empty && mask.kind() != MaskKind::full;
        masks.push_back({std::string(name_of(kind)) + (weighted ? " weighted" : "") + sharing[s],
                         storable ? convert(mask, kind) : mask});
      }
    }
  }
  return masks;
}

}  // namespace reticle::testing
