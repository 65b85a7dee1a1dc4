#include <algorithm>
#include <cstring>
#include <string>

#include <reticle/attention/cuda/sequence.hpp>
#include <reticle/core/cuda/tensor.hpp>

namespace reticle::cuda {
namespace {

/// A tensor with space for `length` rows in each head of a tensor (b, h, n, d).
Tensor with_room(const TensorView& tensor, Index length) {
  return {tensor.dtype, {tensor.size(0), tensor.size(1), length, tensor.size(3)}};
}

bool is_of_sequence(const Tensor& copy, const TensorView& tensor) {
  const TensorView& held = copy.view();
  return held.rank == 4 && held.dtype == tensor.dtype && held.size(0) == tensor.size(0) &&
         held.size(1) == tensor.size(1) && held.size(3) == tensor.size(3);
}

/// Copies the rows of `from` (b, h, n, d), packed, to rows [first, first + n) of each head of `to`.
void write_rows(const TensorView& from, Tensor& to, Index first) {
  const TensorView whole = to.view();
  const auto row = static_cast<std::size_t>(from.size(3) * size_of(from.dtype));
  const std::size_t bytes = static_cast<std::size_t>(from.size(2)) * row;
  const auto* source = static_cast<const std::byte*>(from.data);
  for (Index matrix = 0; bytes > 0 && matrix < from.size(0) * from.size(1); ++matrix) {
    auto* const target =
        static_cast<std::byte*>(to.data()) + static_cast<std::size_t>(matrix * whole.size(2) + first) * row;
    std::memcpy(target, source, bytes);
    source += bytes;
  }
}

}  // namespace

void HostCopies::follow(const AttentionInputs& inputs, const Context& context) {
  const Index length = inputs.keys.size(2);
  const bool begins = inputs.queries_length() == length;
  if (begins || known_ >= length || !is_of_sequence(keys_, inputs.keys) || !is_of_sequence(values_, inputs.values)) {
    keys_ = with_room(inputs.keys, length);
    values_ = with_room(inputs.values, length);
    known_ = 0;
  }
  for (auto& [copy, tensor] : {std::pair<Tensor&, const TensorView&>{keys_, inputs.keys}, {values_, inputs.values}}) {
    if (copy.view().size(2) < length) {
      Tensor grown = with_room(tensor, length + length / 4);
      const Tensor packed = Tensor::copy(copy.view().slice(2, 0, known_), tensor.dtype);
      write_rows(packed.view(), grown, 0);
      copy = std::move(grown);
    }
    const Tensor fresh = copy_to(tensor.slice(2, known_, length), Device(), context);
    write_rows(fresh.view(), copy, known_);
  }
  known_ = length;
}

HostInputs::HostInputs(const AttentionInputs& inputs, HostCopies& copies, const Context& context) : inputs_(inputs) {
  queries_ = copy_to(inputs.queries, Device(), context);
  copies.follow(inputs, context);
  inputs_.queries = queries_.view();
  inputs_.keys = copies.keys();
  inputs_.values = copies.values();
  if (inputs.attention_mask) {
    attention_mask_ = copy_to(*inputs.attention_mask, Device(), context);
    inputs_.attention_mask = attention_mask_.view();
  }
  extras_.reserve(inputs.extras.size());
  for (const NamedTensor& extra : inputs.extras)
    named_.push_back({extra.name, extras_.emplace_back(copy_to(extra.tensor, Device(), context)).view()});
  inputs_.extras = named_;
}

SparseDecoder& DeviceSequence::decoder(Index rows, Index keys, Stream stream) {
  if (!decoder_ || rows_ < rows || max_keys_ < keys) {
    rows_ = rows;
    max_keys_ = keys + keys / 4;
    decoder_.emplace(rows_, max_keys_, stream);
  }
  return *decoder_;
}

void DeviceSequence::truncate(Index keys) {
  for (auto& [layer, copies] : copies_) copies.truncate(keys);
  if (decoder_) decoder_->reset();
}

void DeviceSequence::reset() {
  copies_.clear();
  if (decoder_) decoder_->reset();
}

}  // namespace reticle::cuda
