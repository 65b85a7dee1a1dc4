// Mask: which key each query attends to, and the probability p in (0, 1] with which it was included.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/base/context.hpp>
#include <reticle/core/mask/representation.hpp>
#include <reticle/core/mask/shape.hpp>

namespace reticle {

enum class MaskKind : std::uint8_t { empty, full, bits, dense, csr, runs };

/// The keys that one row adds, filled by a selector. `p` is empty (all 1) or aligned with `indices`.
struct Selection {
  std::vector<std::int32_t> indices;  // strictly ascending
  std::vector<float> p;
  void clear() {
    indices.clear();
    p.clear();
  }
};

class DeviceStorage;

/// A value over shared immutable storage, in the host's memory or a GPU's: copying is O(1), a Mask never changes, and
/// operations return new ones. Masks on a GPU support merge, intersect, subtract and attention; other operations that
/// read entries throw DeviceError. p = 0 means "not attended" and is stored by dense masks only. The p are the
/// inclusion probabilities of Horvitz and Thompson (1952).
class RETICLE_API Mask {
 public:
  /// The empty mask over no positions.
  Mask();

  static Mask empty(const MaskShape& shape);
  static Mask full(const MaskShape& shape);
  /// Masks from stored data; the shape says which dimensions are shared. ShapeError when sizes do not fit, columns are
  /// out of range or not ascending, or a p is outside (0, 1].
  static Mask bits(const MaskShape& shape, Buffer<std::uint64_t> words);
  static Mask csr(const MaskShape& shape, Buffer<Index> row_ptr, Buffer<std::int32_t> indices, Buffer<float> p = {});
  static Mask runs(const MaskShape& shape, Buffer<Index> row_ptr, Buffer<Interval> intervals, Buffer<float> p = {});
  /// `p` holds a value in [0, 1] for every stored position, 0 for "not attended".
  static Mask dense(const MaskShape& shape, std::span<const float> p, const Context& context = {});
  /// From (stored rows, width) column numbers in any order; -1 is padding, and the last of equal columns wins. `p` is
  /// empty or aligned with them; zeros are dropped.
  static Mask from_row_indices(const MaskShape& shape, Index width, std::span<const Index> columns,
                               std::span<const float> p = {}, const Context& context = {});

  /// The constructors for masker authors. One run per stored row, of any length (empty when begin >= end), clipped to
  /// the keys:
  ///   Mask::intervals(shape.one_head(), [&](RowId row) { return Interval{0, sink}; })
  template <std::invocable<RowId> F>
  static Mask intervals(const MaskShape& shape, F&& interval_of, const Context& context = {}) {
    return from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Interval interval = interval_of(row);
          emit(Run{interval.begin, interval.end, 1.0f});
        },
        context);
  }
  /// Any number of ascending disjoint runs per stored row. `rows` is called twice for each row and must emit the same
  /// runs.
  static Mask from_runs(const MaskShape& shape, FunctionRef<void(RowId, FunctionRef<void(Run)>)> rows,
                        const Context& context = {});
  /// Selected columns per stored row. `rows` is called once for a row, from many threads.
  static Mask from_selections(const MaskShape& shape, FunctionRef<void(RowId, Selection&)> rows,
                              const Context& context = {});

  const MaskShape& shape() const;
  /// The device that stores the entries. Empty and full masks store none and are on the CPU.
  Device device() const;
  /// The same mask on `device`: itself if it is there already, else a copy, queued on context.stream. A copy to the
  /// host waits for the stream. DeviceError if there is no such device, or if it is not the current one.
  Mask to(Device device, const Context& context = {}) const;
  /// The storage of a mask on a GPU; null for a mask on the host.
  const DeviceStorage* on_device() const;
  /// A mask whose entries are stored on a device.
  static Mask stored(std::shared_ptr<const DeviceStorage> storage);

  /// DeviceError for a mask on a GPU.
  const Representation& representation() const;
  /// On a GPU, bits or csr.
  MaskKind kind() const;
  /// Number of attended positions over the logical shape. On a GPU the call waits for context.stream.
  Index nnz(const Context& context = {}) const;
  /// nnz over all positions; 0 for a mask without positions.
  double density(const Context& context = {}) const;
  /// True if some p is below 1.
  bool weighted() const;
  /// Bytes of the storage that copies share.
  Index bytes() const;

  /// Appends the maximal runs of one logical row, ascending.
  void row(RowId row, std::vector<Run>& runs) const;
  /// p at one position; 0 when not attended.
  float at(Index batch, Index head, Index query, Index key) const;

 private:
  friend class MaskAssembler;
  struct Storage;
  explicit Mask(std::shared_ptr<const Storage> storage);
  static Mask make(MaskShape shape, Representation representation, Index stored_nnz, bool weighted);

  std::shared_ptr<const Storage> storage_;
};

/// Same logical shape, positions and p, whatever the representation and sharing. Masks on a GPU are copied to the host
/// to compare.
RETICLE_API bool operator==(const Mask& a, const Mask& b);
/// "empty", "full", "bits", "dense", "csr" or "runs".
RETICLE_API std::string_view name_of(MaskKind kind);
/// Equal masks have equal hashes.
RETICLE_API std::uint64_t hash(const Mask& mask);
/// "Mask (1, 4, 512, 4096), runs, density 3.1 %, 16.4 kB", for messages and interactive use.
RETICLE_API std::string describe(const Mask& mask);

/// Attended keys per logical row, (batch * heads * queries).
RETICLE_API std::vector<Index> row_counts(const Mask& mask, const Context& context = {});
/// Attended positions per head, (batch * heads).
RETICLE_API std::vector<Index> head_counts(const Mask& mask, const Context& context = {});

}  // namespace reticle
