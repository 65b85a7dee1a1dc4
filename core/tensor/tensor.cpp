#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/tensor/quantised_rows.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace reticle {
namespace {

/// The address of empty tensors that were given as null: pointer arithmetic on null is undefined.
constexpr std::byte kNothing{};

}  // namespace

TensorView::TensorView(const void* data, DType dtype, std::span<const Index> extents) : data(data), dtype(dtype) {
  if (extents.size() > kMaxRank)
    throw ShapeError("a tensor has at most " + std::to_string(kMaxRank) + " dimensions; " +
                     std::to_string(extents.size()) + " were given");
  rank = static_cast<int>(extents.size());
  Index stride = 1;
  for (std::size_t dim = extents.size(); dim-- > 0;) {
    shape[dim] = extents[dim];
    strides[dim] = stride;
    const bool is_row = is_quantised(dtype) && dim + 1 == extents.size();
    stride = is_row ? row_bytes(dtype, extents[dim]) : checked_product({stride, extents[dim]}, "tensor");
  }
  checked_product({stride, size_of(dtype)}, "bytes of a tensor");
  if (data == nullptr && stride == 0) this->data = &kNothing;
}

Index TensorView::elements() const {
  // In an empty tensor the product of the other extents may overflow.
  if (std::any_of(shape.begin(), shape.begin() + rank, [](Index extent) { return extent == 0; })) return 0;
  Index count = 1;
  for (int dim = 0; dim < rank; ++dim) count *= size(dim);
  return count;
}

Index TensorView::bytes() const {
  if (!is_quantised(dtype)) return elements() * size_of(dtype);
  return elements() == 0 ? 0 : elements() / size(rank - 1) * row_bytes(dtype, size(rank - 1));
}

bool TensorView::contiguous() const {
  Index expected = 1;
  for (int dim = rank; dim-- > 0;) {
    if (size(dim) != 1 && stride(dim) != expected) return false;
    const bool is_row = is_quantised(dtype) && dim + 1 == rank;
    expected *= is_row ? row_bytes(dtype, size(dim)) : size(dim);
  }
  return true;
}

TensorView TensorView::slice(int dim, Index begin, Index end) const {
  if (dim < 0 || dim >= rank || begin < 0 || begin > end || end > size(dim))
    throw ShapeError("slice [" + std::to_string(begin) + ", " + std::to_string(end) + ") of dimension " +
                     std::to_string(dim) + " is out of range for " + describe());
  TensorView result = *this;
  const auto d = static_cast<std::size_t>(dim);
  result.data = static_cast<const std::byte*>(data) + begin * strides[d] * size_of(dtype);
  result.shape[d] = end - begin;
  return result;
}

TensorView TensorView::permute(std::initializer_list<int> order) const {
  if (static_cast<int>(order.size()) != rank)
    throw ShapeError("permute: needs an order of every dimension of " + describe());
  TensorView result = *this;
  std::size_t to = 0;
  for (const int from : order) {
    if (from < 0 || from >= rank)
      throw ShapeError("permute: no dimension " + std::to_string(from) + " in " + describe());
    result.shape[to] = shape[static_cast<std::size_t>(from)];
    result.strides[to] = strides[static_cast<std::size_t>(from)];
    ++to;
  }
  return result;
}

std::string TensorView::describe() const {
  std::string text(name_of(dtype));
  text += " (";
  for (int dim = 0; dim < rank; ++dim) {
    if (dim > 0) text += ", ";
    text += std::to_string(size(dim));
  }
  return text + ")";
}

void require_rank(const TensorView& view, int rank, std::string_view name) {
  if (view.rank != rank)
    throw ShapeError(std::string(name) + ": has " + std::to_string(view.rank) + " dimensions, " + view.describe() +
                     "; expected " + std::to_string(rank));
}

void require_on(const TensorView& view, Device::Kind device, std::string_view name) {
  if (view.device.kind != device)
    throw DeviceError(std::string(name) + ": on " + view.device.describe() + "; expected a tensor " +
                      (device == Device::Kind::cpu ? "on the CPU" : "on a GPU"));
}

float read_float(const TensorView& view, Index offset) {
  return dispatch_float(view.dtype, "tensor",
                        [&]<class T>() { return to_float(static_cast<const T*>(view.data)[offset]); });
}

Tensor::Tensor(DType dtype, std::span<const Index> shape) : view_(nullptr, dtype, shape) {
  storage_.resize(static_cast<std::size_t>(view_.bytes()));
  if (!storage_.empty()) view_.data = storage_.data();
}

namespace {

/// Calls body(offset) for each element of the view, in C order.
template <class Body>
void for_each_offset(const TensorView& view, Body&& body) {
  if (view.elements() == 0) return;
  std::array<Index, TensorView::kMaxRank> at{};
  for (Index offset = 0;;) {
    body(offset);
    int dim = view.rank - 1;
    for (; dim >= 0; --dim) {
      const auto d = static_cast<std::size_t>(dim);
      offset += view.strides[d];
      if (++at[d] < view.shape[d]) break;
      offset -= view.strides[d] * view.shape[d];
      at[d] = 0;
    }
    if (dim < 0) return;
  }
}

}  // namespace

void store_row(std::span<const float> row, DType dtype, void* to) {
  if (is_quantised(dtype)) return quantise_row(row, dtype, static_cast<std::byte*>(to));
  dispatch_float(dtype, "converted tensor", [&]<class T>() {
    for (std::size_t i = 0; i < row.size(); ++i) static_cast<T*>(to)[i] = from_float<T>(row[i]);
  });
}

Tensor Tensor::copy_rows(const TensorView& view, DType dtype) {
  const auto extents = std::span<const Index>(view.shape.data(), static_cast<std::size_t>(view.rank));
  if (view.rank == 0 || extents.back() > kMaxQuantisedWidth)
    throw ShapeError("tensor to quantise: " + view.describe() + "; expected rows of at most " +
                     std::to_string(kMaxQuantisedWidth) + " elements");
  Tensor result(dtype, extents);
  TensorView first_elements = view;
  --first_elements.rank;
  std::vector<float> row(static_cast<std::size_t>(extents.back()));
  const Index step = view.stride(view.rank - 1), bytes = row_bytes(dtype, extents.back());
  std::byte* out = result.storage_.data();
  if (view.elements() == 0) return result;
  for_each_offset(first_elements, [&](Index offset) {
    const std::byte* from = static_cast<const std::byte*>(view.data) + offset * size_of(view.dtype);
    if (view.dtype == dtype) {
      std::memcpy(out, from, static_cast<std::size_t>(bytes));
    } else {
      if (is_quantised(view.dtype)) {
        dequantise_row(from, view.dtype, 1, row);
      } else {
        for (std::size_t i = 0; i < row.size(); ++i) row[i] = read_float(view, offset + static_cast<Index>(i) * step);
      }
      store_row(row, dtype, out);
    }
    out += bytes;
  });
  return result;
}

Tensor Tensor::copy(const TensorView& view, DType dtype) {
  require_on(view, Device::Kind::cpu, "copy");
  if (is_quantised(dtype) || is_quantised(view.dtype)) return copy_rows(view, dtype);
  Tensor result(dtype, std::span<const Index>(view.shape.data(), static_cast<std::size_t>(view.rank)));
  std::byte* out = result.storage_.data();
  if (dtype == view.dtype) {
    const auto width = static_cast<std::size_t>(size_of(dtype));
    const auto* in = static_cast<const std::byte*>(view.data);
    if (view.contiguous()) {
      if (!result.storage_.empty()) std::memcpy(out, in, result.storage_.size());
    } else {
      for_each_offset(view, [&](Index offset) {
        std::memcpy(out, in + offset * static_cast<Index>(width), width);
        out += width;
      });
    }
    return result;
  }
  dispatch_float(view.dtype, "tensor to convert", [&]<class From>() {
    dispatch_float(dtype, "converted tensor", [&]<class To>() {
      auto* to = reinterpret_cast<To*>(out);
      const auto* from = static_cast<const From*>(view.data);
      for_each_offset(view, [&](Index offset) { *to++ = from_float<To>(to_float(from[offset])); });
    });
  });
  return result;
}

void Tensor::check(DType wanted) const {
  require_on(view_, Device::Kind::cpu, "elements of a tensor");
  if (view_.dtype != wanted)
    throw ShapeError("tensor is " + view_.describe() + "; its elements were asked for as " +
                     std::string(name_of(wanted)));
}

}  // namespace reticle
