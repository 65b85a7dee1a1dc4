#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/pointwise.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

namespace reticle {
namespace {

float scaling_of(Index head_dim) { return 1 / std::sqrt(static_cast<float>(head_dim)); }

/// The queries, keys and values of one KV head.
AttentionInputs kv_head_inputs(const TensorView& queries, const TensorView& keys, const TensorView& values,
                               Index kv_head) {
  const Index group = queries.size(1) / keys.size(1);
  AttentionInputs inputs;
  inputs.queries = queries.slice(1, kv_head * group, (kv_head + 1) * group);
  inputs.keys = keys.slice(1, kv_head, kv_head + 1);
  inputs.values = values.slice(1, kv_head, kv_head + 1);
  inputs.scaling = scaling_of(queries.size(3));
  return inputs;
}

}  // namespace

NsaWeights read_nsa_weights(WeightReader& reader, const std::string& prefix, const NsaShape& shape) {
  const Index queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
  const Index hidden = shape.hidden_size, kernel = shape.config.kernel_size, d = shape.head_dim;
  NsaWeights weights;
  weights.proj_q = reader.take(prefix + "proj_q.weight", {queries, hidden});
  weights.proj_k = reader.take(prefix + "proj_k.weight", {keys, hidden});
  weights.proj_v = reader.take(prefix + "proj_v.weight", {keys, hidden});
  weights.proj_o = reader.take(prefix + "proj_o.weight", {hidden, queries});
  weights.gate = reader.take(prefix + "gate.0.weight", {3 * shape.heads, hidden});
  weights.intra_block_pe = reader.take(prefix + "intra_block_pe", {shape.kv_heads, kernel, d});
  const auto compression = [&](const std::string& name) -> std::optional<TensorView> {
    switch (shape.config.compress_type) {
      case Compression::avgpool:
        return std::nullopt;
      case Compression::weightedpool:
        return reader.take(prefix + name, {shape.kv_heads, kernel});
      default:
        return reader.take(prefix + name, {shape.kv_heads, kernel * d, d});
    }
  };
  weights.compress_key = compression("compress_key");
  weights.compress_value = compression("compress_value");
  return weights;
}

NsaBranches nsa_branches(const TensorView& queries, const TensorView& keys, const TensorView& values,
                         const TensorView& compressed_keys, const TensorView& compressed_values, Index first_query,
                         const NsaConfig& config, const Context& context) {
  const Index n = queries.size(0), heads = queries.size(1), d = queries.size(2), length = keys.size(2);
  NsaBranches branches{
      compressed_attention(queries, compressed_keys, compressed_values, first_query, scaling_of(d), config, context),
      Tensor(DType::f32, {n, heads, d}), Tensor(DType::f32, {heads, n}), Tensor(DType::f32, {n, heads, d}),
      Tensor(DType::f32, {heads, n})};
  const TensorView by_head = heads_first(queries);
  const Index kv_heads = keys.size(1), group = heads / kv_heads;
  const auto attend_selected = [&](Index kv_head) {
    const AttentionInputs inputs = kv_head_inputs(by_head, keys, values, kv_head);
    const Mask mask =
        selected_mask(branches.compressed.blocks, kv_head, group, length, first_query, config.block_size, context);
    const AttentionResult result = attention(inputs, mask, {}, context);
    copy_tokens_first(result.output, branches.selected.span<float>().data() + kv_head * group * d, heads * d);
    const auto lse = result.lse.span<float>();
    std::copy(lse.begin(), lse.end(), branches.selected_lse.span<float>().begin() + kv_head * group * n);
  };
  const auto attend_window = [&] {
    AttentionInputs inputs;
    inputs.queries = by_head;
    inputs.keys = keys;
    inputs.values = values;
    inputs.scaling = scaling_of(d);
    const AttentionResult window =
        attention(inputs, window_mask(heads, n, length, first_query, config.window_size, context), {}, context);
    copy_tokens_first(window.output, branches.window.span<float>().data(), heads * d);
    const auto lse = window.lse.span<float>();
    std::copy(lse.begin(), lse.end(), branches.window_lse.span<float>().begin());
  };
  if (n == 1) {
    // A decode step is too small to be split within a branch: the KV heads and the window branch run in parallel.
    context.for_each_chunk(kv_heads + 1, 1, [&](Index, Index task, Index) {
      if (task < kv_heads) {
        attend_selected(task);
      } else {
        attend_window();
      }
    });
  } else {
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) attend_selected(kv_head);
    attend_window();
  }
  return branches;
}

void mix_branches(const NsaBranches& branches, std::span<const float> gates, std::span<float> mixed) {
  const TensorView& shape = branches.window.view();
  const auto rows = static_cast<std::size_t>(shape.size(0) * shape.size(1)),
             d = static_cast<std::size_t>(shape.size(2));
  if (gates.size() != rows * 3 || mixed.size() != rows * d)
    throw ShapeError("NSA: " + std::to_string(gates.size()) + " gates and " + std::to_string(mixed.size()) +
                     " outputs do not fit branches " + shape.describe());
  const auto compressed = branches.compressed.output.span<float>(), selected = branches.selected.span<float>(),
             window = branches.window.span<float>();
  for (std::size_t row = 0; row < rows; ++row) {
    const float* g = gates.data() + row * 3;
    for (std::size_t i = row * d; i < (row + 1) * d; ++i)
      mixed[i] = g[0] * compressed[i] + g[1] * selected[i] + g[2] * window[i];
  }
}

NativeSparseAttention::NativeSparseAttention(const NsaShape& shape, const Rope& rope, const NsaWeights& weights)
    : shape_(shape), rope_(rope), weights_(weights) {
  shape.config.validate();
  if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    throw ShapeError("NSA: " + std::to_string(shape.heads) + " query heads are not a multiple of " +
                     std::to_string(shape.kv_heads) + " KV heads");
  if (static_cast<Index>(rope.inverse_frequencies().size()) * 2 != shape.head_dim)
    throw ShapeError("NSA: the rotary embedding is not for head_dim " + std::to_string(shape.head_dim));
  position_embedding_ = Tensor::copy(weights.intra_block_pe, DType::f32);
  if (weights.compress_key) compress_key_ = Tensor::copy(*weights.compress_key, DType::f32);
  if (weights.compress_value) compress_value_ = Tensor::copy(*weights.compress_value, DType::f32);
}

NsaCompression NativeSparseAttention::compression() const {
  const auto if_there = [](const std::optional<TensorView>& given, const Tensor& as_floats) {
    return given ? std::optional(as_floats.view()) : std::nullopt;
  };
  return {{if_there(weights_.compress_key, compress_key_), position_embedding_.view()},
          {if_there(weights_.compress_value, compress_value_), std::nullopt}};
}

Tensor NativeSparseAttention::gates(const TensorView& x, const Context& context) const {
  Tensor gates = linear(x, weights_.gate, context);
  for (float& gate : gates.span<float>()) gate = 1 / (1 + std::exp(-gate));
  return gates;
}

Tensor nsa_extend(const TensorView& queries, const TensorView& keys, const TensorView& values,
                  std::span<const float> gates, const NsaSequence& sequence, const NsaCompression& compression,
                  const Rope& rope, const NsaConfig& config, const Context& context) {
  for (const TensorView* view : {&queries, &keys, &values}) {
    require_rank(*view, 3, "NSA: queries, keys and values");
    require_on(*view, Device::Kind::cpu, "NSA: queries, keys and values");
  }
  const Index count = queries.size(0), first = sequence.cache->length() - count;
  sequence.compressed->append(keys, values, compression.keys, compression.values, rope, context);
  std::vector<Index> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  const RopeTable table = rope.at(positions);
  Tensor rotated_queries = Tensor::copy(queries, DType::f32), rotated_keys = Tensor::copy(keys, DType::f32);
  table.rotate(rotated_queries.span<float>());
  table.rotate(rotated_keys.span<float>());
  sequence.cache->append(sequence.layer, rotated_keys, values);
  const NsaBranches branches = nsa_branches(
      rotated_queries, sequence.cache->keys(sequence.layer), sequence.cache->values(sequence.layer),
      sequence.compressed->compressed_keys(), sequence.compressed->compressed_values(), first, config, context);
  Tensor mixed(DType::f32, {count, queries.size(1), values.size(2)});
  mix_branches(branches, gates, mixed.span<float>());
  return mixed;
}

Tensor NativeSparseAttention::extend(const TensorView& x, std::span<const Index> cu_seqlens,
                                     std::span<const NsaSequence> sequences, const Context& context) const {
  require_offsets(cu_seqlens, x.size(0), "NSA: cu_seqlens");
  const Index d = shape_.head_dim;
  const Tensor queries = linear(x, weights_.proj_q, context), keys = linear(x, weights_.proj_k, context),
               values = linear(x, weights_.proj_v, context), gate = gates(x, context);
  Tensor mixed(DType::f32, {x.size(0), shape_.heads * d});
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Index begin = cu_seqlens[i], end = cu_seqlens[i + 1];
    if (begin == end) continue;
    const Tensor part =
        nsa_extend(by_heads(queries, begin, end, d), by_heads(keys, begin, end, d), by_heads(values, begin, end, d),
                   rows_of(gate.span<float>(), begin, end, shape_.heads * 3), sequences[i], compression(), rope_,
                   shape_.config, context);
    const auto from = part.span<float>();
    std::copy(from.begin(), from.end(), rows_of(mixed.span<float>(), begin, end, shape_.heads * d).begin());
  }
  return linear(mixed, weights_.proj_o, context);
}

NsaTape NativeSparseAttention::forward(const TensorView& x, std::span<const Index> cu_seqlens,
                                       const Context& context) const {
  require_rank(x, 2, "NSA: x");
  require_offsets(cu_seqlens, x.size(0), "NSA: cu_seqlens");
  const Index d = shape_.head_dim;
  NsaTape tape;
  tape.x = Tensor::copy(x, DType::f32);
  tape.cu_seqlens.assign(cu_seqlens.begin(), cu_seqlens.end());
  tape.queries = linear(tape.x, weights_.proj_q, context);
  tape.raw_keys = linear(tape.x, weights_.proj_k, context);
  tape.values = linear(tape.x, weights_.proj_v, context);
  tape.gates = gates(tape.x, context);
  tape.keys = Tensor::copy(tape.raw_keys, DType::f32);
  tape.compressed_keys = compress(by_heads(tape.raw_keys, d), cu_seqlens, compression().keys, shape_.config, context);
  tape.compressed_values = compress(by_heads(tape.values, d), cu_seqlens, compression().values, shape_.config, context);
  const RopeTable table = rope_.at(packed_positions(cu_seqlens));
  table.rotate(tape.queries.span<float>());
  table.rotate(tape.keys.span<float>());
  const std::vector<Index>& windows = tape.compressed_keys.cu_seqlens;
  rope_.at(packed_positions(windows, shape_.config.kernel_stride)).rotate(tape.compressed_keys.data.span<float>());
  tape.mixed = Tensor(DType::f32, {x.size(0), shape_.heads * d});
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const Index begin = cu_seqlens[i], end = cu_seqlens[i + 1];
    tape.branches.push_back(nsa_branches(
        by_heads(tape.queries, begin, end, d), heads_first(by_heads(tape.keys, begin, end, d)),
        heads_first(by_heads(tape.values, begin, end, d)),
        tape.compressed_keys.data.view().slice(0, windows[i], windows[i + 1]),
        tape.compressed_values.data.view().slice(0, windows[i], windows[i + 1]), 0, shape_.config, context));
    mix_branches(tape.branches.back(), rows_of(tape.gates.span<float>(), begin, end, shape_.heads * 3),
                 rows_of(tape.mixed.span<float>(), begin, end, shape_.heads * d));
  }
  tape.output = linear(tape.mixed, weights_.proj_o, context);
  return tape;
}

namespace {

/// Computes the gradient of a branch's output, and writes the gates' gradients before their sigmoid to d_gates.
Tensor through_gate(const Tensor& branch, std::span<const float> gates, std::size_t which,
                    std::span<const float> d_mixed, std::span<float> d_gates) {
  const TensorView& shape = branch.view();
  const auto rows = static_cast<std::size_t>(shape.size(0) * shape.size(1)),
             d = static_cast<std::size_t>(shape.size(2));
  const auto output = branch.span<float>();
  Tensor gradient(DType::f32, {shape.size(0), shape.size(1), shape.size(2)});
  float* to = gradient.span<float>().data();
  for (std::size_t row = 0; row < rows; ++row) {
    const float gate = gates[row * 3 + which];
    double dot = 0;
    for (std::size_t i = row * d; i < (row + 1) * d; ++i) {
      dot += static_cast<double>(d_mixed[i]) * static_cast<double>(output[i]);
      to[i] = gate * d_mixed[i];
    }
    d_gates[row * 3 + which] = static_cast<float>(dot) * gate * (1 - gate);
  }
  return gradient;
}

/// Views (heads, n) as (1, heads, n).
TensorView with_batch(const Tensor& lse) {
  return {lse.view().data, DType::f32, {1, lse.view().size(0), lse.view().size(1)}};
}

}  // namespace

NsaGradients NativeSparseAttention::backward(const NsaTape& tape, const TensorView& dy, const Context& context) const {
  const Index d = shape_.head_dim, heads = shape_.heads, kv_heads = shape_.kv_heads, group = heads / kv_heads;
  const auto as_floats = [](const TensorView& weight) { return Tensor::copy(weight, DType::f32); };
  NsaGradients gradients;
  LinearGradients through_o = linear_backward(tape.mixed, as_floats(weights_.proj_o), dy);
  Tensor d_gates = zeros_like(tape.gates), d_queries = zeros_like(tape.queries), d_keys = zeros_like(tape.keys),
         d_values = zeros_like(tape.values), d_compressed_keys = zeros_like(tape.compressed_keys.data),
         d_compressed_values = zeros_like(tape.compressed_values.data);
  const std::vector<Index>& windows = tape.compressed_keys.cu_seqlens;
  for (std::size_t i = 0; i < tape.branches.size(); ++i) {
    const Index begin = tape.cu_seqlens[i], end = tape.cu_seqlens[i + 1];
    const NsaBranches& branches = tape.branches[i];
    const auto at = [&](Tensor& tensor, Index width, Index row) { return tensor.span<float>().data() + row * width; };
    const std::span<const float> gates = rows_of(tape.gates.span<float>(), begin, end, heads * 3);
    const std::span<const float> d_mixed = rows_of(through_o.x.span<float>(), begin, end, heads * d);
    const auto own_d_gates = rows_of(d_gates.span<float>(), begin, end, heads * 3);
    const TensorView queries = heads_first(by_heads(tape.queries, begin, end, d)),
                     keys = heads_first(by_heads(tape.keys, begin, end, d)),
                     values = heads_first(by_heads(tape.values, begin, end, d));
    const TensorView compressed_keys =
                         heads_first(tape.compressed_keys.data.view().slice(0, windows[i], windows[i + 1])),
                     compressed_values =
                         heads_first(tape.compressed_values.data.view().slice(0, windows[i], windows[i + 1]));
    float *to_queries = at(d_queries, heads * d, begin), *to_keys = at(d_keys, kv_heads * d, begin),
          *to_values = at(d_values, kv_heads * d, begin);

    const Tensor d_compressed = through_gate(branches.compressed.output, gates, 0, d_mixed, own_d_gates);
    AttentionInputs all{queries, compressed_keys, compressed_values};
    all.scaling = scaling_of(d);
    const AttentionGradients compressed =
        attention_backward(all, compressed_mask(heads, end - begin, windows[i + 1] - windows[i], 0, shape_.config),
                           heads_first(branches.compressed.output), with_batch(branches.compressed.lse),
                           heads_first(d_compressed), {}, context);
    add_tokens_first(compressed.queries, to_queries, heads * d);
    add_tokens_first(compressed.keys, at(d_compressed_keys, kv_heads * d, windows[i]), kv_heads * d);
    add_tokens_first(compressed.values, at(d_compressed_values, kv_heads * d, windows[i]), kv_heads * d);

    const Tensor d_selected = through_gate(branches.selected, gates, 1, d_mixed, own_d_gates);
    for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
      const Index first = kv_head * group, last = first + group;
      const Mask mask =
          selected_mask(branches.compressed.blocks, kv_head, group, end - begin, 0, shape_.config.block_size, context);
      const AttentionGradients selected = attention_backward(
          kv_head_inputs(queries, keys, values, kv_head), mask, heads_first(branches.selected).slice(1, first, last),
          with_batch(branches.selected_lse).slice(1, first, last), heads_first(d_selected).slice(1, first, last), {},
          context);
      add_tokens_first(selected.queries, to_queries + first * d, heads * d);
      add_tokens_first(selected.keys, to_keys + kv_head * d, kv_heads * d);
      add_tokens_first(selected.values, to_values + kv_head * d, kv_heads * d);
    }

    const Tensor d_window = through_gate(branches.window, gates, 2, d_mixed, own_d_gates);
    all.keys = keys;
    all.values = values;
    const AttentionGradients window = attention_backward(
        all, window_mask(heads, end - begin, end - begin, 0, shape_.config.window_size, context),
        heads_first(branches.window), with_batch(branches.window_lse), heads_first(d_window), {}, context);
    add_tokens_first(window.queries, to_queries, heads * d);
    add_tokens_first(window.keys, to_keys, kv_heads * d);
    add_tokens_first(window.values, to_values, kv_heads * d);
  }
  const RopeTable table = rope_.at(packed_positions(tape.cu_seqlens));
  table.rotate_back(d_queries.span<float>());
  table.rotate_back(d_keys.span<float>());
  rope_.at(packed_positions(windows, shape_.config.kernel_stride)).rotate_back(d_compressed_keys.span<float>());

  const auto through_compression = [&](const Tensor& x, const CompressionWeights& weights, const Tensor& dy_compressed,
                                       const std::string& name, Tensor& to) {
    CompressionGradients compression =
        compress_backward(by_heads(x, d), tape.cu_seqlens, weights, shape_.config, dy_compressed, context);
    add(to.span<float>(), compression.x.span<float>());
    if (compression.weight) gradients.weights.emplace(name, std::move(*compression.weight));
    if (compression.position_embedding)
      gradients.weights.emplace("intra_block_pe", std::move(*compression.position_embedding));
  };
  through_compression(tape.raw_keys, compression().keys, d_compressed_keys, "compress_key", d_keys);
  through_compression(tape.values, compression().values, d_compressed_values, "compress_value", d_values);

  gradients.x = zeros_like(tape.x);
  gradients.weights.emplace("proj_o.weight", std::move(through_o.weight));
  const auto through_projection = [&](const TensorView& weight, const Tensor& d_projected, const std::string& name) {
    LinearGradients projection = linear_backward(tape.x, as_floats(weight), d_projected);
    add(gradients.x.span<float>(), projection.x.span<float>());
    gradients.weights.emplace(name, std::move(projection.weight));
  };
  through_projection(weights_.proj_q, d_queries, "proj_q.weight");
  through_projection(weights_.proj_k, d_keys, "proj_k.weight");
  through_projection(weights_.proj_v, d_values, "proj_v.weight");
  through_projection(weights_.gate, d_gates, "gate.0.weight");
  return gradients;
}

}  // namespace reticle
