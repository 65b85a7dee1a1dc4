#include "tensor.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dlpack.hpp"

namespace reticle::bindings {
namespace {

constexpr const char* kUnused = "dltensor";
constexpr const char* kUsed = "used_dltensor";

DType dtype_from(const DLDataType& type, std::string_view name) {
  const auto is = [&](std::uint8_t code, int bits) {
    return type.lanes == 1 && type.code == code && type.bits == bits;
  };
  if (is(kDLFloat, 32)) return DType::f32;
  if (is(kDLFloat, 16)) return DType::f16;
  if (is(kDLBfloat, 16)) return DType::bf16;
  if (is(kDLFloat, 64)) return DType::f64;
  if (is(kDLInt, 64)) return DType::i64;
  if (is(kDLInt, 32)) return DType::i32;
  if (is(kDLUInt, 8)) return DType::u8;
  if (is(kDLBool, 8)) return DType::boolean;
  throw ShapeError(std::string(name) + ": its dtype cannot be read; expected float32, float16, bfloat16 or an integer");
}

Device device_from(const DLDevice& device, std::string_view name) {
  if (device.device_type == kDLCPU || device.device_type == kDLCUDAHost) return {};
  if (device.device_type == kDLCUDA) return {Device::Kind::cuda, device.device_id};
  throw DeviceError(std::string(name) + ": on a device of DLPack's type " + std::to_string(device.device_type) +
                    "; expected a tensor in the memory of the CPU or of a CUDA GPU");
}

DLDataType dtype_to(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  switch (dtype) {
    case DType::f32:
    case DType::f16:
    case DType::f64:
      return {kDLFloat, bits, 1};
    case DType::bf16:
      return {kDLBfloat, bits, 1};
    case DType::i64:
    case DType::i32:
    case DType::i16:
    case DType::i8:
      return {kDLInt, bits, 1};
    case DType::u64:
    case DType::u32:
    case DType::u16:
    case DType::u8:
    case DType::q8:
    case DType::q4:
      return {kDLUInt, bits, 1};
    case DType::boolean:
      return {kDLBool, bits, 1};
  }
  return {kDLUInt, bits, 1};
}

/// A tensor exported to torch: the owner of its memory, and the DLPack record that describes it.
template <class Owner>
struct Export {
  Owner owner;
  TensorView view;
  DLManagedTensor managed;

  static py::capsule capsule(Owner owner, const TensorView& view) {
    auto* self = new Export{std::move(owner), view, {}};
    self->managed.dl_tensor = {const_cast<void*>(view.data),
                               {kDLCPU, 0},
                               view.rank,
                               dtype_to(view.dtype),
                               self->view.shape.data(),
                               self->view.strides.data(),
                               0};
    self->managed.manager_ctx = self;
    self->managed.deleter = [](DLManagedTensor* tensor) {
      const py::gil_scoped_acquire held;  // torch may release storage on any thread
      delete static_cast<Export*>(tensor->manager_ctx);
    };
    const auto release = [](PyObject* unclaimed) {
      if (PyCapsule_IsValid(unclaimed, kUnused) == 0) return;
      auto* tensor = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(unclaimed, kUnused));
      tensor->deleter(tensor);
    };
    return py::capsule(&self->managed, kUnused, release);
  }
};

template <class Owner>
py::object to_torch(Owner owner, const TensorView& view) {
  return py::module_::import("torch").attr("from_dlpack")(Export<Owner>::capsule(std::move(owner), view));
}

/// numpy's name of a dtype. numpy has no bfloat16: its bits are exported as integers, and viewed as bfloat16
/// afterwards.
const char* numpy_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
    case DType::u16:
      return "uint16";
    case DType::f64:
      return "float64";
    case DType::i64:
      return "int64";
    case DType::i32:
      return "int32";
    case DType::i16:
      return "int16";
    case DType::i8:
      return "int8";
    case DType::u64:
      return "uint64";
    case DType::u32:
      return "uint32";
    case DType::u8:
    case DType::q8:
    case DType::q4:
      return "uint8";
    case DType::boolean:
      return "bool";
  }
  return "uint8";
}

py::array to_array(const TensorView& view, const py::object& owner) {
  const char* const name = numpy_name(view.dtype);
  std::vector<py::ssize_t> shape(view.shape.begin(), view.shape.begin() + view.rank), strides;
  for (int dim = 0; dim < view.rank; ++dim)
    strides.push_back(view.stride(dim) * static_cast<py::ssize_t>(size_of(view.dtype)));
  const py::array array(py::dtype(name), std::move(shape), std::move(strides), view.data, owner);
  if (view.dtype == DType::bf16) return array.attr("view")(py::module_::import("ml_dtypes").attr("bfloat16"));
  return array;
}

/// A torch tensor detached from autograd, with its lazy negation and conjugation bits resolved.
py::object plain(const py::object& tensor) {
  py::object found = tensor.attr("detach")();
  for (const char* bit : {"neg", "conj"}) {
    if (py::hasattr(found, "is_neg") && found.attr((std::string("is_") + bit).c_str())().cast<bool>())
      found = found.attr((std::string("resolve_") + bit).c_str())();
  }
  return found;
}

/// An array in the machine's byte order. TypeError for masked arrays, whose mask would be lost.
py::object native(const py::object& array, const std::string& name) {
  if (py::isinstance(array, py::module_::import("numpy").attr("ma").attr("MaskedArray")))
    throw py::type_error(name + ": is a masked array; expected one without a mask (filled(value) gives it)");
  const py::object dtype = array.attr("dtype");
  if (dtype.attr("isnative").cast<bool>()) return array;
  return array.attr("astype")(dtype.attr("newbyteorder")("="));
}

py::array numbers_of(const py::handle& object, const std::string& name, std::string_view kinds, const char* what) {
  py::object given = py::reinterpret_borrow<py::object>(object);
  if (py::hasattr(given, "detach")) given = plain(given);
  if (py::hasattr(given, "is_sparse") && given.attr("layout").attr("__str__")().cast<std::string>() != "torch.strided")
    throw py::type_error(name + ": is a sparse tensor; expected a dense array of " + what);
  const py::module_ numpy = py::module_::import("numpy");
  if (py::hasattr(given, "detach") && given.attr("dtype").is(py::module_::import("torch").attr("bfloat16")))
    given = given.attr("float")();
  try {
    given = native(numpy.attr("asanyarray")(given), name);
  } catch (const py::error_already_set& error) {
    throw py::type_error(name + ": is not an array of " + what + ": " + std::string(py::str(error.value())));
  }
  auto array = py::reinterpret_borrow<py::array>(given);
  const std::string dtype = py::str(array.dtype());
  if (array.size() > 0 && kinds.find(array.dtype().kind()) == std::string_view::npos && dtype != "bfloat16")
    throw py::type_error(name + ": dtype is " + dtype + "; expected " + what);
  if (dtype == "bfloat16" && kinds.find('f') == std::string_view::npos)
    throw py::type_error(name + ": dtype is bfloat16; expected " + what);
  return array;
}

}  // namespace

DType quantised_dtype(Index bits) {
  if (bits != 8 && bits != 4) throw ValueError("bits is " + std::to_string(bits) + "; expected 8 or 4");
  return bits == 8 ? DType::q8 : DType::q4;
}

py::array_t<float> floats_of(const py::handle& object, const std::string& name) {
  const py::array array = numbers_of(object, name, "biuf", "numbers");
  py::array_t<float> floats(py::module_::import("numpy").attr("ascontiguousarray")(array, "float32"));
  if (array.dtype().kind() == 'f' && array.itemsize() > 4) {
    // Numbers that float32 rounds to 0 change the count of nonzeros.
    const py::module_ numpy = py::module_::import("numpy");
    if (!numpy.attr("count_nonzero")(array).equal(numpy.attr("count_nonzero")(floats)))
      throw ShapeError(name + ": holds numbers too small for float32; expected 0 or at least 2^-126");
  }
  return floats;
}

py::array_t<Index> integers_of(const py::handle& object, const std::string& name) {
  const py::array array = numbers_of(object, name, "iu", "integers");
  if (array.size() > 0 && array.dtype().kind() == 'u' && array.itemsize() == 8) {
    const auto largest = array.attr("max")().attr("item")().cast<std::uint64_t>();
    if (largest > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
      throw ShapeError(name + ": holds " + std::to_string(largest) + "; expected numbers below 2^63");
  }
  return py::array_t<Index>(py::module_::import("numpy").attr("ascontiguousarray")(array, "int64"));
}

namespace {

bool is_quantised_tensor(const py::object& object) {
  if (!py::hasattr(object, "codes")) return false;
  return py::isinstance(object, py::module_::import("reticle._quantised").attr("QuantisedTensor"));
}

}  // namespace

Borrowed::Borrowed(const py::handle& object, std::string_view name, Device::Kind device)
    : object_(py::reinterpret_borrow<py::object>(object)) {
  if (py::hasattr(object_, "detach")) {
    is_torch_ = true;
    object_ = plain(object_);
  }
  if (is_quantised_tensor(object_)) {
    view_codes(name, device);
  } else if (py::isinstance<py::array>(object_) && device == Device::Kind::cpu) {
    view_array(name);
  } else if (py::hasattr(object_, "__dlpack__")) {
    view_dlpack(name, device);
  } else {
    throw py::type_error(std::string(name) + ": a " + std::string(py::str(py::type::of(object_).attr("__name__"))) +
                         " is not a tensor; expected a torch tensor, a numpy array or an object with __dlpack__");
  }
  require_memory(name);
}

Device::Kind Borrowed::device_of(const py::handle& object) {
  if (py::hasattr(object, "is_cuda"))
    return object.attr("is_cuda").cast<bool>() ? Device::Kind::cuda : Device::Kind::cpu;
  if (!py::hasattr(object, "__dlpack_device__")) return Device::Kind::cpu;
  const auto where = object.attr("__dlpack_device__")().cast<py::tuple>();
  return where[0].cast<int>() == kDLCUDA ? Device::Kind::cuda : Device::Kind::cpu;
}

namespace {

/// The current torch stream of a device, or, if None, of torch's current GPU; the default stream if torch has not
/// initialised CUDA.
void* stream_of_torch(const py::object& device) {
  const py::object cuda = py::module_::import("torch").attr("cuda");
  if (!cuda.attr("is_initialized")().cast<bool>()) return nullptr;
  const auto stream = cuda.attr("current_stream")(device).attr("cuda_stream").cast<std::uintptr_t>();
  return reinterpret_cast<void*>(stream);
}

}  // namespace

void* current_stream() {
  const bool has_torch = py::module_::import("sys").attr("modules").contains("torch");
  return has_torch ? stream_of_torch(py::none()) : nullptr;
}

void* Borrowed::stream() const {
  const bool on_torch_gpu = is_torch_ && view_.device.kind == Device::Kind::cuda;
  return on_torch_gpu ? stream_of_torch(object_.attr("device")) : nullptr;
}

py::object Borrowed::empty_like(std::initializer_list<Index> shape, DType dtype) const {
  py::tuple extents(shape.size());
  std::size_t dim = 0;
  for (const Index extent : shape) extents[dim++] = extent;
  const py::object torch_dtype = py::module_::import("torch").attr(dtype == DType::f32   ? "float32"
                                                                   : dtype == DType::f16 ? "float16"
                                                                                         : "bfloat16");
  return object_.attr("new_empty")(extents, py::arg("dtype") = torch_dtype);
}

/// torch has tensors without memory, such as zero tensors for undefined gradients.
void Borrowed::require_memory(std::string_view name) const {
  if (view_.data == nullptr && view_.elements() > 0)
    throw ShapeError(std::string(name) + ": " + view_.describe() + " lies in no memory; expected a tensor that does");
}

void Borrowed::view_dlpack(std::string_view name, Device::Kind device) {
  const bool on_gpu = device == Device::Kind::cuda;
  // -1 asks for no synchronisation: kernels are queued on the caller's stream.
  capsule_ = on_gpu ? object_.attr("__dlpack__")(py::arg("stream") = -1) : object_.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), kUnused));
  if (managed == nullptr) throw py::error_already_set();
  // From here on this object owns the record, and releases it with the new capsule.
  PyCapsule_SetName(capsule_.ptr(), kUsed);
  capsule_ = py::capsule(managed, [](void* claimed) {
    auto* tensor = static_cast<DLManagedTensor*>(claimed);
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
  });
  const DLTensor& tensor = managed->dl_tensor;
  if (tensor.ndim > TensorView::kMaxRank)
    throw ShapeError(std::string(name) + ": has " + std::to_string(tensor.ndim) + " dimensions; at most " +
                     std::to_string(TensorView::kMaxRank) + " are supported");
  view_ = TensorView(static_cast<const char*>(tensor.data) + tensor.byte_offset, dtype_from(tensor.dtype, name),
                     std::span(tensor.shape, static_cast<std::size_t>(tensor.ndim)));
  if (tensor.strides != nullptr) std::copy_n(tensor.strides, tensor.ndim, view_.strides.begin());
  view_.device = device_from(tensor.device, name);
  require_on(view_, device, name);
}

/// Views the codes of a QuantisedTensor as the tensor that they stand for.
void Borrowed::view_codes(std::string_view name, Device::Kind device) {
  const auto bits = object_.attr("bits").cast<Index>(), width = object_.attr("width").cast<Index>();
  const Borrowed codes(object_.attr("codes"), std::string(name) + ".codes", device);
  const TensorView& view = codes.view();
  const auto last = static_cast<std::size_t>(std::max(view.rank, 1) - 1);
  if (view.dtype != DType::u8 || view.rank == 0 || view.shape[last] != row_bytes(quantised_dtype(bits), width) ||
      view.strides[last] != 1)
    throw ShapeError(std::string(name) + ".codes: " + view.describe() + "; expected U8 rows of " +
                     std::to_string(row_bytes(quantised_dtype(bits), width)) + " bytes, stored one after the other");
  is_torch_ = codes.is_torch_;
  object_ = codes.object_;
  capsule_ = codes.capsule_;
  view_ = view;
  view_.dtype = quantised_dtype(bits);
  view_.shape[last] = width;
}

/// Views a numpy array without DLPack, which numpy refuses for arrays that are read-only or of ml_dtypes' bfloat16.
void Borrowed::view_array(std::string_view name) {
  object_ = native(object_, std::string(name));
  const auto array = py::reinterpret_borrow<py::array>(object_);
  const auto type = std::string(py::str(array.dtype().attr("name")));
  const std::pair<const char*, DType> known[] = {
      {"float32", DType::f32}, {"float16", DType::f16}, {"bfloat16", DType::bf16}, {"float64", DType::f64},
      {"int64", DType::i64},   {"int32", DType::i32},   {"uint8", DType::u8},      {"bool", DType::boolean}};
  const auto* const found =
      std::find_if(std::begin(known), std::end(known), [&](const auto& entry) { return type == entry.first; });
  if (found == std::end(known))
    throw ShapeError(std::string(name) + ": dtype is " + type + "; expected float32, float16 or bfloat16");
  if (array.ndim() > TensorView::kMaxRank)
    throw ShapeError(std::string(name) + ": has " + std::to_string(array.ndim()) + " dimensions; at most " +
                     std::to_string(TensorView::kMaxRank) + " are supported");
  const std::vector<Index> shape(array.shape(), array.shape() + array.ndim());
  view_ = TensorView(array.data(), found->second, shape);
  for (py::ssize_t dim = 0; dim < array.ndim(); ++dim) {
    if (array.strides(dim) % array.itemsize() != 0)
      throw ShapeError(std::string(name) + ": its elements do not lie at multiples of their size");
    view_.strides[static_cast<std::size_t>(dim)] = array.strides(dim) / array.itemsize();
  }
}

py::object to_python(Tensor&& tensor, bool as_torch) {
  const TensorView view = tensor.view();
  if (as_torch) return to_torch(std::move(tensor), view);
  auto* owned = new Tensor(std::move(tensor));
  return to_array(view, py::capsule(owned, [](void* owner) { delete static_cast<Tensor*>(owner); }));
}

py::object to_python(const TensorView& view, const py::object& owner, bool as_torch) {
  if (as_torch) return to_torch(owner, view);
  py::array array = to_array(view, owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::object Borrowed::hand_over(Tensor&& result) const {
  py::object array = to_python(std::move(result), is_torch_);
  if (is_torch_ || py::isinstance<py::array>(object_) || !py::hasattr(object_, "__array_namespace__")) return array;
  return object_.attr("__array_namespace__")().attr("asarray")(std::move(array));
}

}  // namespace reticle::bindings
