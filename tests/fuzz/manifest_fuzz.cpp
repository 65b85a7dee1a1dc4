// A manifest of `reticle verify` is replayed, or refused. Its key "fuzz_case" names the recorded case that provides the
// tensors.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>

#include "fuzz.hpp"
#include "golden/case.hpp"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 random(seed);
  return reticle::fuzz::mutate_json_text(data, size, max_size, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto manifest = reticle::fuzz::folder().write("case.json", text);
  const std::filesystem::path tensors = reticle::fuzz::folder().path() / "case.safetensors";
  std::filesystem::remove(tensors);
  const auto document = reticle::fuzz::Json::parse(text, nullptr, false);
  if (document.is_object() && document.contains("fuzz_case") && document["fuzz_case"].is_string()) {
    const std::filesystem::path named = document["fuzz_case"].get<std::string>();
    const std::filesystem::path recorded =
        std::filesystem::path(RETICLE_SOURCE_DIR "/tests/golden") / named.relative_path();
    std::error_code ignored;
    if (std::filesystem::is_regular_file(recorded, ignored))
      std::filesystem::create_symlink(recorded, tensors, ignored);
  }
  reticle::golden::replay(manifest);
  return 0;
}
