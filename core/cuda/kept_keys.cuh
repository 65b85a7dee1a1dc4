// What the choice of keys keeps of a sequence on a GPU, by layer. For .cu files.
#pragma once

#include <cstdint>
#include <map>

#include <reticle/core/attention_inputs.hpp>

namespace reticle::cuda {

/// Whose keys a layer's state was made from, and how many of them were read.
struct KeptKeys {
  std::uint64_t masker = 0;  // Masker::id, which is never given again: an address could be
  Index batch = 0, kv_heads = 0, head_dim = 0, seen = 0;
};

/// A T, which derives from KeptKeys, for each layer.
template <class T>
class KeptByLayer {
 public:
  /// The state of the layer of `inputs`: a new one, of which nothing was seen, for another masker, other extents or a
  /// sequence that is shorter than what was read.
  T& follow(const AttentionInputs& inputs, std::uint64_t masker) {
    T& layer = layers_[inputs.layer];
    const bool same = layer.masker == masker && layer.batch == inputs.batch() && layer.kv_heads == inputs.kv_heads() &&
                      layer.head_dim == inputs.head_dim();
    if (same && layer.seen <= inputs.keys_length()) return layer;
    layer = T();
    static_cast<KeptKeys&>(layer) = {masker, inputs.batch(), inputs.kv_heads(), inputs.head_dim(), 0};
    return layer;
  }
  /// Before the keys of another sequence.
  void reset() { layers_.clear(); }

 private:
  std::map<int, T> layers_;
};

}  // namespace reticle::cuda
