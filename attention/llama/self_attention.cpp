#include <cmath>
#include <string>
#include <vector>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/layers/linear.hpp>
#include <reticle/attention/layers/pointwise.hpp>
#include <reticle/attention/llama/self_attention.hpp>

namespace reticle {

SelfAttention::SelfAttention(Index head_dim, const Rope& rope, const SelfAttentionWeights& weights)
    : head_dim_(head_dim), rope_(rope), weights_(weights) {
  const Index hidden = weights.q_proj.size(1), queries = weights.q_proj.size(0), keys = weights.k_proj.size(0);
  const auto has = [](const TensorView& view, Index rows, Index columns) {
    return view.rank == 2 && view.size(0) == rows && view.size(1) == columns;
  };
  if (!has(weights.q_proj, queries, hidden) || !has(weights.k_proj, keys, hidden) ||
      !has(weights.v_proj, keys, hidden) || !has(weights.o_proj, hidden, queries) || head_dim < 1 || keys < head_dim ||
      keys % head_dim != 0 || queries % keys != 0 ||
      static_cast<Index>(rope.inverse_frequencies().size()) * 2 != head_dim)
    throw ShapeError("self attention: q_proj " + weights.q_proj.describe() + ", k_proj " + weights.k_proj.describe() +
                     ", v_proj " + weights.v_proj.describe() + " and o_proj " + weights.o_proj.describe() +
                     " do not make heads of " + std::to_string(head_dim));
}

AttentionInputs SelfAttention::inputs(const TensorView& queries, const TensorView& keys,
                                      const TensorView& values) const {
  AttentionInputs inputs{queries, keys, values};
  inputs.scaling = 1 / std::sqrt(static_cast<float>(head_dim_));
  inputs.causal = true;
  return inputs;
}

Tensor SelfAttention::extend(const TensorView& x, std::span<const Index> cu_seqlens,
                             std::span<const AttendedSequence> sequences, const SparseAttention* sparse,
                             const Context& context) const {
  require_offsets(cu_seqlens, x.size(0), "self attention: cu_seqlens");
  Tensor queries = linear(x, weights_.q_proj, context), keys = linear(x, weights_.k_proj, context);
  const Tensor values = linear(x, weights_.v_proj, context);
  std::vector<Index> positions;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    for (Index t = cu_seqlens[i]; t < cu_seqlens[i + 1]; ++t)
      positions.push_back(sequences[i].cache->length() - cu_seqlens[i + 1] + t);
  }
  const RopeTable table = rope_.at(positions);
  table.rotate(queries.span<float>());
  table.rotate(keys.span<float>());
  const Index width = queries.view().size(1);
  Tensor mixed(DType::f32, {x.size(0), width});
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Index begin = cu_seqlens[i], end = cu_seqlens[i + 1];
    if (begin == end) continue;
    const AttendedSequence& sequence = sequences[i];
    sequence.cache->append(sequence.layer, by_heads(keys, begin, end, head_dim_),
                           by_heads(values, begin, end, head_dim_));
    AttentionInputs in = inputs(heads_first(by_heads(queries, begin, end, head_dim_)),
                                sequence.cache->keys(sequence.layer), sequence.cache->values(sequence.layer));
    in.layer = sequence.layer;
    in.stage = sequence.stage;
    const TensorView new_keys = heads_first(by_heads(keys, begin, end, head_dim_)),
                     new_values = heads_first(by_heads(values, begin, end, head_dim_));
    if (const KvCacheShape& cache = sequence.cache->shape(); is_quantised(cache.dtype)) {
      // The new tokens are read as they are, and so is a prompt.
      const bool has_them = end - begin <= cache.recent;
      in.recent_keys = has_them ? sequence.cache->recent_keys(sequence.layer) : new_keys;
      in.recent_values = has_them ? sequence.cache->recent_values(sequence.layer) : new_values;
    }
    const AttentionResult result = sparse != nullptr ? sparse->attend(in, *sequence.state, {}, {}, context).attention
                                                     : attention(in, Mask::full(in.shape()), {}, context);
    copy_tokens_first(result.output, mixed.span<float>().data() + begin * width, width);
  }
  return linear(mixed, weights_.o_proj, context);
}

SelfAttentionTape SelfAttention::forward(const TensorView& x, std::span<const Index> cu_seqlens,
                                         const Context& context) const {
  require_rank(x, 2, "self attention: x");
  require_offsets(cu_seqlens, x.size(0), "self attention: cu_seqlens");
  SelfAttentionTape tape;
  tape.x = Tensor::copy(x, DType::f32);
  tape.cu_seqlens.assign(cu_seqlens.begin(), cu_seqlens.end());
  tape.queries = linear(tape.x, weights_.q_proj, context);
  tape.keys = linear(tape.x, weights_.k_proj, context);
  tape.values = linear(tape.x, weights_.v_proj, context);
  const RopeTable table = rope_.at(packed_positions(cu_seqlens));
  table.rotate(tape.queries.span<float>());
  table.rotate(tape.keys.span<float>());
  const Index width = tape.queries.view().size(1);
  tape.mixed = Tensor(DType::f32, {x.size(0), width});
  for (std::size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const Index begin = cu_seqlens[i], end = cu_seqlens[i + 1];
    const AttentionInputs in = inputs(heads_first(by_heads(tape.queries, begin, end, head_dim_)),
                                      heads_first(by_heads(tape.keys, begin, end, head_dim_)),
                                      heads_first(by_heads(tape.values, begin, end, head_dim_)));
    tape.attention.push_back(attention(in, Mask::full(in.shape()), {}, context));
    copy_tokens_first(tape.attention.back().output, tape.mixed.span<float>().data() + begin * width, width);
  }
  tape.output = linear(tape.mixed, weights_.o_proj, context);
  return tape;
}

SelfAttentionGradients SelfAttention::backward(const SelfAttentionTape& tape, const TensorView& dy,
                                               const Context& context) const {
  const auto as_floats = [](const TensorView& weight) { return Tensor::copy(weight, DType::f32); };
  LinearGradients through_o = linear_backward(tape.mixed, as_floats(weights_.o_proj), dy);
  Tensor d_queries = zeros_like(tape.queries), d_keys = zeros_like(tape.keys), d_values = zeros_like(tape.values);
  for (std::size_t i = 0; i < tape.attention.size(); ++i) {
    const Index begin = tape.cu_seqlens[i], end = tape.cu_seqlens[i + 1];
    const auto sequence_rows = [&](const Tensor& packed) {
      return heads_first(by_heads(packed, begin, end, head_dim_));
    };
    const AttentionInputs in =
        inputs(sequence_rows(tape.queries), sequence_rows(tape.keys), sequence_rows(tape.values));
    const AttentionResult& result = tape.attention[i];
    const AttentionGradients gradients = attention_backward(in, Mask::full(in.shape()), result.output, result.lse,
                                                            sequence_rows(through_o.x), {}, context);
    const auto add_to = [&](Tensor& packed, const Tensor& gradient) {
      const Index width = packed.view().size(1);
      add_tokens_first(gradient, packed.span<float>().data() + begin * width, width);
    };
    add_to(d_queries, gradients.queries);
    add_to(d_keys, gradients.keys);
    add_to(d_values, gradients.values);
  }
  const RopeTable table = rope_.at(packed_positions(tape.cu_seqlens));
  table.rotate_back(d_queries.span<float>());
  table.rotate_back(d_keys.span<float>());
  LinearGradients q = linear_backward(tape.x, as_floats(weights_.q_proj), d_queries);
  LinearGradients k = linear_backward(tape.x, as_floats(weights_.k_proj), d_keys);
  LinearGradients v = linear_backward(tape.x, as_floats(weights_.v_proj), d_values);
  add(q.x.span<float>(), k.x.span<float>());
  add(q.x.span<float>(), v.x.span<float>());
  return {std::move(q.x), std::move(q.weight), std::move(k.weight), std::move(v.weight), std::move(through_o.weight)};
}

}  // namespace reticle
