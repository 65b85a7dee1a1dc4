#include <algorithm>
#include <tuple>

#include <reticle/attention/tile_blocks.hpp>

namespace reticle {

bool SharedKeys::read(Index size, Step& step) {
  if (!read_numbers(size, step)) return false;
  // A key that no row attends to may have been evicted; its scores are dropped, so any row of the cache can replace it.
  if (rows_.moved())
    rows_.find({step.keys.data(), static_cast<std::size_t>(step.count)}, step.keys.data(),
               step.partial ? std::optional(rows_.any()) : std::nullopt);
  return true;
}

bool SharedKeys::read_numbers(Index size, Step& step) {
  step.first = read_;
  step.partial = false;
  if (const auto& list = plan_->shared_list; !list.empty()) {
    step.count = std::min(size, static_cast<Index>(list.size()) - read_);
    std::copy_n(list.data() + read_, step.count, step.keys.data());
    read_ += step.count;
    return step.count > 0;
  }
  Index count = 0;
  for (; segment_ < plan_->shared.size() && count < size; ++segment_, offset_ = 0) {
    const TilePlan::Shared& segment = plan_->shared[segment_];
    const std::int32_t begin = segment.begin + offset_;
    const auto taken = static_cast<std::int32_t>(std::min<Index>(segment.end - begin, size - count));
    const auto at = static_cast<std::size_t>(count);
    for (std::int32_t i = 0; i < taken; ++i) step.keys[at + static_cast<std::size_t>(i)] = begin + i;
    const std::uint64_t* const attended =
        segment.attended >= 0 ? plan_->attended.data() + segment.attended + offset_ : nullptr;
    step.partial |= attended != nullptr;
    const bool last = begin + taken < segment.end || segment_ + 1 == plan_->shared.size() || count + taken == size;
    if (count == 0 && last) {
      step.attended = attended;
    } else if (!plan_->attended.empty()) {
      step.attended = step.joined.data();
      if (attended != nullptr) {
        std::copy_n(attended, taken, step.joined.data() + at);
      } else {
        std::fill_n(step.joined.data() + at, taken, ~std::uint64_t{0});
      }
    }
    count += taken;
    if (begin + taken < segment.end) {
      offset_ += taken;
      break;
    }
  }
  step.count = count;
  read_ += count;
  return count > 0;
}

void TileBlocks::start(const TilePlan& plan, Index rows, const TensorView& keys, const TensorView& values,
                       const TileBias& bias, const KeyRows& key_rows) {
  plan_ = &plan;
  rows_ = rows;
  keys_ = &keys;
  values_ = &values;
  bias_ = &bias;
  reader_.emplace(plan, key_rows);
}

bool TileBlocks::read(TileBlock& block) {
  if (!reader_->read(kTileKeys, step_)) return false;
  block = {};
  block.count = step_.count;
  if (product_ == Bf16Product::pairs) {
    read_pairs(block);
  } else if (product_ == Bf16Product::floats) {
    read_floats_in_pairs(block);
  } else {
    std::tie(block.keys, block.key_stride) = as_floats(*keys_, packed_keys_);
    std::tie(block.values, block.value_stride) = as_floats(*values_, packed_values_);
  }
  if (step_.partial) block.attended = step_.attended;
  block.soft_cap = soft_cap_;
  const auto fill = [&](std::vector<float>& to, auto&& value) {
    to.resize(static_cast<std::size_t>(kTileKeys * kTileRows));
    for (Index i = 0; i < block.count; ++i) {
      for (Index r = 0; r < rows_; ++r) to[static_cast<std::size_t>(i * kTileRows + r)] = value(i, r);
    }
    return to.data();
  };
  if (!plan_->inverse_p.empty()) {
    block.inverse_p = fill(inverse_p_, [&](Index i, Index r) {
      return plan_->inverse_p[static_cast<std::size_t>((step_.first + i) * rows_ + r)];
    });
  }
  if ((*bias_)[0]) {
    block.bias = fill(biases_, [&](Index i, Index r) {
      return (*(*bias_)[static_cast<std::size_t>(r)])(step_.keys[static_cast<std::size_t>(i)]);
    });
  }
  return true;
}

bool TileBlocks::is_run() const {
  const std::span keys(step_.keys.data(), static_cast<std::size_t>(step_.count));
  const auto apart = [](std::int32_t key, std::int32_t next) { return next != key + 1; };
  return std::ranges::adjacent_find(keys, apart) == keys.end();
}

void TileBlocks::read_pairs(TileBlock& block) {
  const Index d = keys_->size(1), dv = values_->size(1);
  if (is_run()) {
    block.key_pairs = {keys_->at<BFloat16>(step_.keys[0], 0), keys_->stride(0), 2};
  } else {
    gathered_keys_.resize(static_cast<std::size_t>(kTileKeys * d));
    for (Index i = 0; i < step_.count; ++i)
      std::copy_n(keys_->at<BFloat16>(step_.keys[static_cast<std::size_t>(i)], 0), d, gathered_keys_.data() + i * d);
    block.key_pairs = {gathered_keys_.data(), d, 2};
  }
  value_pairs_.resize(static_cast<std::size_t>(kTileKeys / 2 * dv));
  pair_rows(*values_, step_.keys.data(), step_.count, value_pairs_.data());
  block.value_pairs = value_pairs_.data();
}

void TileBlocks::read_floats_in_pairs(TileBlock& block) {
  const Index d = keys_->size(1), dv = values_->size(1), count = step_.count;
  packed_keys_.resize(static_cast<std::size_t>(kTileKeys * d));
  packed_values_.resize(static_cast<std::size_t>(kTileKeys * dv));
  const std::int32_t first = step_.keys[0];
  if (is_run()) {
    pack_rows_in_pairs(keys_->slice(0, first, first + count), nullptr, count, packed_keys_.data());
  } else {
    pack_rows_in_pairs(*keys_, step_.keys.data(), count, packed_keys_.data());
  }
  // The values of two keys are swapped; the last of an odd number has zeros for its second.
  std::array<std::int32_t, kTileKeys> swapped;
  for (Index i = 0; i < count; ++i)
    swapped[static_cast<std::size_t>(i)] = step_.keys[static_cast<std::size_t>(std::min(i ^ 1, count - 1))];
  pack_rows(*values_, swapped.data(), count, packed_values_.data());
  if (count % 2 != 0) {
    float* const last = packed_values_.data() + (count - 1) * dv;
    std::copy_n(last, dv, last + dv);
    std::fill_n(last, dv, 0.0f);
  }
  block.keys = packed_keys_.data();
  block.key_stride = d;
  block.values = packed_values_.data();
  block.value_stride = dv;
}

std::pair<const float*, Index> TileBlocks::as_floats(const TensorView& matrix, std::vector<float>& packed) const {
  const std::int32_t first = step_.keys[0], last = step_.keys[static_cast<std::size_t>(step_.count - 1)];
  const bool run = is_run();
  if (run && matrix.dtype == DType::f32 && matrix.stride(1) == 1) return {matrix.at<float>(first, 0), matrix.stride(0)};
  packed.resize(static_cast<std::size_t>(kTileKeys * matrix.size(1)));
  if (run) {
    pack_rows(matrix.slice(0, first, last + 1), nullptr, step_.count, packed.data());
  } else {
    pack_rows(matrix, step_.keys.data(), step_.count, packed.data());
  }
  return {packed.data(), matrix.size(1)};
}

}  // namespace reticle
