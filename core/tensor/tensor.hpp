// A tensor that owns its memory.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>

#include <reticle/core/tensor/buffer.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// C-contiguous and 64-byte aligned, in host memory or in a GPU's (made by core/cuda/tensor.hpp). Movable; copies are
/// made by copy(), so that their cost shows.
class RETICLE_API Tensor {
 public:
  Tensor() = default;
  /// Uninitialised. ShapeError when the size overflows.
  Tensor(DType dtype, std::span<const Index> shape);
  Tensor(DType dtype, std::initializer_list<Index> shape)
      : Tensor(dtype, std::span<const Index>(shape.begin(), shape.size())) {}
  /// Uses memory of another allocator, which `memory` keeps alive.
  Tensor(const TensorView& view, std::shared_ptr<void> memory) : memory_(std::move(memory)), view_(view) {}
  /// The view's elements, converted to `dtype` and packed. Where it differs from the view's, both must be floating or
  /// quantised dtypes. ShapeError for others, and for quantised rows of more than 1024 elements.
  static Tensor copy(const TensorView& view, DType dtype);

  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() = default;

  const TensorView& view() const& { return view_; }
  const TensorView& view() && = delete;
  operator const TensorView&() const& { return view_; }  // NOLINT(google-explicit-constructor): a tensor is viewable

  void* data() { return memory_ ? const_cast<void*>(view_.data) : storage_.data(); }
  /// The elements; T must be what the dtype stores. DeviceError if they lie in a GPU's memory.
  template <class T>
  std::span<T> span() {
    check(dtype_of<T>);
    return {static_cast<T*>(data()), static_cast<std::size_t>(view_.elements())};
  }
  template <class T>
  std::span<const T> span() const {
    check(dtype_of<T>);
    return {static_cast<const T*>(memory_ ? view_.data : storage_.data()), static_cast<std::size_t>(view_.elements())};
  }

 private:
  static Tensor copy_rows(const TensorView& view, DType dtype);
  void check(DType wanted) const;

  Array<std::byte> storage_;
  std::shared_ptr<void> memory_;  // used instead of storage_ if set
  TensorView view_;
};

/// Writes floats at `to` as a floating or quantised dtype stores them, row_bytes(dtype, row.size()) bytes.
RETICLE_API void store_row(std::span<const float> row, DType dtype, void* to);

}  // namespace reticle
