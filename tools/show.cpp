#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <fmt/core.h>

#include <reticle/core/mask/picture.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

/// Standard normal values: enough for a picture of a content-based mask.
Tensor random_tensor(Index rows, Index head_dim, std::uint32_t which) {
  Tensor tensor(DType::f32, {1, 1, rows, head_dim});
  Philox random(0, 0, 0, which, 0);
  for (float& value : tensor.span<float>()) value = random.normal();
  return tensor;
}

}  // namespace

int show(const ShowOptions& options) {
  constexpr Index kHeadDim = 16;
  constexpr Index kColumns = 96, kLines = 40, kPixels = 1024;
  const SparseAttention sparse = SparseAttention::from_file(options.config, options.plugins);
  if (!options.png.empty()) require_writable(options.png);
  if (options.input.empty() && options.layer != 0)
    throw Error("--layer " + std::to_string(options.layer) + ": random tensors have one layer; --input has more");

  SequenceState state;
  Mask mask;
  if (options.input.empty()) {
    const Tensor queries = random_tensor(options.queries, kHeadDim, 0), keys = random_tensor(options.keys, kHeadDim, 1);
    AttentionInputs inputs;
    inputs.queries = queries.view();
    inputs.keys = inputs.values = keys.view();
    inputs.scaling = 1 / std::sqrt(static_cast<float>(kHeadDim));
    inputs.stage = options.queries == 1 ? Stage::generation : Stage::prefill;
    mask = sparse.mask(inputs, state);
  } else {
    InputOptions input;
    input.file = options.input == "bundled" ? "" : options.input;
    input.layers = std::to_string(options.layer);
    mask = sparse.mask(InputFile(input).inputs(options.layer), state);
  }
  if (options.png.empty()) {
    fmt::print("{}", to_text(picture(mask, 0, options.head, kColumns, kLines)));
    fmt::print("{}; queries downwards, keys to the right\n", describe(mask));
    return 0;
  }
  const Picture cells = picture(mask, 0, options.head, kPixels, kPixels);
  // Small masks are drawn with several pixels per position.
  const Index scale = std::max<Index>(1, kPixels / std::max<Index>(1, std::max(cells.width, cells.height)) / 2);
  std::vector<unsigned char> grey(static_cast<std::size_t>(cells.width * cells.height * scale * scale));
  for (Index y = 0; y < cells.height * scale; ++y) {
    for (Index x = 0; x < cells.width * scale; ++x) {
      const float cell = cells.cells[static_cast<std::size_t>(y / scale * cells.width + x / scale)];
      grey[static_cast<std::size_t>(y * cells.width * scale + x)] =
          static_cast<unsigned char>(std::lround(255 * (1 - std::sqrt(std::min(1.0f, cell)))));
    }
  }
  write_png(options.png, static_cast<int>(cells.width * scale), static_cast<int>(cells.height * scale), grey);
  fmt::print("{}: {}\n", options.png, describe(mask));
  return 0;
}

}  // namespace reticle::tools
