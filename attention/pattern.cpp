#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include <reticle/attention/pattern.hpp>
#include <reticle/core/cuda/tensor.hpp>

namespace reticle {
namespace {

constexpr Index kMaxKeys = std::numeric_limits<std::int32_t>::max();  // keys of a mask; products stay within Index

void require_within(Index size, Index min_size, const char* name) {
  if (size < min_size || size > kMaxKeys)
    throw ValueError("mask: " + std::string(name) + " is " + std::to_string(size) + "; expected " +
                     std::to_string(min_size) + " to " + std::to_string(kMaxKeys));
}

void require_positive(Index size, const char* name) { require_within(size, 1, name); }

Index blocks_of(Index extent, Index block) { return (extent + block - 1) / block; }

/// A pattern's tensor (b, h, rows, n), copied to the host; ShapeError unless its dtype and extents fit.
class HostTensor {
 public:
  HostTensor(const TensorView& given, bool right_dtype, const char* dtype, const MaskShape& extents,
             const Context& context) {
    const Index wanted[] = {extents.batch, extents.heads, extents.queries, extents.keys};
    bool fits = given.rank == 4 && right_dtype && given.size(3) == wanted[3];
    for (int dim = 0; fits && dim < 3; ++dim) fits = given.size(dim) == wanted[dim] || given.size(dim) == 1;
    if (!fits)
      throw ShapeError("mask: " + given.describe() + "; expected " + dtype + " " + extents.describe() +
                       ", or a dimension of 1 where it is shared");
    packed_ = copy_to(given, Device(), context);
  }
  template <class T>
  const T* row(Index batch, Index head, Index query) const {
    const TensorView& view = packed_.view();
    const auto at = [&](int dim, Index i) { return view.size(dim) == 1 ? 0 : i * view.stride(dim); };
    return static_cast<const T*>(view.data) + at(0, batch) + at(1, head) + at(2, query);
  }

 private:
  Tensor packed_;
};

struct ToMask {
  const AttentionInputs& inputs;
  const Context& context;

  Mask operator()(const Mask& mask) const { return mask.to(Device(), context); }

  Mask operator()(const AttendedBytes& bytes) const {
    require_positive(bytes.block_queries, "block_queries");
    require_positive(bytes.block_keys, "block_keys");
    const MaskShape shape = inputs.shape();
    const Index blocks = blocks_of(shape.keys, bytes.block_keys);
    const DType dtype = bytes.attended.dtype;
    const HostTensor attended(bytes.attended, dtype == DType::boolean || dtype == DType::u8, "BOOL",
                              {shape.batch, shape.heads, blocks_of(shape.queries, bytes.block_queries), blocks},
                              context);
    return Mask::from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const auto* const row_bytes =
              attended.row<std::uint8_t>(row.batch, row.head, row.query / bytes.block_queries);
          for (Index begin = 0; begin < blocks; ++begin) {
            if (row_bytes[begin] == 0) continue;
            Index end = begin + 1;
            while (end < blocks && row_bytes[end] != 0) ++end;
            emit(Run{static_cast<std::int32_t>(begin * bytes.block_keys),
                     static_cast<std::int32_t>(std::min(end * bytes.block_keys, shape.keys)), 1.0f});
            begin = end;
          }
        },
        context);
  }

  Mask operator()(const NumberedKeyBlocks& blocks) const {
    require_positive(blocks.block_size, "block_size");
    const MaskShape shape = inputs.shape();
    const Index count = blocks.numbers.rank == 4 ? blocks.numbers.size(3) : 0;
    const HostTensor numbers(blocks.numbers, blocks.numbers.dtype == DType::i32, "I32",
                             {shape.batch, inputs.kv_heads(), shape.queries, count}, context);
    return Mask::from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const auto* const row_blocks = numbers.row<std::int32_t>(row.batch, inputs.kv_head(row.head), row.query);
          const Index visible = std::clamp<Index>(inputs.position(row.query) + 1, 0, shape.keys);
          RunJoiner join(emit);
          Index last = 0;  // a block that is named twice counts once
          for (Index i = 0; i < count && row_blocks[i] != -1; ++i) {
            if (row_blocks[i] < 0 || row_blocks[i] * blocks.block_size >= shape.keys)
              throw ShapeError("mask: there is no block " + std::to_string(row_blocks[i]) + " of " +
                               std::to_string(blocks.block_size) + " in " + std::to_string(shape.keys) +
                               " keys; expected numbers from 0, and -1 behind them");
            const Index begin = std::max(last, row_blocks[i] * blocks.block_size),
                        end = std::min((row_blocks[i] + Index{1}) * blocks.block_size, visible);
            if (begin >= end) continue;
            join(static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), 1.0f);
            last = end;
          }
          join.flush();
        },
        context);
  }

  Mask operator()(const Band& band) const {
    require_positive(band.kernel, "kernel");
    require_positive(band.stride, "stride");
    require_positive(band.width, "width");
    require_within(band.first_query, 0, "first_query");
    MaskShape shape = inputs.shape();
    shape.shared_batch = shape.shared_heads = true;
    return Mask::intervals(
        shape,
        [&](RowId row) {
          const Index ready = row.query + band.first_query + 1 - band.kernel;
          const Index complete = ready < 0 ? 0 : ready / band.stride + 1;
          return Interval{static_cast<std::int32_t>(std::min(std::max<Index>(0, complete - band.width), shape.keys)),
                          static_cast<std::int32_t>(std::min(complete, shape.keys))};
        },
        context);
  }
};

}  // namespace

Mask mask_of(const Pattern& pattern, const AttentionInputs& inputs, const Context& context) {
  return std::visit(ToMask{inputs, context}, pattern);
}

}  // namespace reticle
