// Shared immutable storage. A Buffer is filled through its Array while it has one owner, then published and never
// changed.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Memory aligned to cache lines and the widest vectors. Large blocks ask the system for huge pages, since the first
/// touches of small pages cost more than filling them. Up to most_kept_bytes() of freed blocks are kept for reuse at
/// the same size. Throws std::bad_alloc.
RETICLE_API void* allocate_aligned(std::size_t bytes);
RETICLE_API void free_aligned(void* memory, std::size_t bytes) noexcept;
/// The most bytes of freed blocks that are kept: 512 MiB, or 1/32 of the machine's memory if that is less; 0 under
/// AddressSanitizer.
RETICLE_API std::size_t most_kept_bytes();

/// Aligned to cache lines (and the widest vectors); leaves scalars uninitialised when resized, so that memory is
/// touched first by the thread that fills it.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}  // NOLINT(google-explicit-constructor): allocators convert

  T* allocate(std::size_t n) {
    if (n > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(allocate_aligned(n * sizeof(T)));
  }
  void deallocate(T* p, std::size_t n) noexcept { free_aligned(p, n * sizeof(T)); }
  template <class U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...);
  }
  bool operator==(const AlignedAllocator&) const = default;
};

template <class T>
using Array = std::vector<T, AlignedAllocator<T>>;

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Array<T>&& data)  // NOLINT(google-explicit-constructor): publishing is what it is for
      : data_(std::make_shared<const Array<T>>(std::move(data))) {}
  /// A buffer with a copy of `data`.
  static Buffer copy(std::span<const T> data) { return Array<T>(data.begin(), data.end()); }

  const T* data() const { return data_ ? data_->data() : nullptr; }
  Index size() const { return data_ ? static_cast<Index>(data_->size()) : 0; }
  bool empty() const { return size() == 0; }
  const T& operator[](Index i) const { return (*data_)[static_cast<std::size_t>(i)]; }
  std::span<const T> span() const { return {data(), static_cast<std::size_t>(size())}; }
  Index bytes() const { return size() * static_cast<Index>(sizeof(T)); }

 private:
  std::shared_ptr<const Array<T>> data_;
};

}  // namespace reticle
