#include <span>
#include <string>
#include <variant>

#include <reticle/core/mask/apply.hpp>
#include <reticle/core/mask/builder.hpp>

namespace reticle {
namespace {

template <class Weigh>
Array<float> apply_with(const Mask& mask, std::span<const float> x, const Context& context, Weigh weigh) {
  const MaskShape& shape = mask.shape();
  if (static_cast<Index>(x.size()) != shape.positions())
    throw ShapeError("apply: x has " + std::to_string(x.size()) + " elements; mask " + shape.describe() + " needs " +
                     std::to_string(shape.positions()));
  Array<float> y(x.size(), 0.0f);
  context.for_each_chunk(shape.rows(), rows_per_chunk(shape.rows()), [&](Index, Index begin, Index end) {
    std::visit(
        [&](const auto& rep) {
          for (Index row = begin; row < end; ++row) {
            const Index first = row * shape.keys;
            for_each_run(rep, shape.stored_row(shape.row_of_logical(row)), shape.keys, [&](Run run) {
              for (Index k = first + run.begin; k < first + run.end; ++k)
                y[static_cast<std::size_t>(k)] = weigh(x[static_cast<std::size_t>(k)], run.p);
            });
          }
        },
        mask.representation());
  });
  return y;
}

}  // namespace

Array<float> apply(const Mask& mask, std::span<const float> x, const Context& context) {
  return apply_with(mask, x, context, [](float value, float p) { return value * p; });
}

Array<float> apply_inverse(const Mask& mask, std::span<const float> x, const Context& context) {
  return apply_with(mask, x, context, [](float value, float p) { return value / p; });
}

}  // namespace reticle
