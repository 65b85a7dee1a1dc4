// A mask as a picture: one head, averaged into cells.
#pragma once

#include <cstdint>
#include <span>
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

struct Color {
  std::uint8_t red = 0, green = 0, blue = 0;
  friend bool operator==(const Color&, const Color&) = default;
};

struct ColorPicture {
  Index width = 0, height = 0;
  std::vector<Color> cells;
};

/// One head of several masks of one shape, each in its color, over the ground color. Where several masks attend in a
/// cell, their colors mix in proportion to each mask's mean p. Opacity is the square root of the total mean p, so that
/// single keys stay visible.
RETICLE_API ColorPicture overlay(std::span<const Mask> masks, std::span<const Color> colors, Index batch, Index head,
                                 Index width, Index height, Color ground = {255, 255, 255});

/// The picture as text for a terminal: queries downwards, keys to the right, darker means denser.
RETICLE_API std::string to_text(const Picture& picture);

}  // namespace reticle
