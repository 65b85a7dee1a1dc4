// Masks in device memory, and their algebra there.
#pragma once

#include <memory>

#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/mask.hpp>

namespace reticle::cuda {

struct ColumnLists;

/// A mask on the device: bits, or for each stored row a list of columns and, if it is weighted, their p. Lists have as
/// much room in every row, 4 bytes a column, 8 with p: the longest row's, and for a union that of both operands' lists,
/// so that nothing has to be counted beforehand and nothing waits. A value; copies share memory.
class RETICLE_API DeviceMask {
 public:
  /// A copy: dense and 0/1 masks by more than a 32nd as bits, others as lists. Waits for what the stream has before.
  DeviceMask(const Mask& mask, Stream stream);

  const MaskShape& shape() const;
  bool is_bits() const;
  /// Whether entries carry a p; all of them may be 1.
  bool weighted() const;
  /// Columns that a list has room for; 0 for bits.
  Index list_size() const;
  /// Of device memory.
  Index bytes() const;
  /// As Mask::nnz; waits for the stream.
  Index nnz(Stream stream) const;

  /// Waits for the stream.
  Mask to_host(Stream stream) const;

  // For kernels: bits of stored rows, BitDense::words_per_row(keys) to a row, or lists.
  const std::uint64_t* words() const;
  ColumnLists lists() const;

  /// The same mask as bits. ValueError for a weighted one.
  DeviceMask as_bits(Stream stream) const;
  /// ... as lists; of bits, with room for every key.
  DeviceMask as_lists(Stream stream) const;

 private:
  struct State;
  explicit DeviceMask(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  template <class Op>
  static DeviceMask combined(const DeviceMask& a, const DeviceMask& b, const char* operation, Stream stream);
  friend DeviceMask merge(const DeviceMask&, const DeviceMask&, MergeRule, Stream);
  friend DeviceMask intersect(const DeviceMask&, const DeviceMask&, Stream);
  friend DeviceMask subtract(const DeviceMask&, const DeviceMask&, Stream);

  std::shared_ptr<const State> state_;
};

/// reticle::merge, intersect and subtract of masks of one logical shape (ShapeError otherwise): one launch, no waiting.
/// Bits with bits are bits; bits beside lists are, where neither is weighted, and are listed where one is.
RETICLE_API DeviceMask merge(const DeviceMask& a, const DeviceMask& b, MergeRule rule, Stream stream);
RETICLE_API DeviceMask intersect(const DeviceMask& a, const DeviceMask& b, Stream stream);
RETICLE_API DeviceMask subtract(const DeviceMask& a, const DeviceMask& b, Stream stream);

}  // namespace reticle::cuda
