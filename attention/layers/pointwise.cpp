#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include <reticle/attention/layers/pointwise.hpp>

namespace reticle {
namespace {

/// Elements per task.
constexpr Index kPerTask = 1 << 15;

void require_same(std::size_t a, std::size_t b, const char* what) {
  if (a != b)
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " and " + std::to_string(b) +
                     " elements; expected as many");
}

}  // namespace

Tensor rms_norm(const TensorView& x, const TensorView& weight, float epsilon, const Context& context) {
  require_rank(x, 2, "rms_norm: x");
  require_rank(weight, 1, "rms_norm: weight");
  if (weight.size(0) != x.size(1) || x.dtype != DType::f32 || !x.contiguous())
    throw ShapeError("rms_norm: x " + x.describe() + " and weight " + weight.describe() +
                     "; expected contiguous F32 (n, width) and (width)");
  const Index width = x.size(1);
  const Tensor scale = Tensor::copy(weight, DType::f32);
  Tensor y(DType::f32, {x.size(0), width});
  const auto factors = scale.span<float>();
  float* const all = y.span<float>().data();
  context.for_each_chunk(
      x.size(0), std::max<Index>(1, kPerTask / std::max<Index>(1, width)), [&](Index, Index begin, Index end) {
        for (Index row = begin; row < end; ++row) {
          const float* from = x.at<float>(row, 0);
          float* to = all + row * width;
          double squares = 0;
          for (Index i = 0; i < width; ++i) squares += static_cast<double>(from[i]) * static_cast<double>(from[i]);
          const auto inverse =
              static_cast<float>(1 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(epsilon)));
          for (Index i = 0; i < width; ++i) to[i] = factors[static_cast<std::size_t>(i)] * (from[i] * inverse);
        }
      });
  return y;
}

void swiglu(std::span<float> gate, std::span<const float> up, const Context& context) {
  require_same(gate.size(), up.size(), "swiglu");
  context.for_each_chunk(static_cast<Index>(gate.size()), kPerTask, [&](Index, Index begin, Index end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  });
}

void add(std::span<float> x, std::span<const float> y) {
  require_same(x.size(), y.size(), "add");
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace reticle
