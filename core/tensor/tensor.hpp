// A tensor that owns its memory.
#pragma once

#include <initializer_list>
#include <span>

#include <reticle/core/tensor/buffer.hpp>
#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// C-contiguous and 64-byte aligned. Moves; copying is spelled `copy`, so that its cost shows.
class RETICLE_API Tensor {
 public:
  Tensor() = default;
  /// Uninitialised. ShapeError when the size overflows.
  Tensor(DType dtype, std::span<const Index> shape);
  Tensor(DType dtype, std::initializer_list<Index> shape)
      : Tensor(dtype, std::span<const Index>(shape.begin(), shape.size())) {}
  /// The view's elements, converted to `dtype` (floating dtypes only when it differs from the view's) and packed.
  static Tensor copy(const TensorView& view, DType dtype);

  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() = default;

  const TensorView& view() const& { return view_; }
  const TensorView& view() && = delete;
  operator const TensorView&() const& { return view_; }  // NOLINT(google-explicit-constructor): a tensor is viewable

  void* data() { return storage_.data(); }
  /// The elements; T must be what the dtype stores.
  template <class T>
  std::span<T> span() {
    check(dtype_of<T>);
    return {reinterpret_cast<T*>(storage_.data()), static_cast<std::size_t>(view_.elements())};
  }
  template <class T>
  std::span<const T> span() const {
    check(dtype_of<T>);
    return {reinterpret_cast<const T*>(storage_.data()), static_cast<std::size_t>(view_.elements())};
  }

 private:
  void check(DType wanted) const;

  Array<std::byte> storage_;
  TensorView view_;
};

}  // namespace reticle
