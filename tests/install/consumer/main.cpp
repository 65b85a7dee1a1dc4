// Loads the plugins that are named, reports each, then lists the maskers and runs a pipeline.
#include <cstdio>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/registry.hpp>

int main(int argc, char** argv) {
  reticle::Registry& registry = reticle::Registry::global();
  for (int i = 1; i < argc; ++i) {
    const std::size_t before = registry.list().size();
    try {
      for (const reticle::MaskerType* type : registry.load_plugin(argv[i]))
        std::printf("loaded %s\n", type->name.c_str());
    } catch (const reticle::PluginError& error) {
      std::printf("refused %s\n", error.what());
      if (registry.list().size() != before) std::printf("but the registry changed\n");
    }
  }
  for (const reticle::MaskerType* type : registry.list()) std::printf("has %s\n", type->name.c_str());

  const float numbers[] = {1, 2, 3, 4};
  reticle::AttentionInputs inputs;
  inputs.queries = inputs.keys = inputs.values = reticle::TensorView(numbers, reticle::DType::f32, {1, 1, 4, 1});
  reticle::SequenceState state;
  const auto sparse = reticle::SparseAttention::from_json(R"({"maskers": [{"type": "local", "window_size": 1}]})");
  const auto result = sparse.run(inputs, state);
  std::printf("output %g\n", static_cast<double>(result.attention.output.span<float>()[3]));
}
