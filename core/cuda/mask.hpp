// Masks in device memory as kernels read them: what a Mask on a GPU is stored as.
#pragma once

#include <memory>

#include <reticle/core/cuda/runtime.hpp>
#include <reticle/core/mask/device_storage.hpp>

namespace reticle::cuda {

struct ColumnLists;
struct KeyLists;

/// A mask on the device: bits, or for each stored row a list of columns and, if it is weighted, their p. Lists have as
/// much room in every row, 4 bytes a column, 8 with p: the longest row's, and for a union that of both operands' lists,
/// so that nothing has to be counted beforehand and nothing waits. Combining is one launch: bits with bits are bits;
/// bits beside lists are, where neither is weighted, and are listed where one is.
class RETICLE_API StoredMask final : public DeviceStorage {
 public:
  /// A copy: dense and 0/1 masks by more than a 32nd as bits, others as lists. Waits for what the stream has before.
  StoredMask(const Mask& mask, Stream stream);
  /// A copy of lists of all rows of a shape, which are in device memory.
  StoredMask(const MaskShape& shape, const KeyLists& lists, Stream stream);
  ~StoredMask() override;
  /// Of a Mask that lies on a GPU. DeviceError for others.
  static const StoredMask& of(const Mask& mask);

  Device device() const override;
  const MaskShape& shape() const override;
  MaskKind kind() const override { return is_bits() ? MaskKind::bits : MaskKind::csr; }
  /// Whether entries carry a p; all of them may be 1.
  bool weighted() const override;
  Index bytes() const override;
  Index nnz(const Context& context) const override;
  Mask to_host(const Context& context) const override;
  std::shared_ptr<const DeviceStorage> combine(const DeviceStorage& other, SetOp op,
                                               const Context& context) const override;

  bool is_bits() const;
  /// Columns that a list has room for; 0 for bits.
  Index list_size() const;
  // For kernels: bits of stored rows, BitDense::words_per_row(keys) to a row, or lists.
  const std::uint64_t* words() const;
  ColumnLists lists() const;

  /// The same mask as bits, with its own memory if it is lists. ValueError for a weighted one.
  std::shared_ptr<const StoredMask> as_bits(Stream stream) const;
  /// ... as lists; of bits, with room for every key.
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
