#include <algorithm>
#include <vector>

#include <reticle/core/cuda/launch.cuh>
#include <reticle/core/cuda/mask.hpp>
#include <reticle/core/cuda/mask_block.hpp>
#include <reticle/core/cuda/reductions.cuh>
#include <reticle/core/mask/convert.hpp>

namespace reticle::cuda {
namespace {

// One block to a stored row.

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

struct DeviceMask::State {
  MaskShape shape;
  bool bits, weighted;
  Index list_size = 0;
  Buffer words{}, columns{}, p{}, counts{};

  int width() const { return static_cast<int>(BitDense::words_per_row(shape.keys)); }
  ColumnLists lists() const {
    return {columns.as<std::int32_t>(), p.as<float>(), counts.as<std::int32_t>(), list_size};
  }

  static std::shared_ptr<State> of_bits(const MaskShape& shape, Stream stream) {
    auto state = std::make_shared<State>(State{shape, true, false});
    state->words = Buffer(bytes_for<std::uint64_t>(shape.stored_rows() * state->width()), stream);
    return state;
  }
  static std::shared_ptr<State> of_lists(const MaskShape& shape, bool weighted, Index list_size, Stream stream) {
    const Index rows = shape.stored_rows();
    auto state = std::make_shared<State>(State{shape, false, weighted, list_size});
    state->columns = Buffer(bytes_for<std::int32_t>(rows * list_size), stream);
    if (weighted) state->p = Buffer(bytes_for<float>(rows * list_size), stream);
    state->counts = Buffer(bytes_for<std::int32_t>(rows), stream);
    return state;
  }
};

DeviceMask::DeviceMask(const Mask& mask, Stream stream) {
  if (!mask.weighted() && mask.density() > 1.0 / 32) {
    const Mask bits = convert(mask, MaskKind::bits);
    auto state = State::of_bits(bits.shape(), stream);
    state->words.copy_from(std::get<BitDense>(bits.representation()).words.data(), stream);
    state_ = std::move(state);
    return;
  }
  const Mask listed = convert(mask, MaskKind::csr);
  const PaddedLists padded = padded_lists(std::get<Csr>(listed.representation()));
  auto state = State::of_lists(listed.shape(), !padded.p.empty(), padded.list_size, stream);
  state->columns.copy_from(padded.columns.data(), stream);
  state->p.copy_from(padded.p.data(), stream);
  state->counts.copy_from(padded.counts.data(), stream);
  state_ = std::move(state);
}

const MaskShape& DeviceMask::shape() const { return state_->shape; }
bool DeviceMask::is_bits() const { return state_->bits; }
bool DeviceMask::weighted() const { return state_->weighted; }
Index DeviceMask::list_size() const { return state_->list_size; }
const std::uint64_t* DeviceMask::words() const { return state_->words.as<std::uint64_t>(); }
ColumnLists DeviceMask::lists() const { return state_->lists(); }

Index DeviceMask::bytes() const {
  const State& own = *state_;
  return static_cast<Index>(own.words.bytes() + own.columns.bytes() + own.p.bytes() + own.counts.bytes());
}

Index DeviceMask::nnz(Stream stream) const {
  const State& own = *state_;
  const Index rows = own.shape.stored_rows();
  const Index stored =
      own.bits ? bits_set(words(), rows * own.width(), stream) : sum_of(own.counts.as<std::int32_t>(), rows, stream);
  return stored * own.shape.rows_per_stored_row();
}

Mask DeviceMask::to_host(Stream stream) const {
  const State& own = *state_;
  const Index rows = own.shape.stored_rows();
  if (own.bits) {
    Array<std::uint64_t> words(static_cast<std::size_t>(rows * own.width()));
    own.words.copy_to(words.data(), stream);
    return Mask::bits(own.shape, std::move(words));
  }
  const auto entries = static_cast<std::size_t>(rows * own.list_size);
  PaddedLists padded{own.list_size, Array<std::int32_t>(entries), Array<float>(own.weighted ? entries : 0),
                     std::vector<std::int32_t>(static_cast<std::size_t>(rows))};
  own.columns.copy_to(padded.columns.data(), stream);
  own.p.copy_to(padded.p.data(), stream);
  own.counts.copy_to(padded.counts.data(), stream);
  Csr csr = csr_of(padded);
  return Mask::csr(own.shape, std::move(csr.row_ptr), std::move(csr.indices), std::move(csr.p));
}

DeviceMask DeviceMask::as_bits(Stream stream) const {
  if (state_->bits) return *this;
  if (state_->weighted) throw ValueError("bits of a mask on the device: it is weighted; bits hold no p");
  auto state = State::of_bits(state_->shape, stream);
  launch(BitsOfLists{state_->lists(), state->words.as<std::uint64_t>(), state->width()}, state->shape.stored_rows(),
         stream, "bits of a mask");
  return DeviceMask(std::move(state));
}

DeviceMask DeviceMask::as_lists(Stream stream) const {
  if (!state_->bits) return *this;
  auto state = State::of_lists(state_->shape, false, state_->shape.keys, stream);
  launch(ListsOfBits{words(), state->width(), state->lists()}, state->shape.stored_rows(), stream, "lists of a mask");
  return DeviceMask(std::move(state));
}

template <class Op>
DeviceMask DeviceMask::combined(const DeviceMask& a, const DeviceMask& b, const char* operation, Stream stream) {
  a.shape().require_same_logical(b.shape(), operation);
  const MaskShape shape = a.shape().sharing_both(b.shape());
  const RowMap of_a = RowMap::between(shape, a.shape()), of_b = RowMap::between(shape, b.shape());
  const bool weighted = a.weighted() || b.weighted();
  std::shared_ptr<State> state;
  if (!weighted && (a.is_bits() || b.is_bits())) {
    const DeviceMask left = a.as_bits(stream), right = b.as_bits(stream);
    state = State::of_bits(shape, stream);
    launch(CombineWords<Op>{left.words(), of_a, right.words(), of_b, state->words.as<std::uint64_t>(), state->width()},
           shape.stored_rows(), stream, operation);
  } else {
    const DeviceMask left = a.as_lists(stream), right = b.as_lists(stream);
    state = State::of_lists(shape, weighted, room_for<Op>(left.list_size(), right.list_size(), shape.keys), stream);
    launch(CombineLists<Op>{left.lists(), of_a, right.lists(), of_b, state->lists()}, shape.stored_rows(), stream,
           operation);
  }
  return DeviceMask(std::move(state));
}

DeviceMask merge(const DeviceMask& a, const DeviceMask& b, MergeRule rule, Stream stream) {
  switch (rule) {
    case MergeRule::add:
      return DeviceMask::combined<row_op::Add>(a, b, "merge", stream);
    case MergeRule::max:
      return DeviceMask::combined<row_op::Max>(a, b, "merge", stream);
    case MergeRule::independent:
      break;
  }
  return DeviceMask::combined<row_op::Independent>(a, b, "merge", stream);
}

DeviceMask intersect(const DeviceMask& a, const DeviceMask& b, Stream stream) {
  return DeviceMask::combined<row_op::Intersect>(a, b, "intersect", stream);
}

DeviceMask subtract(const DeviceMask& a, const DeviceMask& b, Stream stream) {
  return DeviceMask::combined<row_op::Subtract>(a, b, "subtract", stream);
}

}  // namespace reticle::cuda
