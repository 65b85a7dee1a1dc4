#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <fmt/core.h>

#include <reticle/core/mask/causal.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/picture.hpp>
#include <reticle/core/registry.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

/// A tensor of standard normal values, which is enough for a picture of a content-based mask.
Tensor random_tensor(Index rows, Index head_dim, std::uint32_t which) {
  Tensor tensor(DType::f32, {1, 1, rows, head_dim});
  Philox random(0, 0, 0, which, 0);
  for (float& value : tensor.span<float>()) value = random.normal();
  return tensor;
}

/// Prints a note if the mask keeps every key: with fewer keys than a pattern keeps, the picture is a full triangle.
void note_what_is_kept(const Mask& mask, const ShowOptions& options) {
  if (options.input.empty() && mask.nnz() > 0 && mask.nnz() >= causal_nnz(Mask::full(mask.shape())))
    fmt::print(stderr,
               "reticle: note: every key is kept: the pattern keeps more than {}; try --keys 4096 or --input bundled\n",
               mask.shape().keys);
}

}  // namespace

int show(const ShowOptions& options) {
  constexpr Index kHeadDim = 16;
  constexpr Index kColumns = 96, kLines = 40, kPixels = 1024;
  const SparseAttention sparse = SparseAttention::from_file(options.config, options.plugins);
  if (!options.png.empty() && !options.png.ends_with(".png"))
    throw Error("--png " + options.png + ": expected a name that ends in .png");
  if (!options.png.empty()) require_writable(options.png, {options.config, options.input});
  if (!options.input.empty() && (options.queries || options.keys))
    throw Error("--queries and --keys: are of random tensors, and --input has its own; leave them out");
  if (options.input.empty() && options.layer != 0)
    throw Error("--layer " + std::to_string(options.layer) + ": random tensors have one layer; --input has more");

  SequenceState state;
  std::vector<Contribution> contributions;
  if (options.input.empty()) {
    constexpr Index kLength = 64;
    const Index count = options.queries.value_or(kLength);
    const Tensor queries = random_tensor(count, kHeadDim, 0),
                 keys = random_tensor(options.keys.value_or(kLength), kHeadDim, 1);
    AttentionInputs inputs;
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
    inputs.scaling = 1 / std::sqrt(static_cast<float>(kHeadDim));
    inputs.stage = count == 1 ? Stage::generation : Stage::prefill;
    contributions = sparse.contributions(inputs, state);
  } else {
    InputOptions input;
    input.file = options.input == "bundled" ? "" : options.input;
    const InputFile file(input);
    if (std::ranges::find(file.layers(), options.layer) == file.layers().end()) {
      std::string have;
      for (const int layer : file.layers()) have += (have.empty() ? "" : ", ") + std::to_string(layer);
      throw Error("--layer " + std::to_string(options.layer) + ": expected one of " + have);
    }
    contributions = sparse.contributions(file.inputs(options.layer), state);
  }
  const MaskShape& shape = contributions.at(0).mask.shape();
  if (options.head < 0 || options.head >= shape.heads)
    throw Error("--head " + std::to_string(options.head) + ": expected 0 to " + std::to_string(shape.heads - 1));
  Mask mask = contributions.at(0).mask;
  for (const Contribution& each : contributions) mask = merge(mask, each.mask);
  if (options.png.empty()) {
    fmt::print("{}", to_text(picture(mask, 0, options.head, kColumns, kLines)));
    fmt::print("{}; queries downwards, keys to the right\n", describe(mask));
    note_what_is_kept(mask, options);
    return 0;
  }
  std::vector<std::string> types;
  std::vector<Mask> masks;
  for (const Contribution& each : contributions) {
    types.push_back(each.type);
    masks.push_back(each.mask);
  }
  const std::vector<Color> colors = masker_colors(types);
  const Color ground = options.dark ? Color{0x0D, 0x11, 0x17} : Color{0xFF, 0xFF, 0xFF};
  const ColorPicture cells = overlay(masks, colors, 0, options.head, kPixels, kPixels, ground);
  // Small masks get several pixels per position.
  const Index scale = std::max<Index>(1, kPixels / std::max<Index>(1, std::max(cells.width, cells.height)) / 2);
  std::vector<unsigned char> rgb;
  rgb.reserve(cells.cells.size() * static_cast<std::size_t>(3 * scale * scale));
  for (Index y = 0; y < cells.height * scale; ++y) {
    for (Index x = 0; x < cells.width * scale; ++x) {
      const Color& cell = cells.cells[static_cast<std::size_t>(y / scale * cells.width + x / scale)];
      rgb.insert(rgb.end(), {cell.red, cell.green, cell.blue});
    }
  }
  write_png(options.png, static_cast<int>(cells.width * scale), static_cast<int>(cells.height * scale), rgb);
  fmt::print("{}: {}\n", options.png, describe(mask));
  for (std::size_t i = 0; i < types.size(); ++i) {
    const double share =
        mask.nnz() == 0 ? 0 : 100.0 * static_cast<double>(masks[i].nnz()) / static_cast<double>(mask.nnz());
    fmt::print("  #{:02x}{:02x}{:02x}  {:.1f} % of it chosen first by {}\n", colors[i].red, colors[i].green,
               colors[i].blue, share, types[i]);
  }
  return 0;
}

}  // namespace reticle::tools
