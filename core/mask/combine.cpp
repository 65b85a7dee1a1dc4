#include <array>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/base/thread_scratch.hpp>
#include <reticle/core/mask/combine.hpp>
#include <reticle/core/mask/device_storage.hpp>
#include <reticle/core/mask/fast_paths.hpp>

namespace reticle {

Mask conformed(const MaskShape& shape, Representation representation, const MaskCounts& counts, MaskKind kind,
               const Context& context) {
  Mask result = MaskAssembler::make(shape, std::move(representation), counts.entries, counts.weighted);
  if (conform(shape, counts) == kind) return result;
  return assemble(
      shape,
      [&](RowId row, FunctionRef<void(Run)> emit) {
        std::visit([&](const auto& rep) { for_each_run(rep, shape.stored_row(row), shape.keys, emit); },
                   result.representation());
      },
      context);
}

namespace {

void decode(const Mask& mask, RowId row, std::vector<Run>& runs) {
  runs.clear();
  mask.row(row, runs);
}

/// A way to combine two masks that replaces the general merge of runs where it applies.
struct FastPath {
  bool (*applies)(SetOp op, const Mask& a, const Mask& b);
  Mask (*combine)(SetOp op, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context);
};

bool has_kind(MaskKind kind, const Mask& a, const Mask& b) { return a.kind() == kind || b.kind() == kind; }
bool any_weighted(const Mask& a, const Mask& b) { return a.weighted() || b.weighted(); }

/// The first path that applies is taken. Each is here because measurements asked for it (docs/performance.md).
constexpr FastPath kFastPaths[] = {
    {[](SetOp, const Mask& a, const Mask& b) { return a.kind() == MaskKind::bits && b.kind() == MaskKind::bits; },
     combine_bits},
    {[](SetOp op, const Mask& a, const Mask& b) {
       const bool as_lists = merges_by_columns(a, b) && any_weighted(a, b) && forms_dense_union(a, b);
       return is_union(op) && (has_kind(MaskKind::dense, a, b) || as_lists);
     },
     unite_as_dense},
    {[](SetOp op, const Mask& a, const Mask& b) {
       return is_union(op) && has_kind(MaskKind::bits, a, b) && !any_weighted(a, b);
     },
     [](SetOp, const MaskShape& shape, const Mask& a, const Mask& b, const Context& context) {
       return unite_as_bits(shape, a, b, context);
     }},
    {[](SetOp op, const Mask& a, const Mask& b) { return is_union(op) && merges_by_columns(a, b); }, unite_columns},
};

const char* name_of(SetOp op) { return is_union(op) ? "merge" : op == SetOp::intersect ? "intersect" : "subtract"; }

/// Combines two masks on a GPU, where at least one of them lies. A full mask, which belongs to no device, is stored
/// there first.
Mask combine_on_device(SetOp op, const Mask& a, const Mask& b, const Context& context) {
  std::shared_ptr<const DeviceStorage> moved;
  const auto storage_of = [&](const Mask& mask) -> const DeviceStorage& {
    if (mask.on_device() != nullptr) return *mask.on_device();
    if (mask.kind() != MaskKind::full)
      throw DeviceError(std::string(name_of(op)) + ": one mask lies on " + a.device().describe() + ", the other on " +
                        b.device().describe() + "; expected one device (to() brings a mask to another)");
    moved = store_on_gpu(mask, context);
    return *moved;
  };
  const DeviceStorage& left = storage_of(a);
  const DeviceStorage& right = storage_of(b);
  return Mask::stored(left.combine(right, op, context));
}

Mask combine_on_host(SetOp op, const Mask& a, const Mask& b, const Context& context) {
  const MaskShape shape = a.shape().sharing_both(b.shape());
  if (shape.positions() > 0) {
    for (const FastPath& path : kFastPaths) {
      if (path.applies(op, a, b)) return path.combine(op, shape, a, b, context);
    }
  }
  return with_functor(op, [&]<class Op>(Op) {
    return assemble(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          static thread_local constinit ThreadScratch<std::array<std::vector<Run>, 2>> scratch;
          auto& [left, right] = scratch.get();
          decode(a, row, left);
          decode(b, row, right);
          combine_rows<Op>(left, right, emit);
        },
        context);
  });
}

}  // namespace

Mask combine(const Mask& a, const Mask& b, SetOp op, const Context& context) {
  a.shape().require_same_logical(b.shape(), name_of(op));
  const bool none_in_a = a.kind() == MaskKind::empty, none_in_b = b.kind() == MaskKind::empty;
  const bool all_in_a = a.kind() == MaskKind::full, all_in_b = b.kind() == MaskKind::full;
  if (is_union(op)) {
    if (none_in_a || all_in_b) return b;
    if (none_in_b || all_in_a) return a;
  } else if (op == SetOp::intersect) {
    if (none_in_a || all_in_b) return a;
    if (none_in_b || all_in_a) return b;
  } else {
    if (none_in_a || none_in_b) return a;
    if (all_in_b) return Mask::empty(a.shape());
  }
  const bool on_device = a.on_device() != nullptr || b.on_device() != nullptr;
  return on_device ? combine_on_device(op, a, b, context) : combine_on_host(op, a, b, context);
}

Mask merge(const Mask& a, const Mask& b, MergeRule rule, const Context& context) {
  return combine(a, b, op_of(rule), context);
}

Mask complement(const Mask& mask, const Context& context) {
  if (mask.weighted())
    throw ShapeError("complement: " + describe(mask) +
                     " has p below 1; only a 0/1 mask has a complement (see support)");
  return subtract(Mask::full(mask.shape()), mask, context);
}

Mask support(const Mask& mask, const Context& context) {
  if (!mask.weighted()) return mask;
  return assemble(
      mask.shape(),
      [&](RowId row, FunctionRef<void(Run)> emit) {
        static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
        std::vector<Run>& runs = scratch.get();
        decode(mask, row, runs);
        for (const Run& run : runs) emit(Run{run.begin, run.end, 1.0f});
      },
      context);
}

}  // namespace reticle
