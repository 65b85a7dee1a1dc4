// README's C++ example: sparse attention from a config, over captured tensors.
#include <cstdio>

#include <reticle/attention/sparse_attention.hpp>

int main(int, char** argv) {
  const auto sparse = reticle::SparseAttention::from_file(argv[1]);  // configs/sink_local_oracle_top_k.json
  const reticle::SafeTensors file(argv[2]);                          // examples/data/attention_4096.safetensors
  reticle::AttentionInputs inputs;
  inputs.queries = file.at("layers.3.queries");  // (batch, heads, queries, head_dim); views, never copied
  inputs.keys = file.at("layers.3.keys");
  inputs.values = file.at("layers.3.values");
  inputs.scaling = 0.125f;
  reticle::SequenceState state;
  const auto result = sparse.run(inputs, state, /*compare=*/true);
  std::printf("%s: error %.4f\n", describe(result.mask).c_str(), result.metrics.comparison->relative_error);
}
