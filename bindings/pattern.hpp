// The forms of a mask that Python can pass: a Mask, a pattern over a caller's tensor, a plan, or None.
#pragma once

#include <memory>
#include <optional>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <variant>

#include <reticle/attention/pattern.hpp>
#include <reticle/attention/plan.hpp>

#include "tensor.hpp"

namespace reticle::bindings {

/// A pattern, and the tensor that it views.
struct HeldPattern {
  std::shared_ptr<const Borrowed> tensor;
  Pattern pattern;
};

using GivenMask = std::optional<std::variant<Mask, HeldPattern, AttentionPlan>>;

/// Calls body(pattern) or body(plan); None is a mask of all keys.
template <class Body>
decltype(auto) with_mask(const GivenMask& given, const MaskShape& shape, Body&& body) {
  if (!given) return body(Pattern(Mask::full(shape)));
  if (const auto* const plan = std::get_if<AttentionPlan>(&*given)) return body(*plan);
  if (const auto* const held = std::get_if<HeldPattern>(&*given)) return body(held->pattern);
  return body(Pattern(std::get<Mask>(*given)));
}

}  // namespace reticle::bindings
