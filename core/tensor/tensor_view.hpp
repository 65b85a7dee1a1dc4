// A non-owning, strided view of a tensor. The fields are those of DLPack, so that bindings copy them across.
#pragma once

#include <array>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

class Tensor;

struct RETICLE_API TensorView {
  static constexpr int kMaxRank = 8;

  const void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  int rank = 0;
  std::array<Index, kMaxRank> shape{};    // elements
  std::array<Index, kMaxRank> strides{};  // elements; bytes from row to row where the dtype is quantised

  TensorView() = default;
  /// C-contiguous. ShapeError when there are too many dimensions or elements.
  TensorView(const void* data, DType dtype, std::span<const Index> shape);
  TensorView(const void* data, DType dtype, std::initializer_list<Index> shape)
      : TensorView(data, dtype, std::span<const Index>(shape.begin(), shape.size())) {}
  TensorView(Tensor&&) = delete;  // would dangle

  Index size(int dim) const { return shape[static_cast<std::size_t>(dim)]; }
  Index stride(int dim) const { return strides[static_cast<std::size_t>(dim)]; }
  Index elements() const;
  /// Bytes of the elements when they are contiguous.
  Index bytes() const;
  bool contiguous() const;
  /// Entries [begin, end) of one dimension; no copy. ShapeError when out of range.
  TensorView slice(int dim, Index begin, Index end) const;
  /// Dimensions in another order; no copy.
  TensorView permute(std::initializer_list<int> order) const;

  /// The address of element (i...). T must be what the dtype stores.
  template <class T, class... I>
  const T* at(I... i) const {
    Index offset = 0;
    std::size_t dim = 0;
    ((offset += static_cast<Index>(i) * strides[dim++]), ...);
    return static_cast<const T*>(data) + offset;
  }

  /// "BF16 (1, 4, 512, 64)", for messages.
  std::string describe() const;
};

/// ShapeError unless `view` has `rank` dimensions; `name` is for the message.
RETICLE_API void require_rank(const TensorView& view, int rank, std::string_view name);
/// DeviceError unless `view` lies on a device of this kind; `name` is for the message.
RETICLE_API void require_on(const TensorView& view, Device::Kind device, std::string_view name);

/// Calls body.template operator()<T>() with the storage type of a floating dtype: float, Half or BFloat16. Other dtypes
/// are an error that names the tensor.
template <class Body>
decltype(auto) dispatch_float(DType dtype, std::string_view name, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::f16:
      return body.template operator()<Half>();
    case DType::bf16:
      return body.template operator()<BFloat16>();
    default:
      throw ShapeError(std::string(name) + ": dtype is " + std::string(name_of(dtype)) + "; expected F32, F16 or BF16");
  }
}

/// Any element read as float, whatever the floating dtype: for cold paths.
RETICLE_API float read_float(const TensorView& view, Index offset);

}  // namespace reticle
