// The keys that a tile's rows share, block by block, as the tile kernels read them. Internal to the executor and its
// gradients.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/tile_kernel.hpp>

namespace reticle {

/// Numbers and attended bits of shared keys, in steps.
class SharedKeys {
 public:
  /// Some of the keys that a tile's rows share.
  struct Step {
    static constexpr Index kMost = 256;
    Index first = 0, count = 0;  // the first one's number among all of them
    bool partial = false;        // whether some row attends to not all of them
    std::array<std::int32_t, kMost> keys;
    const std::uint64_t* attended = nullptr;  // per key, bit r: row r attends; where the plan has them, or `joined`
    std::array<std::uint64_t, kMost> joined;

    Step() = default;
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
  };

  /// `rows`: where the keys lie, in place of their numbers; keys that no row of the tile attends to may have been
  /// evicted.
  explicit SharedKeys(const TilePlan& plan, const KeyRows& rows = {}) : plan_(&plan), rows_(rows) {}
  /// Reads the next keys, at most `size`; false when there are none left.
  bool read(Index size, Step& step);

 private:
  bool read_numbers(Index size, Step& step);

  const TilePlan* plan_;
  KeyRows rows_;
  std::size_t segment_ = 0;
  std::int32_t offset_ = 0;
  Index read_ = 0;
};

/// The additive mask's rows of a tile, where there is one.
using TileBias = std::array<std::optional<AttentionMaskRow>, kTileRows>;

/// Reads a tile's shared keys and values as floats or pairs of bfloat16, where they lie if they lie as kernels read
/// them, with what is special to each row. Buffers are made once and serve many tiles.
class TileBlocks {
 public:
  TileBlocks(const std::optional<float>& soft_cap, bool in_pairs) : soft_cap_(soft_cap), in_pairs_(in_pairs) {}
  /// Starts a tile. What is given must outlive its reading.
  void start(const TilePlan& plan, Index rows, const TensorView& keys, const TensorView& values, const TileBias& bias,
             const KeyRows& key_rows = {});
  /// The next block, at most kTileKeys keys; false when there are none left.
  bool read(TileBlock& block);
  /// The numbers of the block's keys.
  std::span<const std::int32_t> keys() const { return {step_.keys.data(), static_cast<std::size_t>(step_.count)}; }

 private:
  /// Whether the block's keys are neighbours.
  bool is_run() const;
  std::pair<const float*, Index> as_floats(const TensorView& matrix, std::vector<float>& packed) const;
  void read_pairs(TileBlock& block);

  std::optional<float> soft_cap_;
  bool in_pairs_;
  const TilePlan* plan_ = nullptr;
  const TensorView *keys_ = nullptr, *values_ = nullptr;
  const TileBias* bias_ = nullptr;
  Index rows_ = 0;
  std::optional<SharedKeys> reader_;
  SharedKeys::Step step_;
  std::vector<float> packed_keys_, packed_values_, inverse_p_, biases_;
  std::vector<BFloat16> gathered_keys_;
  std::vector<Bf16Pair> value_pairs_;
};

}  // namespace reticle
