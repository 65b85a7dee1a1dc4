#include <algorithm>
#include <cstring>

#include <reticle/core/base/random.hpp>
#include <reticle/core/ops/lsh.hpp>

namespace reticle {

namespace {

/// Codes of one machine word are compared without branches, so that compilers do many at once.
template <class Code>
Index equal_codes(const std::uint8_t* a, const std::uint8_t* b, Index tables) {
  std::uint32_t found = 0;
  for (Index table = 0; table < tables; ++table) {
    Code left, right;
    std::memcpy(&left, a + table * Index{sizeof(Code)}, sizeof(Code));
    std::memcpy(&right, b + table * Index{sizeof(Code)}, sizeof(Code));
    found += left == right ? 1u : 0u;
  }
  return found;
}

}  // namespace

bool collide(const std::uint8_t* a, const std::uint8_t* b, Index tables, Index code_bytes, Index least) {
  if (code_bytes == 1) return equal_codes<std::uint8_t>(a, b, tables) >= least;
  if (code_bytes == 2) return equal_codes<std::uint16_t>(a, b, tables) >= least;
  Index found = 0;
  for (Index table = 0; table < tables; ++table, a += code_bytes, b += code_bytes) {
    if (std::equal(a, a + code_bytes, b) && ++found == least) return true;
  }
  return false;
}

std::vector<float> LshRecipe::projections(Index head_dim, int layer) const {
  std::vector<float> vectors(static_cast<std::size_t>(tables * bits * width(head_dim)));
  Philox random(seed, static_cast<std::uint32_t>(layer), 0, 0, 0);
  for (float& x : vectors) x = random.normal();
  return vectors;
}

}  // namespace reticle
