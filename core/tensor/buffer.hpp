// Shared immutable storage. A Buffer is filled through its Array while it has one owner, then published and never
// changed.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include <reticle/core/base/types.hpp>

namespace reticle {

/// Aligned to cache lines (and the widest vectors); leaves scalars uninitialised when resized, so that memory is
/// touched first by the thread that fills it.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}  // NOLINT(google-explicit-constructor): allocators convert

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, std::size_t) noexcept { ::operator delete(p, kAlignment); }
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
  /// A copy of what `data` shows.
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
