// A mask as a picture: one head, averaged into cells.
#pragma once

#include <string>
#include <vector>

#include <reticle/core/mask/mask.hpp>

namespace reticle {

/// Row-major cells; a cell is the mean of p over its positions, in [0, 1].
struct Picture {
  Index width = 0, height = 0;
  std::vector<float> cells;
};

/// At most `width` x `height` cells, one per position when the mask is smaller. ShapeError when there is no such head.
RETICLE_API Picture picture(const Mask& mask, Index batch, Index head, Index width, Index height);
/// For a terminal: queries downwards, keys to the right, darker means denser.
RETICLE_API std::string to_text(const Picture& picture);

}  // namespace reticle
