#include <algorithm>
#include <string>
#include <vector>

#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/cuda/reductions.cuh>
#include <reticle/core/mask/convert.hpp>

namespace reticle::cuda {
namespace {

// Kernels: one block for each stored row.

template <class Op>
struct CombineLists {
  static constexpr int kThreads = kMaskThreads, kBlocks = 8;
  using Shared = CombineShared;
  ColumnLists a;
  RowMap rows_of_a;
  ColumnLists b;
  RowMap rows_of_b;
  ColumnLists to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& shared, Index row) const {
    combine_lists<Op>(block, shared, ColumnList::of(a, rows_of_a.of(row)), ColumnList::of(b, rows_of_b.of(row)), to,
                      row);
  }
};

template <class Op>
struct CombineWords {
  static constexpr int kThreads = kMaskThreads;
  const std::uint64_t* a;
  RowMap rows_of_a;
  const std::uint64_t* b;
  RowMap rows_of_b;
  std::uint64_t* to;
  int width;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index row) const {
    const Index from_a = rows_of_a.of(row) * width, from_b = rows_of_b.of(row) * width;
    block.each([&](int thread) {
      for (int w = thread; w < width; w += kThreads)
        to[row * width + w] = combine_bits<Op>(a[from_a + w], b[from_b + w]);
    });
  }
};

struct BitsOfLists {
  static constexpr int kThreads = kMaskThreads;
  ColumnLists lists;
  std::uint64_t* to;
  int width;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Index row) const {
    const ColumnList list = ColumnList::of(lists, row);
    block.each([&](int thread) {
      for (int w = thread; w < width; w += kThreads) to[row * width + w] = word_of_list(list, w);
    });
  }
};

struct ListsOfBits {
  static constexpr int kThreads = kMaskThreads;
  using Shared = int[kWarp + 1];
  const std::uint64_t* words;
  int width;
  ColumnLists to;

  template <class Block>
  RETICLE_HD void operator()(const Block& block, Shared& scan, Index row) const {
    list_words(
        block, scan, [&](int w) { return words[row * width + w]; }, width, to, row);
  }
};

template <class T>
std::size_t bytes_for(Index elements) {
  return static_cast<std::size_t>(elements) * sizeof(T);
}

}  // namespace

struct StoredMask::State {
  MaskShape shape;
  bool bits, weighted;
  Index list_size = 0;
  int device = current_device();
  Buffer words{}, columns{}, p{}, counts{};

  int width() const { return static_cast<int>(BitDense::words_per_row(shape.keys)); }
  ColumnLists lists() const {
    return {columns.as<std::int32_t>(), p.as<float>(), counts.as<std::int32_t>(), list_size};
  }

  static std::shared_ptr<State> make_bits(const MaskShape& shape, Stream stream) {
    auto state = std::make_shared<State>(State{shape, true, false});
    state->words = Buffer(bytes_for<std::uint64_t>(shape.stored_rows() * state->width()), stream);
    return state;
  }
  static std::shared_ptr<State> make_lists(const MaskShape& shape, bool weighted, Index list_size, Stream stream) {
    const Index rows = shape.stored_rows();
    auto state = std::make_shared<State>(State{shape, false, weighted, list_size});
    state->columns = Buffer(bytes_for<std::int32_t>(rows * list_size), stream);
    if (weighted) state->p = Buffer(bytes_for<float>(rows * list_size), stream);
    state->counts = Buffer(bytes_for<std::int32_t>(rows), stream);
    return state;
  }
};

StoredMask::StoredMask(std::shared_ptr<const State> state) : state_(std::move(state)) {}
StoredMask::~StoredMask() = default;

StoredMask::StoredMask(const Mask& mask, Stream stream) {
  if (!mask.weighted() && mask.density() > 1.0 / 32) {
    const Mask bits = convert(mask, MaskKind::bits);
    auto state = State::make_bits(bits.shape(), stream);
    state->words.copy_from(std::get<BitDense>(bits.representation()).words.data(), stream);
    state_ = std::move(state);
    return;
  }
  const Mask listed = convert(mask, MaskKind::csr);
  const PaddedLists padded = padded_lists(std::get<Csr>(listed.representation()));
  auto state = State::make_lists(listed.shape(), !padded.p.empty(), padded.list_size, stream);
  state->columns.copy_from(padded.columns.data(), stream);
  state->p.copy_from(padded.p.data(), stream);
  state->counts.copy_from(padded.counts.data(), stream);
  state_ = std::move(state);
}

StoredMask::StoredMask(const MaskShape& shape, const KeyLists& lists, Stream stream) {
  auto state = State::make_lists(shape.unshared(), lists.p != nullptr, lists.list_size, stream);
  state->columns.copy_on_device(lists.indices, stream);
  state->p.copy_on_device(lists.p, stream);
  state->counts.copy_on_device(lists.counts, stream);
  state_ = std::move(state);
}

const StoredMask& StoredMask::of(const Mask& mask) {
  const auto* const stored = dynamic_cast<const StoredMask*>(mask.on_device());
  if (stored == nullptr)
    throw DeviceError("mask " + mask.shape().describe() + ": on " + mask.device().describe() +
                      "; expected a mask on a GPU (Mask::to)");
  return *stored;
}

Device StoredMask::device() const { return {Device::Kind::cuda, state_->device}; }
const MaskShape& StoredMask::shape() const { return state_->shape; }
bool StoredMask::is_bits() const { return state_->bits; }
bool StoredMask::weighted() const { return state_->weighted; }
Index StoredMask::list_size() const { return state_->list_size; }
const std::uint64_t* StoredMask::words() const { return state_->words.as<std::uint64_t>(); }
ColumnLists StoredMask::lists() const { return state_->lists(); }

Index StoredMask::bytes() const {
  const State& state = *state_;
  return static_cast<Index>(state.words.bytes() + state.columns.bytes() + state.p.bytes() + state.counts.bytes());
}

Index StoredMask::nnz(const Context& context) const {
  const State& state = *state_;
  const Index rows = state.shape.stored_rows();
  const Index stored = state.bits ? bits_set(words(), rows * state.width(), context.stream)
                                  : sum_of(state.counts.as<std::int32_t>(), rows, context.stream);
  return stored * state.shape.rows_per_stored_row();
}

Mask StoredMask::to_host(const Context& context) const {
  const State& state = *state_;
  const Index rows = state.shape.stored_rows();
  if (state.bits) {
    Array<std::uint64_t> words(static_cast<std::size_t>(rows * state.width()));
    state.words.copy_to(words.data(), context.stream);
    return Mask::bits(state.shape, std::move(words));
  }
  const auto entries = static_cast<std::size_t>(rows * state.list_size);
  PaddedLists padded{state.list_size, Array<std::int32_t>(entries), Array<float>(state.weighted ? entries : 0),
                     std::vector<std::int32_t>(static_cast<std::size_t>(rows))};
  state.columns.copy_to(padded.columns.data(), context.stream);
  state.p.copy_to(padded.p.data(), context.stream);
  state.counts.copy_to(padded.counts.data(), context.stream);
  Csr csr = csr_of(padded);
  return Mask::csr(state.shape, std::move(csr.row_ptr), std::move(csr.indices), std::move(csr.p));
}

std::shared_ptr<const StoredMask> StoredMask::as_bits(Stream stream) const {
  if (state_->bits) return std::shared_ptr<const StoredMask>(new StoredMask(state_));
  if (state_->weighted) throw ValueError("bits of a mask on the device: it is weighted; bits hold no p");
  auto state = State::make_bits(state_->shape, stream);
  launch(BitsOfLists{state_->lists(), state->words.as<std::uint64_t>(), state->width()}, state->shape.stored_rows(),
         stream, "bits of a mask");
  return std::shared_ptr<const StoredMask>(new StoredMask(std::move(state)));
}

std::shared_ptr<const StoredMask> StoredMask::as_lists(Stream stream) const {
  if (!state_->bits) return std::shared_ptr<const StoredMask>(new StoredMask(state_));
  auto state = State::make_lists(state_->shape, false, state_->shape.keys, stream);
  launch(ListsOfBits{words(), state->width(), state->lists()}, state->shape.stored_rows(), stream, "lists of a mask");
  return std::shared_ptr<const StoredMask>(new StoredMask(std::move(state)));
}

template <class Op>
std::shared_ptr<const StoredMask> StoredMask::combined(const StoredMask& a, const StoredMask& b, const char* operation,
                                                       Stream stream) {
  a.shape().require_same_logical(b.shape(), operation);
  const MaskShape shape = a.shape().sharing_both(b.shape());
  const RowMap map_a = RowMap::between(shape, a.shape()), map_b = RowMap::between(shape, b.shape());
  const bool weighted = a.weighted() || b.weighted();
  std::shared_ptr<State> state;
  if (!weighted && (a.is_bits() || b.is_bits())) {
    const auto left = a.as_bits(stream), right = b.as_bits(stream);
    state = State::make_bits(shape, stream);
    launch(
        CombineWords<Op>{left->words(), map_a, right->words(), map_b, state->words.as<std::uint64_t>(), state->width()},
        shape.stored_rows(), stream, operation);
  } else {
    const auto left = a.as_lists(stream), right = b.as_lists(stream);
    state = State::make_lists(shape, weighted, room_for<Op>(left->list_size(), right->list_size(), shape.keys), stream);
    launch(CombineLists<Op>{left->lists(), map_a, right->lists(), map_b, state->lists()}, shape.stored_rows(), stream,
           operation);
  }
  return std::shared_ptr<const StoredMask>(new StoredMask(std::move(state)));
}

std::shared_ptr<const DeviceStorage> StoredMask::combine(const DeviceStorage& other, SetOp op,
                                                         const Context& context) const {
  const auto& b = dynamic_cast<const StoredMask&>(other);
  return with_functor(op, [&]<class Op>(Op) {
    const char* const name = is_union(op) ? "merge" : op == SetOp::intersect ? "intersect" : "subtract";
    return combined<Op>(*this, b, name, context.stream);
  });
}

Mask mask_of_lists(const MaskShape& shape, const KeyLists& lists, Stream stream) {
  return Mask::stored(std::make_shared<StoredMask>(shape, lists, stream));
}

Index entries_of_lists(const KeyLists& lists, Index rows, Stream stream) { return sum_of(lists.counts, rows, stream); }

}  // namespace reticle::cuda

namespace reticle {

std::shared_ptr<const DeviceStorage> store_on_gpu(const Mask& mask, const Context& context) {
  return std::make_shared<cuda::StoredMask>(mask, context.stream);
}

}  // namespace reticle
