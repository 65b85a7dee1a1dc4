#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <string>

#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/hash_codes.hpp>

namespace reticle {
HashMlp::HashMlp(Lookup lookup, const std::string& prefix, HashActivation activation, Index heads, Index head_dim)
    : activation_(activation) {
  Index in = head_dim;
  for (Index i = 0;; ++i) {
    const std::string matrix_name = prefix + "_matrix." + std::to_string(i),
                      bias_name = prefix + "_bias." + std::to_string(i);
    const std::optional<TensorView> matrix = lookup(matrix_name), bias = lookup(bias_name);
    if (!matrix && i > 0) break;
    if (!matrix) throw ShapeError("hash weights: there is no tensor \"" + matrix_name + "\"");
    if (!bias) throw ShapeError("hash weights: there is no tensor \"" + bias_name + "\"");
    require_rank(*matrix, 3, matrix_name);
    require_rank(*bias, 2, bias_name);
    const Index out = matrix->size(2);
    if (matrix->size(0) != heads || matrix->size(1) != in || bias->size(0) != heads || bias->size(1) != out || out < 1)
      throw ShapeError(matrix_name + " and " + bias_name + ": " + matrix->describe() + " and " + bias->describe() +
                       "; expected (" + std::to_string(heads) + " query heads, " + std::to_string(in) +
                       " in, out) and (" + std::to_string(heads) + ", out)");
    Linear linear{in, out, std::vector<float>(static_cast<std::size_t>(heads * out * in)),
                  std::vector<float>(static_cast<std::size_t>(heads * out))};
    for (Index head = 0; head < heads; ++head) {
      const TensorView head_weights = matrix->slice(0, head, head + 1);
      TensorView transposed = head_weights.permute({0, 2, 1});
      transposed.rank = 2;
      transposed.shape = {out, in};
      transposed.strides = {head_weights.stride(2), head_weights.stride(1)};
      for (Index row = 0; row < out; ++row)
        load_row(transposed, row, 1, {linear.weights.data() + (head * out + row) * in, static_cast<std::size_t>(in)});
      load_row(*bias, head, 1, {linear.bias.data() + head * out, static_cast<std::size_t>(out)});
    }
    linear_.push_back(std::move(linear));
    in = out;
  }
}

void HashMlp::code(Index head, std::span<const float> vector, std::span<std::uint64_t> words) const {
  std::vector<float> x(vector.begin(), vector.end()), y;
  for (std::size_t i = 0; i < linear_.size(); ++i) {
    const Linear& linear = linear_[i];
    if (i > 0) {
      for (float& value : x) value = hash_activation(activation_, value);
    }
    y.resize(static_cast<std::size_t>(linear.out));
    dot(x.data(), 1,
        TensorView(linear.weights.data() + head * linear.out * linear.in, DType::f32, {linear.out, linear.in}),
        y.data(), 0);
    for (std::size_t j = 0; j < y.size(); ++j) y[j] += linear.bias[static_cast<std::size_t>(head * linear.out) + j];
    std::swap(x, y);
  }
  std::fill(words.begin(), words.end(), std::uint64_t{0});
  for (std::size_t bit = 0; bit < x.size(); ++bit) {
    if (x[bit] > 0) words[bit / 64] |= std::uint64_t{1} << (bit % 64);
  }
}

void HashCodes::set_weights(HashMlp query, HashMlp key) {
  if (query.bits() != key.bits())
    throw ShapeError("hash weights: queries have " + std::to_string(query.bits()) + " bits and keys " +
                     std::to_string(key.bits()) + "; expected as many");
  query_ = std::move(query);
  key_ = std::move(key);
}

void HashCodes::update(const AttentionInputs& inputs, const Context& context) {
  const Index heads = inputs.batch() * inputs.heads(), count = inputs.keys_length();
  if (query_.heads() != inputs.heads() || query_.head_dim() != inputs.head_dim())
    throw ShapeError("hash weights: are of " + std::to_string(query_.heads()) + " query heads of " +
                     std::to_string(query_.head_dim()) + "; queries are " + inputs.queries.describe());
  seen_.continue_with(inputs);
  if (codes_.empty()) codes_.resize(static_cast<std::size_t>(heads));
  context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
    std::vector<float> key(static_cast<std::size_t>(inputs.head_dim()));
    for (Index i = begin; i < end; ++i) {
      const Index head = i % inputs.heads();
      const TensorView keys = head_matrix(inputs.keys, i / inputs.heads(), inputs.kv_head(head));
      std::vector<std::uint64_t>& codes = codes_[static_cast<std::size_t>(i)];
      codes.resize(static_cast<std::size_t>(count * words()));
      for (Index k = seen_.count(); k < count; ++k) {
        load_row(keys, k, 1, key);
        key_.code(head, key, {codes.data() + k * words(), static_cast<std::size_t>(words())});
      }
    }
  });
  keys_hashed_ += (count - seen_.count()) * heads;
  seen_.finish(inputs);
}

void HashCodes::score(const AttentionInputs& inputs, RowId row, float* scores) const {
  std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
  load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
  std::vector<std::uint64_t> code(static_cast<std::size_t>(words()));
  query_.code(row.head, query, code);
  const std::uint64_t* key = codes_[static_cast<std::size_t>(row.batch * inputs.heads() + row.head)].data();
  const Index visible = inputs.visible_keys(row.query);
  for (Index k = 0; k < visible; ++k) {
    int different = 0;
    for (const std::uint64_t word : code) different += std::popcount(word ^ *key++);
    scores[k] = static_cast<float>(query_.bits() - 2 * different);
  }
  add_attention_mask(inputs, row, scores);
}

}  // namespace reticle
