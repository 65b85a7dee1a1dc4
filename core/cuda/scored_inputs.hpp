// Queries and keys, as kernels that score keys take them.
#pragma once

#include <cstdint>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/cuda/row_block.hpp>

namespace reticle::cuda {

struct ScoredInputs {
  const void *queries = nullptr, *keys = nullptr;  // (b, hq, sq, d), (b, hkv, sk, d)
  Strides query_strides, key_strides;
  int heads = 1, kv_heads = 1, rows = 1, key_count = 0, head_dim = 0;  // rows: queries of a head
  float scaling = 1;
  bool causal = false;
  const std::uint8_t* reachable = nullptr;  // (b * hkv, sk), see reachable_block.hpp; null: all are

  RETICLE_HD bool reaches(int matrix, int key) const {
    return reachable == nullptr || reachable[static_cast<Index>(matrix) * key_count + key] != 0;
  }

  static ScoredInputs of(const AttentionInputs& inputs) {
    return {inputs.queries.data,
            inputs.keys.data,
            strides_of(inputs.queries),
            strides_of(inputs.keys),
            static_cast<int>(inputs.heads()),
            static_cast<int>(inputs.kv_heads()),
            static_cast<int>(inputs.queries_length()),
            static_cast<int>(inputs.keys_length()),
            static_cast<int>(inputs.head_dim()),
            inputs.scaling,
            inputs.causal};
  }
};

}  // namespace reticle::cuda
