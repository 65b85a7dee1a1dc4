// The storage of a Mask on a GPU, in the layout that kernels read.
#pragma once

#include <memory>

#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/device_storage.hpp>

namespace reticle::cuda {

struct ColumnLists;
struct KeyLists;

/// A mask on the device: bits, or for each stored row a list of columns and, if it is weighted, their p. All rows'
/// lists have the same capacity, 4 bytes per column, 8 with p: that of the longest row or, for a union, the sum of both
/// operands', so that no counting pass and no waiting are needed. Combining two masks is one launch. Two masks of bits
/// give bits; bits and unweighted lists give bits; bits beside weighted lists are converted to lists.
class RETICLE_API StoredMask final : public DeviceStorage {
 public:
  /// Copies a mask: as bits if it is not weighted and more than a 32nd of its positions are set; otherwise as lists.
  /// Waits for the earlier work of the stream.
  StoredMask(const Mask& mask, Stream stream);
  /// Copies lists for all rows of a shape, which are in device memory.
  StoredMask(const MaskShape& shape, const KeyLists& lists, Stream stream);
  ~StoredMask() override;
  /// The storage of a Mask that is on a GPU. DeviceError for others.
  static const StoredMask& of(const Mask& mask);

  Device device() const override;
  const MaskShape& shape() const override;
  MaskKind kind() const override { return is_bits() ? MaskKind::bits : MaskKind::csr; }
  /// Whether entries have a p; even so, all of them may be 1.
  bool weighted() const override;
  Index bytes() const override;
  Index nnz(const Context& context) const override;
  Mask to_host(const Context& context) const override;
  std::shared_ptr<const DeviceStorage> combine(const DeviceStorage& other, SetOp op,
                                               const Context& context) const override;

  bool is_bits() const;
  /// Capacity of a list in columns; 0 for bits.
  Index list_size() const;
  // For kernels: the bits of stored rows, BitDense::words_per_row(keys) words each, or the lists.
  const std::uint64_t* words() const;
  ColumnLists lists() const;

  /// The same mask as bits, in new memory if it is stored as lists. ValueError for a weighted mask.
  std::shared_ptr<const StoredMask> as_bits(Stream stream) const;
  /// The same mask as lists; if it is stored as bits, with space for every key.
  std::shared_ptr<const StoredMask> as_lists(Stream stream) const;

 private:
  struct State;
  explicit StoredMask(std::shared_ptr<const State> state);
  template <class Op>
  static std::shared_ptr<const StoredMask> combined(const StoredMask& a, const StoredMask& b, const char* operation,
                                                    Stream stream);

  std::shared_ptr<const State> state_;
};

}  // namespace reticle::cuda
