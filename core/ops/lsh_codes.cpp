#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include <reticle/core/ops/candidates.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/lsh_codes.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle {
namespace {

void center(std::span<const float> mean, std::span<float> vector) {
  for (std::size_t i = 0; i < vector.size(); ++i) vector[i] -= mean[i];
}

/// In four sums, so that additions do not wait for one another.
double dot_in_double(std::span<const float> a, std::span<const float> b) {
  double sums[4] = {};
  for (std::size_t i = 0; i < a.size(); ++i) sums[i % 4] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

float norm(std::span<const float> vector) {
  double squares = 0;
  for (const float x : vector) squares += static_cast<double>(x) * static_cast<double>(x);
  return static_cast<float>(std::sqrt(squares));
}

/// The projection vectors, for all heads or for each KV head: the recorded ones if there are any, else the recipe's.
std::vector<float> projections_of(const AttentionInputs& inputs, const LshRecipe& recipe) {
  const std::optional<TensorView> recorded = inputs.extra("projection");
  if (!recorded) return recipe.projections(inputs.head_dim(), inputs.layer);
  const Index rows = recipe.tables * recipe.bits, columns = recipe.width(inputs.head_dim());
  const bool per_head = recorded->rank == 3;
  const int dim = per_head ? 1 : 0;
  if ((recorded->rank != 2 && !per_head) || recorded->dtype != DType::f32 || recorded->size(dim) != columns ||
      recorded->size(dim + 1) != rows || (per_head && recorded->size(0) != inputs.kv_heads()))
    throw ShapeError("projection: " + recorded->describe() + "; expected F32 (" + std::to_string(columns) +
                     ", lsh_l * lsh_k), for all heads or for each of " + std::to_string(inputs.kv_heads()));
  const Index matrices = per_head ? recorded->size(0) : 1;
  std::vector<float> projections(static_cast<std::size_t>(matrices * rows * columns));
  float* to = projections.data();
  for (Index head = 0; head < matrices; ++head) {
    TensorView matrix = *recorded;
    if (per_head) {
      matrix = TensorView(recorded->at<float>(head, 0, 0), DType::f32, {columns, rows});
      matrix.strides = {recorded->stride(1), recorded->stride(2)};
    }
    for (Index row = 0; row < rows; ++row, to += columns)
      load_row(matrix.permute({1, 0}), row, 1, {to, static_cast<std::size_t>(columns)});
  }
  return projections;
}

}  // namespace

void LshCodes::update(const AttentionInputs& inputs, const LshRecipe& recipe, const Context& context) {
  if (!projections_.empty() && !(recipe == recipe_))
    throw ShapeError("hashed keys: the layer's state holds codes of another recipe; reset it");
  recipe_ = recipe;
  if (const Index resume = std::exchange(resume_, 0); resume > seen_.count() && resume < inputs.keys_length()) {
    AttentionInputs before = inputs;
    before.keys = inputs.keys.slice(2, 0, resume);
    const bool first = history_.empty();
    update(before, recipe, context);
    if (first) first_query_ = 0;  // the keys count as a prompt that begins at 0
  }
  const Index heads = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim(), count = inputs.keys_length();
  seen_.continue_with(inputs);
  if (projections_.empty()) begin(inputs);
  if (count == seen_.count()) return;
  if (recipe_.center && seen_.count() == 0) set_means(inputs);
  // Norms come first, since codes depend on the largest norm of the sequence. Codes of older keys keep the largest norm
  // at the time they were hashed.
  for (Index head = 0; head < heads; ++head) {
    float& largest = largest_norm_[static_cast<std::size_t>(head / kv_heads_)];
    const ReachableKeys reachable(inputs, head / kv_heads_, head % kv_heads_);
    for_new_keys(inputs, head, [&](Index position, std::span<const float> key) {
      if (reachable(position)) largest = std::max(largest, norm(key));
    });
  }
  context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
    for (Index head = begin; head < end; ++head) {
      std::vector<std::uint8_t>& codes = codes_[static_cast<std::size_t>(head)];
      codes.resize(static_cast<std::size_t>(seen_.count() * code_stride()));  // discards an interrupted update
      const float largest = largest_norm_[static_cast<std::size_t>(head / kv_heads_)];
      const auto width = static_cast<std::size_t>(recipe_.width(d));
      std::vector<float> extended;  // of up to kQueriesPerPass keys
      const auto write = [&] {
        if (extended.empty()) return;
        const std::size_t first = codes.size();
        codes.resize(first + extended.size() / width * static_cast<std::size_t>(code_stride()));
        write_codes(head % kv_heads_, extended, codes.data() + first);
        extended.clear();
      };
      for_new_keys(inputs, head, [&](Index, std::span<const float> key) {
        // [k, sqrt(M^2 - |k|^2)] lies on the sphere of radius M; signs do not depend on the radius.
        extended.insert(extended.end(), key.begin(), key.end());
        const float length = norm(key);
        if (recipe_.lift) extended.push_back(std::sqrt(std::max(0.0f, largest * largest - length * length)));
        if (extended.size() == width * static_cast<std::size_t>(kQueriesPerPass)) write();
      });
      write();
    }
  });
  const bool single = count == seen_.count() + 1;
  if (single && !history_.empty() && history_.back().single && history_.back().largest == largest_norm_) {
    history_.back().keys = count;
  } else {
    history_.push_back({count, largest_norm_, single});
  }
  seen_.finish(inputs);
}

void LshCodes::begin(const AttentionInputs& inputs) {
  const auto heads = static_cast<std::size_t>(inputs.batch() * inputs.kv_heads());
  projections_ = projections_of(inputs, recipe_);
  head_dim_ = inputs.head_dim();
  kv_heads_ = inputs.kv_heads();
  means_.assign(heads, std::vector<float>(static_cast<std::size_t>(head_dim_), 0.0f));
  codes_.resize(heads);
  largest_norm_.assign(static_cast<std::size_t>(inputs.batch()), 0.0f);
  first_query_ = inputs.position(0);
}

void LshCodes::truncate(Index keys) {
  if (keys >= seen_.count()) return;
  // Keys that came one at a time under the same norms can be cut anywhere.
  Norms last{0, {}, false};
  while (!history_.empty() && history_.back().keys > keys) {
    last = std::move(history_.back());
    history_.pop_back();
  }
  if (last.single && !history_.empty() && history_.back().largest == last.largest) history_.back().keys = keys;
  resume_ = keys;
  if (history_.empty()) {
    const bool called = keys > first_query_;
    *this = LshCodes();
    resume_ = called ? keys : 0;
    return;
  }
  largest_norm_ = history_.back().largest;
  seen_.truncate(history_.back().keys);
}

void LshCodes::select(std::span<const Index> rows) {
  const Index batch = seen_.batch();
  select_rows(means_, rows, batch);
  select_rows(codes_, rows, batch);
  select_rows(largest_norm_, rows, batch);
  for (Norms& norms : history_) select_rows(norms.largest, rows, batch);
  seen_.select(rows);
}

template <class Use>
void LshCodes::for_new_keys(const AttentionInputs& inputs, Index head, Use&& use) const {
  const TensorView keys = head_matrix(inputs.keys, head / kv_heads_, head % kv_heads_);
  std::vector<float> key(static_cast<std::size_t>(head_dim_));
  for (Index k = seen_.count(); k < inputs.keys_length(); ++k) {
    load_row(keys, k, 1, key);
    center(means_[static_cast<std::size_t>(head)], key);
    use(k, std::span<const float>(key));
  }
}

void LshCodes::set_means(const AttentionInputs& inputs) {
  const Index first = std::min(recipe_.mean_skips_first, inputs.keys_length());
  const Index end = std::max(first, inputs.keys_length() - recipe_.mean_skips_last);
  if (first == end) return;
  std::vector<float> key(static_cast<std::size_t>(head_dim_));
  std::vector<double> sum(key.size());
  for (std::size_t head = 0; head < means_.size(); ++head) {
    const auto h = static_cast<Index>(head);
    const TensorView keys = head_matrix(inputs.keys, h / kv_heads_, h % kv_heads_);
    const ReachableKeys reachable(inputs, h / kv_heads_, h % kv_heads_);
    Index count = 0;
    std::fill(sum.begin(), sum.end(), 0.0);
    for (Index k = first; k < end; ++k) {
      if (!reachable(k)) continue;
      ++count;
      load_row(keys, k, 1, key);
      for (std::size_t i = 0; i < key.size(); ++i) sum[i] += static_cast<double>(key[i]);
    }
    for (std::size_t i = 0; i < key.size(); ++i)
      means_[head][i] = count == 0 ? 0.0f : static_cast<float>(sum[i] / static_cast<double>(count));
  }
}

void LshCodes::write_codes(Index kv_head, std::span<const float> vectors, std::uint8_t* codes) const {
  const Index rows = recipe_.tables * recipe_.bits, columns = recipe_.width(head_dim_),
              count = static_cast<Index>(vectors.size()) / columns;
  const bool per_head = static_cast<Index>(projections_.size()) > rows * columns;
  const float* matrix = projections_.data() + (per_head ? kv_head * rows * columns : 0);
  // A lifted vector has one element more than whole vectors of the processor: those beyond are added one by one, in the
  // order in which `dot` would.
  const Index whole = columns / 16 * 16;
  std::vector<float> heads(static_cast<std::size_t>(count * whole)),
      sides(static_cast<std::size_t>(count * rows), 0.0f);
  for (Index i = 0; i < count; ++i) std::copy_n(vectors.data() + i * columns, whole, heads.data() + i * whole);
  const TensorView projections(matrix, DType::f32, {rows, columns});
  if (whole > 0) dot(heads.data(), count, projections.slice(1, 0, whole), sides.data(), rows);
  for (Index column = whole; column < columns; ++column) {
    for (Index row = 0; row < rows; ++row) {
      for (Index i = 0; i < count; ++i)
        sides[static_cast<std::size_t>(i * rows + row)] +=
            vectors[static_cast<std::size_t>(i * columns + column)] * matrix[row * columns + column];
    }
  }
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(rows + 7) / 8 + 1, std::uint8_t{0});
  for (Index i = 0; i < count; ++i, codes += code_stride()) {
    positive_bits(sides.data() + i * rows, rows, bits.data());
    std::uint8_t* code = codes;
    for (Index table = 0; table < recipe_.tables; ++table) {
      for (Index bit = 0; bit < recipe_.bits; bit += 8) {
        const auto at = static_cast<std::size_t>(table * recipe_.bits + bit);
        const int two_bytes = bits[at / 8] | (bits[at / 8 + 1] << 8);
        const int mask = (1 << std::min<Index>(8, recipe_.bits - bit)) - 1;
        *code++ = static_cast<std::uint8_t>((two_bytes >> (at % 8)) & mask);
      }
    }
  }
}

void LshCodes::sample(const AttentionInputs& inputs, const Mask& previous, RowId row, Selection& selection) const {
  const Index kv_head = inputs.kv_head(row.head), d = inputs.head_dim();
  const auto head = static_cast<std::size_t>(row.batch * kv_heads_ + kv_head);
  std::vector<float> query(static_cast<std::size_t>(recipe_.width(d)), 0.0f);  // the lifted coordinate is 0
  const std::span<float> unlifted(query.data(), static_cast<std::size_t>(d));
  load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, unlifted);
  if (recipe_.center_query) center(means_[head], unlifted);
  std::vector<std::uint8_t> code(static_cast<std::size_t>(code_stride()));
  write_codes(kv_head, query, code.data());

  std::vector<Run> chosen;
  previous.row(row, chosen);
  std::vector<std::int32_t> colliding;
  collisions(code.data(), codes_[head].data(), inputs.visible_keys(row.query), recipe_, colliding);
  candidates_of(inputs, row, chosen).keep_positions(colliding);

  const TensorView keys = head_matrix(inputs.keys, row.batch, kv_head);
  std::vector<float> key(static_cast<std::size_t>(d));
  const double query_norm = static_cast<double>(norm(unlifted));
  const double largest = static_cast<double>(largest_norm_[static_cast<std::size_t>(row.batch)]);
  for (const std::int32_t k : colliding) {
    load_row(keys, k, 1, key);
    center(means_[head], key);
    const double product = dot_in_double(unlifted, key);
    const double key_norm = recipe_.lift ? largest : static_cast<double>(norm(key));
    const double cosine = key_norm > 0 ? product / ((query_norm + 1e-8) * key_norm) : 0;
    const auto p =
        static_cast<float>(collision_probability(cosine, recipe_.bits, recipe_.tables, recipe_.min_collisions));
    if (!(p > 0)) continue;  // exactly opposite vectors collide only by rounding
    selection.indices.push_back(k);
    selection.p.push_back(std::min(p, 1.0f));
  }
}

}  // namespace reticle
