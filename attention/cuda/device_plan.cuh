// Plans in device memory, for masks on the host or on the device. For .cu files.
#pragma once

#include <reticle/attention/cuda/block_plan.hpp>
#include <reticle/attention/cuda/plan_block.hpp>
#include <reticle/attention/cuda/planned_inputs.cuh>
#include <reticle/attention/pattern.hpp>
#include <reticle/core/base/context.hpp>

namespace reticle::cuda {

/// Whether to use tiles for such inputs, provided the mask can be stored in them. Tiles of few rows waste the tensor
/// cores, and read no fewer bytes than lists.
inline bool tiles_serve(const PlannedInputs& inputs) {
  constexpr Index kFewRows = 16;
  return inputs.dtype != DType::f32 && inputs.head_dim < 256 &&
         inputs.queries * (inputs.heads / inputs.kv_heads) >= kFewRows;
}
/// The same for a pattern that is on the device.
bool tiles_serve(const PlannedInputs& inputs, const Pattern& pattern);

/// Tiles and their blocks of keys in device memory.
class DeviceTiles {
 public:
  DeviceTiles() = default;
  /// Copies a plan from the host.
  DeviceTiles(const BlockPlan& plan, const Tiling& tiling, Stream stream);
  /// Plans on the device: one launch (two if lists are turned into bits first), no waiting. ShapeError unless the
  /// pattern fits the inputs; DeviceError when the plan is too large.
  DeviceTiles(const Pattern& pattern, const PlannedInputs& inputs, int tile_rows, Stream stream);

  int count() const { return count_; }
  int rows() const { return tiling_.tile_rows; }
  const Tiling& tiling() const { return tiling_; }
  TileLists lists() const {
    return {tiles_.as<Tile>(), blocks_.as<KeyBlock>(), bits_.as<std::uint64_t>(), weights_.as<RowWeights>(), words_,
            heads_share_};
  }
  /// Capacity in entries (tile, block of keys).
  std::size_t room() const { return blocks_.bytes() / sizeof(KeyBlock); }
  std::size_t bytes() const { return tiles_.bytes() + blocks_.bytes() + bits_.bytes() + weights_.bytes(); }

 private:
  Tiling tiling_;
  int count_ = 0, words_ = kTileRowCount;
  bool heads_share_ = false;
  Buffer tiles_, blocks_, bits_, weights_;
};

/// Tiles of kTileRowCount rows, and for each block of keys (batch, KV head, block) the tiles that attend to it.
struct DeviceTilesBothWays {
  DeviceTiles by_row;
  Buffer starts, tiles_of_keys;

  DeviceTilesBothWays() = default;
  /// Copies a plan of tiles of kTileRowCount rows, for a mask of this shape, from the host.
  DeviceTilesBothWays(const BlockPlan& plan, const MaskShape& shape, const PlannedInputs& inputs, Stream stream);
  /// Plans on the device as DeviceTiles does, with two more launches and a scan.
  DeviceTilesBothWays(const Pattern& pattern, const PlannedInputs& inputs, Stream stream);
};

/// Lists of keys, all with the same capacity; for keys that form one interval, only its begin and count.
struct DeviceLists {
  int sharing = 1;  // neighbouring heads that share a list
  Index list_size = 0;
  Buffer indices, p, counts, begins;

  DeviceLists() = default;
  /// Made on the device: one launch, no waiting. ShapeError unless the pattern fits the inputs.
  DeviceLists(const Pattern& pattern, const PlannedInputs& inputs, Stream stream);
};

}  // namespace reticle::cuda
