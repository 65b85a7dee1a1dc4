#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>

#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/tensor.hpp>
#include <reticle/core/cuda/tensors.cuh>

namespace reticle::cuda {
namespace {

constexpr int kCopyThreads = 256;

/// The elements of a tensor of up to four dimensions, addressed by strides.
struct Elements {
  const void* data = nullptr;
  Index extents[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};

  /// Missing dimensions have extent 1.
  static Elements of(const TensorView& view) {
    if (view.rank > 4) throw ShapeError("a tensor on a GPU: " + view.describe() + "; expected at most 4 dimensions");
    Elements elements;
    elements.data = view.data;
    for (int dim = 0; dim < view.rank; ++dim) {
      elements.extents[4 - view.rank + dim] = view.size(dim);
      elements.strides[4 - view.rank + dim] = view.stride(dim);
    }
    return elements;
  }
  RETICLE_HD Index rows() const { return extents[0] * extents[1] * extents[2]; }
  /// Offset of row number `row`.
  RETICLE_HD Index row(Index row) const {
    const Index query = row % extents[2], head = row / extents[2] % extents[1], batch = row / extents[2] / extents[1];
    return batch * strides[0] + head * strides[1] + query * strides[2];
  }
};

/// Copies elements by their size, whatever their dtype.
template <class Word>
struct PackRows {
  static constexpr int kThreads = kCopyThreads;
  Elements from;
  Index width;
  Word* to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto* const source = static_cast<const Word*>(from.data);
    block.each([&](int thread) {
      const Index i = number * kThreads + thread;
      if (i >= from.rows() * width) return;
      const Index element = i % width;
      to[i] = element < from.extents[3] ? source[from.row(i / width) + element * from.strides[3]] : Word{};
    });
  }
};

template <class T>
struct ToBias {
  static constexpr int kThreads = kCopyThreads;
  Elements from;
  float* to;
  float forbidden;  // this value and lower ones forbid a key

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index number) const {
    const auto* const source = static_cast<const T*>(from.data);
    block.each([&](int thread) {
      const Index i = number * kThreads + thread;
      if (i >= from.rows() * from.extents[3]) return;
      const T given = source[from.row(i / from.extents[3]) + i % from.extents[3] * from.strides[3]];
      if constexpr (std::is_same_v<T, std::uint8_t>) {
        to[i] = given != 0 ? 0.0f : -std::numeric_limits<float>::infinity();
      } else {
        const float bias = to_float(given);
        to[i] = bias <= forbidden ? -std::numeric_limits<float>::infinity() : bias;
      }
    });
  }
};

Index blocks_for(Index elements) { return (elements + kCopyThreads - 1) / kCopyThreads; }

/// Calls body with an unsigned type of the dtype's size.
template <class Body>
void dispatch_bytes(DType dtype, Body&& body) {
  switch (size_of(dtype)) {
    case 8:
      return body.template operator()<std::uint64_t>();
    case 4:
      return body.template operator()<std::uint32_t>();
    case 2:
      return body.template operator()<std::uint16_t>();
    default:
      return body.template operator()<std::uint8_t>();
  }
}

/// Whether rows can be read 16 bytes at a time.
bool is_aligned(const TensorView& view) {
  const auto element = static_cast<std::uintptr_t>(size_of(view.dtype));
  bool aligned = view.stride(3) == 1 && reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int dim = 0; dim < 3; ++dim)
    aligned &= view.size(dim) < 2 || static_cast<std::uintptr_t>(view.stride(dim)) * element % 16 == 0;
  return aligned;
}

}  // namespace

Tensor empty_tensor(DType dtype, std::span<const Index> shape, Stream stream) {
  TensorView view(nullptr, dtype, shape);
  const auto buffer = std::make_shared<Buffer>(
      static_cast<std::size_t>(view.elements()) * static_cast<std::size_t>(size_of(dtype)), stream);
  if (view.elements() > 0) view.data = buffer->as<void>();
  view.device = {Device::Kind::cuda, current_device()};
  return {view, buffer};
}

void pack_rows(const TensorView& tensor, Index width, void* to, Stream stream) {
  const Elements from = Elements::of(tensor);
  dispatch_bytes(tensor.dtype, [&]<class Word>() {
    launch(PackRows<Word>{from, width, static_cast<Word*>(to)}, blocks_for(from.rows() * width), stream,
           "copying a tensor");
  });
}

Tensor packed_rows(const TensorView& tensor, Index width, Stream stream) {
  const Index shape[] = {tensor.size(0), tensor.size(1), tensor.size(2), width};
  Tensor packed = empty_tensor(tensor.dtype, shape, stream);
  pack_rows(tensor, width, packed.data(), stream);
  return packed;
}

Tensor as_bias(const TensorView& mask, Stream stream) {
  const Elements from = Elements::of(mask);
  Tensor bias = empty_tensor(DType::f32, std::span(mask.shape.data(), static_cast<std::size_t>(mask.rank)), stream);
  auto* const to = static_cast<float*>(bias.data());
  const auto convert = [&]<class T>(float lowest) {
    launch(ToBias<T>{from, to, lowest / 2}, blocks_for(from.rows() * from.extents[3]), stream,
           "reading the attention mask");
  };
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  switch (mask.dtype) {
    case DType::f32:
      convert.template operator()<float>(kLowest);
      break;
    case DType::f16:
      convert.template operator()<Half>(-65504.0f);
      break;
    case DType::bf16:
      convert.template operator()<BFloat16>(to_float(BFloat16{0xFF7F}));
      break;
    case DType::f64:
      convert.template operator()<double>(kLowest);
      break;
    case DType::u8:
    case DType::boolean:
      convert.template operator()<std::uint8_t>(0);
      break;
    default:
      throw ShapeError(
          "attention_mask: " + mask.describe() +
          "; expected floats, which are added to the scores, or booleans, true where a key may be attended to");
  }
  return bias;
}

namespace {

/// The smallest head size with a kernel that is at least that of the inputs; 0 if there is none, and then the kernels
/// throw.
Index fitted_width(const AttentionInputs& inputs) {
  const Index widest = std::max(inputs.head_dim(), inputs.values.size(3));
  const auto* const held = std::ranges::find_if(kHeadDims, [&](Index size) { return size >= widest; });
  return held == std::end(kHeadDims) ? 0 : *held;
}

}  // namespace

AttentionInputs FittedInputs::extents(const AttentionInputs& inputs) {
  validate_on_current_gpu(inputs);
  AttentionInputs fitted = inputs;
  const Index width = fitted_width(inputs);
  for (TensorView* const view : {&fitted.queries, &fitted.keys, &fitted.values}) {
    if (width > 0) view->shape[3] = width;
  }
  return fitted;
}

FittedInputs::FittedInputs(const AttentionInputs& inputs, Stream stream)
    : width_((validate_on_current_gpu(inputs), fitted_width(inputs))), stream_(stream), inputs_(inputs) {
  inputs_.queries = fit(inputs.queries, queries_);
  inputs_.keys = fit(inputs.keys, keys_);
  inputs_.values = fit(inputs.values, values_);
  if (inputs.attention_mask && inputs.attention_mask->dtype != DType::f32) {
    attention_mask_ = as_bias(*inputs.attention_mask, stream);
    inputs_.attention_mask = attention_mask_.view();
  }
}

TensorView FittedInputs::fit(const TensorView& tensor, Tensor& copy) const {
  if (width_ == 0 || (tensor.size(3) == width_ && is_aligned(tensor))) return tensor;
  copy = packed_rows(tensor, width_, stream_);
  return copy.view();
}

FittedResult::FittedResult(DType dtype, const TensorView& rows, Index width, void* to, Stream stream)
    : width_(width), to_(to), stream_(stream) {
  if (rows.size(3) != width) beside_ = empty_tensor(dtype, std::span(rows.shape.data(), 4), stream);
}

FittedResult output_of(const AttentionInputs& given, const FittedInputs& fitted, void* output, Stream stream) {
  TensorView rows = fitted.inputs().queries;
  rows.shape[3] = fitted.inputs().values.size(3);
  return {given.queries.dtype, rows, given.values.size(3), output, stream};
}

void FittedResult::finish() const {
  if (beside_) pack_rows(beside_->view(), width_, to_, stream_);
}

}  // namespace reticle::cuda

namespace reticle {

Tensor copy_to(const TensorView& tensor, Device device, const Context& context) {
  const bool from_gpu = tensor.device.kind == Device::Kind::cuda, to_gpu = device.kind == Device::Kind::cuda;
  if (!from_gpu && !to_gpu) return Tensor::copy(tensor, tensor.dtype);
  if (is_quantised(tensor.dtype))
    throw DeviceError("copy to " + device.describe() + ": " + tensor.describe() +
                      "; quantised tensors are supported on the CPU (copy them as floats)");
  const std::span<const Index> shape(tensor.shape.data(), static_cast<std::size_t>(tensor.rank));
  const auto bytes = static_cast<std::size_t>(tensor.elements() * size_of(tensor.dtype));
  if (!from_gpu) {
    const Tensor packed = Tensor::copy(tensor, tensor.dtype);
    Tensor there = cuda::empty_tensor(tensor.dtype, shape, context.stream);
    cuda::copy_to_device(there.data(), packed.view().data, bytes, context.stream);
    return there;
  }
  Tensor packed;
  const void* data = tensor.data;
  if (to_gpu || !tensor.contiguous()) {
    packed = cuda::empty_tensor(tensor.dtype, shape, context.stream);
    cuda::pack_rows(tensor, tensor.rank == 0 ? 1 : tensor.size(tensor.rank - 1), packed.data(), context.stream);
    data = packed.view().data;
  }
  if (to_gpu) return packed;
  Tensor copied(tensor.dtype, shape);
  cuda::copy_to_host(copied.data(), data, bytes, context.stream);
  return copied;
}

}  // namespace reticle
