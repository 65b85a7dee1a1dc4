// Tensors between Python and C++: callers' arrays as views, without copies, and results in the caller's framework.
#pragma once

#include <limits>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <string>
#include <string_view>
#include <type_traits>

#include <reticle/core/tensor/tensor.hpp>

namespace reticle::bindings {

namespace py = pybind11;

/// The dtype of rows of codes of so many bits. ValueError unless bits is 8 or 4.
DType quantised_dtype(Index bits);

/// A caller's tensor (torch, numpy, a QuantisedTensor, or anything with DLPack) as a view that keeps it alive. No copy
/// is made.
class Borrowed {
 public:
  /// TypeError, naming the argument, when it is not a tensor; ShapeError for a dtype or rank that cannot be viewed;
  /// DeviceError when it is not in the memory of this kind of device. The content of a GPU tensor may still be pending
  /// on the caller's stream.
  Borrowed(const py::handle& object, std::string_view name, Device::Kind device = Device::Kind::cpu);

  const TensorView& view() const { return view_; }
  /// The object that owns the viewed memory.
  const py::object& object() const { return object_; }
  /// cuda for torch's GPU tensors and for other objects that report CUDA through DLPack; else cpu.
  static Device::Kind device_of(const py::handle& object);
  /// Torch's current stream on the tensor's GPU; the default stream for other tensors.
  void* stream() const;
  /// A new torch tensor on the device of this one, which must be torch's too.
  py::object empty_like(std::initializer_list<Index> shape, DType dtype) const;
  /// Converts a result to the framework of this argument: a torch tensor, an array of a library that follows the array
  /// API standard (such as jax), or else a numpy array.
  py::object hand_over(Tensor&& result) const;

 private:
  void view_dlpack(std::string_view name, Device::Kind device);
  void view_array(std::string_view name);
  void view_codes(std::string_view name, Device::Kind device);
  void require_memory(std::string_view name) const;

  py::object object_, capsule_;
  bool is_torch_ = false;
  TensorView view_;
};

/// Torch's current stream on its current GPU; the default stream if it has none.
void* current_stream();

/// Converts to a torch tensor or numpy array, which takes ownership.
py::object to_python(Tensor&& tensor, bool as_torch);
/// Converts a view to a torch tensor or a read-only numpy array that keeps `owner` alive; no copy.
py::object to_python(const TensorView& view, const py::object& owner, bool as_torch);

/// Converts to a numpy array, which takes ownership.
template <class T>
py::array_t<T> to_numpy(Array<T> array, std::initializer_list<py::ssize_t> shape) {
  auto* owner = new Array<T>(std::move(array));
  const py::capsule release(owner, [](void* owned) { delete static_cast<Array<T>*>(owned); });
  return py::array_t<T>(shape, owner->data(), release);
}

template <class T>
py::array_t<T> copied(const Buffer<T>& buffer) {
  return to_numpy(Array<T>(buffer.span().begin(), buffer.span().end()), {buffer.size()});
}

/// A caller's numbers as a C-contiguous array of float32. They may be booleans, integers or floats of any byte order,
/// in numpy arrays, torch tensors or nested lists. TypeError, naming the argument, for complex numbers, masked arrays
/// and objects that are not arrays.
py::array_t<float> floats_of(const py::handle& object, const std::string& name);
/// The same for integers, as int64. TypeError also for floats and booleans, and ShapeError for numbers that int64
/// cannot hold.
py::array_t<Index> integers_of(const py::handle& object, const std::string& name);

/// The elements of a one-dimensional array as T (float, Index or std::int32_t); ShapeError for a number that T cannot
/// hold.
template <class T>
Buffer<T> to_buffer(const py::handle& object, const std::string& name) {
  const auto array = [&] {
    if constexpr (std::is_same_v<T, float>) {
      return floats_of(object, name);
    } else {
      return integers_of(object, name);
    }
  }();
  if (array.ndim() != 1) throw ShapeError(name + ": has " + std::to_string(array.ndim()) + " dimensions; expected 1");
  Array<T> elements(static_cast<std::size_t>(array.size()));
  for (py::ssize_t i = 0; i < array.size(); ++i) {
    const auto value = array.data()[i];
    if constexpr (std::is_same_v<T, std::int32_t>) {
      if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max())
        throw ShapeError(name + ": holds " + std::to_string(value) + "; expected numbers below 2^31");
    }
    elements[static_cast<std::size_t>(i)] = static_cast<T>(value);
  }
  return elements;
}

}  // namespace reticle::bindings
