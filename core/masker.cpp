#include <reticle/core/masker.hpp>

namespace reticle {

Masker::~Masker() = default;

}  // namespace reticle
