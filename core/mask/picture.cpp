#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/mask/picture.hpp>

namespace reticle {

Picture picture(const Mask& mask, Index batch, Index head, Index width, Index height) {
  const MaskShape& shape = mask.shape();
  if (batch < 0 || batch >= shape.batch || head < 0 || head >= shape.heads)
    throw ShapeError("picture: mask " + shape.describe() + " has no head (" + std::to_string(batch) + ", " +
                     std::to_string(head) + ")");
  if (width < 1 || height < 1)
    throw ShapeError("picture: " + std::to_string(width) + " x " + std::to_string(height) +
                     " cells; expected at least one of each");
  Picture result{std::clamp<Index>(width, 0, shape.keys), std::clamp<Index>(height, 0, shape.queries), {}};
  result.cells.resize(static_cast<std::size_t>(result.width * result.height));
  if (result.cells.empty()) return result;
  // Cell c holds the positions [edge(c), edge(c + 1)).
  const auto edge = [](Index cell, Index cells, Index extent) { return cell * extent / cells; };
  std::vector<Run> runs;
  std::vector<double> mass(static_cast<std::size_t>(result.width));
  for (Index y = 0; y < result.height; ++y) {
    std::fill(mass.begin(), mass.end(), 0.0);
    const Index first = edge(y, result.height, shape.queries), last = edge(y + 1, result.height, shape.queries);
    for (Index query = first; query < last; ++query) {
      runs.clear();
      mask.row({batch, head, query}, runs);
      for (const Run& run : runs) {
        for (Index x = run.begin * result.width / shape.keys; x < result.width; ++x) {
          const Index from = std::max<Index>(run.begin, edge(x, result.width, shape.keys));
          const Index to = std::min<Index>(run.end, edge(x + 1, result.width, shape.keys));
          if (from >= run.end) break;
          if (from < to)
            mass[static_cast<std::size_t>(x)] += static_cast<double>(run.p) * static_cast<double>(to - from);
        }
      }
    }
    for (Index x = 0; x < result.width; ++x) {
      const Index columns = edge(x + 1, result.width, shape.keys) - edge(x, result.width, shape.keys);
      result.cells[static_cast<std::size_t>(y * result.width + x)] =
          static_cast<float>(mass[static_cast<std::size_t>(x)] / static_cast<double>(columns * (last - first)));
    }
  }
  return result;
}

ColorPicture overlay(std::span<const Mask> masks, std::span<const Color> colors, Index batch, Index head, Index width,
                     Index height, Color ground) {
  if (masks.empty() || masks.size() != colors.size())
    throw ShapeError("overlay: " + std::to_string(masks.size()) + " masks and " + std::to_string(colors.size()) +
                     " colors; expected one color for each of one or more masks");
  ColorPicture result;
  std::vector<Picture> layers;
  for (const Mask& mask : masks) {
    if (!mask.shape().same_logical(masks[0].shape()))
      throw ShapeError("overlay: masks of shapes " + masks[0].shape().describe() + " and " + mask.shape().describe() +
                       "; expected one shape");
    layers.push_back(picture(mask, batch, head, width, height));
  }
  result.width = layers[0].width;
  result.height = layers[0].height;
  result.cells.resize(layers[0].cells.size());
  for (std::size_t cell = 0; cell < result.cells.size(); ++cell) {
    double red = 0, green = 0, blue = 0, kept = 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto share = static_cast<double>(layers[i].cells[cell]);
      red += share * colors[i].red;
      green += share * colors[i].green;
      blue += share * colors[i].blue;
      kept += share;
    }
    const double ink = std::sqrt(std::min(1.0, kept));
    const auto mixed = [&](double sum, std::uint8_t ground_channel) {
      const double value = (1 - ink) * ground_channel + (kept > 0 ? ink * sum / kept : 0);
      return static_cast<std::uint8_t>(std::lround(std::clamp(value, 0.0, 255.0)));
    };
    result.cells[cell] = {mixed(red, ground.red), mixed(green, ground.green), mixed(blue, ground.blue)};
  }
  return result;
}

std::string to_text(const Picture& picture) {
  constexpr const char* kShades[] = {"·", "░", "▒", "▓", "█"};
  std::string text;
  for (Index y = 0; y < picture.height; ++y) {
    for (Index x = 0; x < picture.width; ++x) {
      const float cell = picture.cells[static_cast<std::size_t>(y * picture.width + x)];
      // Anything attended shows; only cells that are attended throughout are solid.
      const int shade = cell <= 0 ? 0 : cell >= 1 ? 4 : 1 + static_cast<int>(cell * 3);
      text += kShades[std::min(shade, 4)];
    }
    text += '\n';
  }
  return text;
}

}  // namespace reticle
