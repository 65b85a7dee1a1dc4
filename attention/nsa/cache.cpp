#include <string>
#include <vector>

#include <reticle/attention/nsa/cache.hpp>

namespace reticle {

NsaCache::NsaCache(const NsaConfig& config, Index kv_heads, Index head_dim)
    : config_(config), kv_heads_(kv_heads), token_(kv_heads * head_dim) {
  config.validate();
  if (kv_heads < 1 || head_dim < 1) throw ShapeError("NSA cache: kv_heads and head_dim must be positive");
}

void NsaCache::append(const TensorView& keys, const TensorView& values, const CompressionWeights& key_weights,
                      const CompressionWeights& value_weights, const Rope& rope, const Context& context) {
  const TensorView wanted = view({}, keys.rank == 3 ? keys.size(0) : 0);
  for (const TensorView* given : {&keys, &values}) {
    if (given->rank != 3 || given->dtype != DType::f32 || given->shape != wanted.shape || !given->contiguous())
      throw ShapeError("NSA cache: keys " + keys.describe() + " and values " + values.describe() +
                       "; expected contiguous " + wanted.describe());
  }
  const auto append_to = [](Array<float>& to, const TensorView& from) {
    const auto* data = static_cast<const float*>(from.data);
    to.insert(to.end(), data, data + from.elements());
  };
  append_to(pending_keys_, keys);
  append_to(pending_values_, values);
  const Index made = config_.compressed_length(pending_length());
  if (made == 0) return;
  const Index cu_seqlens[] = {0, pending_length()};
  Packed new_keys = compress(view(pending_keys_, pending_length()), cu_seqlens, key_weights, config_, context);
  const Packed new_values =
      compress(view(pending_values_, pending_length()), cu_seqlens, value_weights, config_, context);
  std::vector<Index> positions;
  for (Index i = 0; i < made; ++i) positions.push_back((compressed_ + i) * config_.kernel_stride);
  rope.at(positions).rotate(new_keys.data.span<float>());
  append_to(keys_, new_keys.data);
  append_to(values_, new_values.data);
  compressed_ += made;
  const auto used = made * config_.kernel_stride * token_;
  pending_keys_.erase(pending_keys_.begin(), pending_keys_.begin() + used);
  pending_values_.erase(pending_values_.begin(), pending_values_.begin() + used);
}

Index NsaCache::bytes() const {
  const auto floats = keys_.capacity() + values_.capacity() + pending_keys_.capacity() + pending_values_.capacity();
  return static_cast<Index>(floats * sizeof(float));
}

void NsaCache::reset() {
  compressed_ = 0;
  for (Array<float>* data : {&keys_, &values_, &pending_keys_, &pending_values_}) data->clear();
}

}  // namespace reticle
