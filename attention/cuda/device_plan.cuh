// Plans in device memory, of masks of the host or of the device. For .cu files.
#pragma once

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
#include <reticle/attention/pattern.hpp>
#include <reticle/core/base/context.hpp>

namespace reticle::cuda {

/// Whether tiles serve such inputs, whose masks fit into them: one of few rows wastes the tensor cores, and reads no
/// less than lists do.
inline bool tiles_serve(const PlannedInputs& inputs) {
  constexpr Index kFewRows = 16;
  return inputs.dtype != DType::f32 && inputs.head_dim < 256 &&
         inputs.queries * (inputs.heads / inputs.kv_heads) >= kFewRows;
}
/// The same of a mask that is on the device already.
bool tiles_serve(const PlannedInputs& inputs, const Pattern& pattern);

/// Tiles and their blocks of keys.
class DeviceTiles {
 public:
  DeviceTiles() = default;
  /// Of a plan of the host, copied.
  DeviceTiles(const BlockPlan& plan, const Tiling& tiling, Stream stream);
  /// Made on the device: one launch (a second one to turn lists into bits), no waiting. ShapeError unless the pattern
  /// fits the inputs; DeviceError when the plan is too large.
  DeviceTiles(const Pattern& pattern, const PlannedInputs& inputs, int tile_rows, Stream stream);

  int count() const { return count_; }
  int rows() const { return tiling_.tile_rows; }
  const Tiling& tiling() const { return tiling_; }
  TileLists lists() const {
    return {tiles_.as<Tile>(), blocks_.as<KeyBlock>(), bits_.as<std::uint64_t>(), weights_.as<RowWeights>(), words_,
            heads_share_};
  }
  /// Most (tile, block of keys) that there can be.
  std::size_t room() const { return blocks_.bytes() / sizeof(KeyBlock); }
  std::size_t bytes() const { return tiles_.bytes() + blocks_.bytes() + bits_.bytes() + weights_.bytes(); }

 private:
  Tiling tiling_;
  int count_ = 0, words_ = kTileRowCount;
  bool heads_share_ = false;
  Buffer tiles_, blocks_, bits_, weights_;
};

/// Tiles of kTileRowCount rows, and what tiles attend to a block of keys, by (batch, KV head, block).
struct DeviceTilesBothWays {
  DeviceTiles by_row;
  Buffer starts, tiles_of_keys;

  DeviceTilesBothWays() = default;
  /// As DeviceTiles; of a plan of tiles of kTileRowCount rows, for a mask of this shape.
  DeviceTilesBothWays(const BlockPlan& plan, const MaskShape& shape, const PlannedInputs& inputs, Stream stream);
  /// Likewise; two launches and a scan more.
  DeviceTilesBothWays(const Pattern& pattern, const PlannedInputs& inputs, Stream stream);
};

/// Lists of keys, with as much room in every row, or only where they begin, if keys follow each other.
struct DeviceLists {
  int sharing = 1;  // neighbouring heads that have one list
  Index list_size = 0;
  Buffer indices, p, counts, begins;

  DeviceLists() = default;
  /// Made on the device: one launch, no waiting. ShapeError unless the pattern fits the inputs.
  DeviceLists(const Pattern& pattern, const PlannedInputs& inputs, Stream stream);
};

}  // namespace reticle::cuda
