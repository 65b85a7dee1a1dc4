#include <algorithm>
#include <cblas.h>
#include <string>
#include <vector>

#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/tile_kernel.hpp>
#include <reticle/core/ops/dot.hpp>

namespace reticle {
namespace {

/// Up to this many rows, reading the weights costs more than the multiply-adds.
constexpr Index kFewRows = 2 * kQueriesPerPass;

/// Multiply-adds below which waking threads costs more than they save.
constexpr double kMinWorkForThreads = 1e6;

/// Weight rows that are converted to floats together: with 4096 inputs 4 MB, which fits into a last-level cache.
constexpr Index kPanelRows = 256;

const float* floats(const TensorView& view) { return static_cast<const float*>(view.data); }

void require_matrix(const TensorView& view, const char* name) {
  require_rank(view, 2, name);
  require_on(view, Device::Kind::cpu, name);
  if (view.dtype != DType::f32 || !view.contiguous())
    throw ShapeError(std::string(name) + ": is " + view.describe() + "; expected contiguous F32");
  // BLAS takes sizes as int.
  if (view.size(0) > kMaxColumns || view.size(1) > kMaxColumns)
    throw ShapeError(std::string(name) + ": is " + view.describe() + "; at most 2^31 - 1 rows and columns");
}

/// c (m, n) = a b, each as stored or transposed; leading dimensions are those of the matrices as stored.
void multiply(CBLAS_TRANSPOSE a_as, CBLAS_TRANSPOSE b_as, Index m, Index n, Index k, const float* a, Index lda,
              const float* b, Index ldb, float* c, Index ldc) {
  if (m == 0 || n == 0) return;
  cblas_sgemm(CblasRowMajor, a_as, b_as, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), 1, a,
              static_cast<int>(std::max<Index>(1, lda)), b, static_cast<int>(std::max<Index>(1, ldb)), 0, c,
              static_cast<int>(std::max<Index>(1, ldc)));
}

}  // namespace

Tensor linear(const TensorView& x, const TensorView& weight, const Context& context) {
  require_matrix(x, "linear: x");
  require_rank(weight, 2, "linear: weight");
  const Index rows = x.size(0), in = x.size(1), out = weight.size(0);
  if (weight.size(1) != in || weight.stride(1) != 1 || out > kMaxColumns)
    throw ShapeError("linear: x " + x.describe() + " and weight " + weight.describe() + "; expected a weight (out, " +
                     std::to_string(in) + ") whose rows are contiguous");
  Tensor y(DType::f32, {rows, out});
  float* to = y.span<float>().data();
  if (rows <= kFewRows) {
    const auto work = static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
    const Index per_chunk = work < kMinWorkForThreads ? std::max<Index>(1, out) : std::max<Index>(64, out / 64);
    context.for_each_chunk(out, per_chunk, [&](Index, Index begin, Index end) {
      const TensorView part = weight.slice(0, begin, end);
      for (Index row = 0; row < rows; row += kQueriesPerPass)
        dot(floats(x) + row * in, std::min(kQueriesPerPass, rows - row), part, to + row * out + begin, out);
    });
    return y;
  }
  if (weight.dtype == DType::f32) {
    multiply(CblasNoTrans, CblasTrans, rows, out, in, floats(x), in, floats(weight), weight.stride(0), to, out);
    return y;
  }
  std::vector<float> panel(static_cast<std::size_t>(std::min(kPanelRows, out) * in));
  for (Index begin = 0; begin < out; begin += kPanelRows) {
    const Index count = std::min(kPanelRows, out - begin);
    pack_rows(weight.slice(0, begin, begin + count), nullptr, count, panel.data());
    multiply(CblasNoTrans, CblasTrans, rows, count, in, floats(x), in, panel.data(), in, to + begin, out);
  }
  return y;
}

LinearGradients linear_backward(const TensorView& x, const TensorView& weight, const TensorView& dy) {
  require_matrix(x, "linear_backward: x");
  require_matrix(weight, "linear_backward: weight");
  require_matrix(dy, "linear_backward: dy");
  const Index rows = x.size(0), in = x.size(1), out = weight.size(0);
  if (weight.size(1) != in || dy.size(0) != rows || dy.size(1) != out)
    throw ShapeError("linear_backward: x " + x.describe() + ", weight " + weight.describe() + " and dy " +
                     dy.describe() + " do not fit together; expected (n, in), (out, in) and (n, out)");
  LinearGradients gradients{Tensor(DType::f32, {rows, in}), Tensor(DType::f32, {out, in})};
  const auto dx = gradients.x.span<float>(), dw = gradients.weight.span<float>();
  std::fill(dx.begin(), dx.end(), 0.0f);
  std::fill(dw.begin(), dw.end(), 0.0f);
  multiply(CblasNoTrans, CblasNoTrans, rows, in, out, floats(dy), out, floats(weight), in, dx.data(), in);
  multiply(CblasTrans, CblasNoTrans, out, in, rows, floats(dy), out, floats(x), in, dw.data(), in);
  return gradients;
}

}  // namespace reticle
