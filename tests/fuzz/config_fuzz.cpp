// A config is refused, or gives a pipeline that prints itself, and that prefills and generates over tiny tensors within
// seconds and without reading beyond them, whatever its numbers are.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/registry.hpp>

#include "fuzz.hpp"
#include "support/attention.hpp"

using namespace reticle;  // NOLINT(google-build-using-namespace): a target is one function

namespace {

/// A masker's entry with all of its defaults; null if it needs a file.
fuzz::Json default_entry(const MaskerType& type) {
  try {
    const auto pipeline = SparseAttention::from_json(R"({"maskers": [{"type": ")" + type.name + R"("}]})");
    return fuzz::Json::parse(pipeline.to_json())["maskers"][0];
  } catch (const Error&) {
    return {{"type", type.name}};
  }
}

const std::vector<fuzz::Json>& entries() {
  static const std::vector<fuzz::Json> kEntries = [] {
    std::vector<fuzz::Json> made;
    for (const MaskerType* type : Registry::global().list()) made.push_back(default_entry(*type));
    return made;
  }();
  return kEntries;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  std::mt19937 random(seed);
  if (random() % 6 == 0) {
    fuzz::Json config{{"maskers", fuzz::Json::array()}};
    for (std::uint32_t i = 1 + random() % 3; i > 0; --i) {
      fuzz::Json entry = entries()[random() % entries().size()];
      for (std::uint32_t changes = random() % 3; changes > 0; --changes) fuzz::mutate(entry, random);
      config["maskers"].push_back(entry);
    }
    if (random() % 2 == 0) config["causal"] = true;
    const std::string text = config.dump(-1, ' ', false, fuzz::Json::error_handler_t::replace);
    if (text.size() <= max_size) {
      std::copy(text.begin(), text.end(), data);
      return text.size();
    }
  }
  return fuzz::mutate_json_text(data, size, max_size, random);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const reticle::testing::OwnedInputs kOwned({1, 4, 2, 24, 24, 64, 64}, 1);
  static const Context kContext(1);
  fuzz::expect_value_or_error([&] {
    const auto pipeline = SparseAttention::from_json({reinterpret_cast<const char*>(data), size},
                                                     RETICLE_SOURCE_DIR "/configs", Plugins::refuse);
    const std::string printed = pipeline.to_json();
    const auto again = SparseAttention::from_json(printed, RETICLE_SOURCE_DIR "/configs", Plugins::refuse);
    fuzz::require(again.to_json() == printed, "a config that was printed reads as another");
    SequenceState state;
    const auto run = [&](Index from, Index to, Stage stage) {
      AttentionInputs inputs = kOwned.inputs.rows(from, to);
      inputs.stage = stage;
      const SparseAttentionResult result = pipeline.run(inputs, state, false, {}, kContext);
      fuzz::require(result.mask.shape().same_logical(inputs.shape()), "a mask of another shape");
      for (const float x : result.attention.output.span<float>())
        fuzz::require(std::isfinite(x), "an output that is not finite");
    };
    run(0, 20, Stage::prefill);
    run(20, 21, Stage::generation);
    run(21, 24, Stage::generation);
    state.truncate(22);
    run(22, 23, Stage::generation);
  });
  return 0;
}
