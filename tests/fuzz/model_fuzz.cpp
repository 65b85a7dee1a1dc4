// A model folder is refused, or gives a decoder whose logits are finite or refused. The input is a safetensors file
// whose metadata holds the text of config.json.
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/attention/llama/decoder.hpp>
#include <reticle/core/tensor/safetensors.hpp>

#include "fuzz.hpp"

using namespace reticle;  // NOLINT(google-build-using-namespace): a target is one function

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 random(seed);
  return fuzz::mutate_safetensors(data, size, max_size, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Context kContext(1);
  const auto path = fuzz::folder().write("model.safetensors", {reinterpret_cast<const char*>(data), size});
  fuzz::expect_value_or_error([&] {
    {
      const SafeTensors file(path);
      const auto config = file.metadata().find("config");
      if (config == file.metadata().end()) return;
      fuzz::folder().write("config.json", config->second);
    }
    const auto decoder = Decoder::load(fuzz::folder().path());
    DecoderState state = decoder.start(12);
    const std::vector<std::int32_t> prompt{0, 1, 2, 3, 2, 1, 0}, next{1};
    decoder.forward(prompt, state, {}, kContext);
    decoder.forward(next, state, {}, kContext);
  });
  return 0;
}
