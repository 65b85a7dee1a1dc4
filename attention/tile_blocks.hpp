// The keys that a tile's rows share, block by block, as the tile kernels read them. Internal to the executor and its
// gradients.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include <reticle/attention/tile_kernel.hpp>

namespace reticle {

/// Reads the numbers and attended bits of a tile's shared keys in steps.
class SharedKeys {
 public:
  /// The keys of one step.
  struct Step {
    static constexpr Index kMaxKeys = 256;
    Index first = 0, count = 0;  // `first`: index of the first key among all shared keys
    bool partial = false;        // whether some row does not attend to all of them
    std::array<std::int32_t, kMaxKeys> keys;
    const std::uint64_t* attended = nullptr;  // per key, bit r: row r attends; points into the plan or to `joined`
    std::array<std::uint64_t, kMaxKeys> joined;

    Step() = default;
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
  };

  /// `rows` maps key numbers to the rows of the cache that hold them; keys that no row of the tile attends to may have
  /// been evicted.
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

/// The rows of the attention mask for a tile's rows, where there is one.
using TileBias = std::array<std::optional<AttentionMaskRow>, kTileRows>;

/// Reads a tile's shared keys and values as floats or pairs of bfloat16, with each row's bits, p and bias. Data that
/// already has the kernels' layout is read in place. Buffers are allocated once and reused for many tiles.
class TileBlocks {
 public:
  TileBlocks(const std::optional<float>& soft_cap, Bf16Product product) : soft_cap_(soft_cap), product_(product) {}
  /// Starts a tile. The arguments must outlive its reading.
  void start(const TilePlan& plan, Index rows, const TensorView& keys, const TensorView& values, const TileBias& bias,
             const KeyRows& key_rows = {});
  /// The next block, at most kTileKeys keys; false when there are none left.
  bool read(TileBlock& block);
  /// The numbers of the block's keys.
  std::span<const std::int32_t> keys() const { return {step_.keys.data(), static_cast<std::size_t>(step_.count)}; }

 private:
  /// Whether the block's keys are consecutive.
  bool is_run() const;
  std::pair<const float*, Index> as_floats(const TensorView& matrix, std::vector<float>& packed) const;
  void read_pairs(TileBlock& block);
  void read_floats_in_pairs(TileBlock& block);

  std::optional<float> soft_cap_;
  Bf16Product product_;
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
