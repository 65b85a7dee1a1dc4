// Masks are values that do not change, and are not mistaken for numbers.
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/mask.hpp>

namespace {

[[maybe_unused]] void mistakes() {
  const reticle::Mask mask = reticle::Mask::full({1, 1, 2, 3});
#if defined(A_MASK_PLUS_A_NUMBER)
  // expected: no match
  (void)(mask + 1);
#elif defined(A_MASK_OF_NO_SHAPE)
  // expected: no matching function
  (void)reticle::Mask::full();
#elif defined(A_MASK_IS_NOT_A_CONDITION)
  // expected: could not convert
  if (mask) return;
#elif defined(THE_REPRESENTATION_IS_READ_ONLY)
  // expected: discards qualifiers
  auto& representation = const_cast<reticle::Mask&>(mask).representation();
  std::get<reticle::Csr>(representation).indices = {};
#endif
}

}  // namespace
