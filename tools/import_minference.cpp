// Converts MInference's files of per-head patterns (best_pattern) to a Reticle config.
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/base/input_file.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

using Json = nlohmann::ordered_json;

/// The masker for [pattern, size, size, score], with the parameters that MInference adds when it runs the pattern.
Json masker_of(const Json& entry, const std::string& place) {
  const auto is_size = [](const Json& size) { return size.is_number_integer() && size >= 0; };
  if (!entry.is_array() || entry.size() < 3 || !entry[0].is_string() || !is_size(entry[1]) || !is_size(entry[2]))
    throw ConfigError(place + ": expected [pattern, size, size, score], got " + entry.dump());
  const auto pattern = entry[0].get<std::string>();
  const Index first = entry[1], second = entry[2];
  if (pattern == "vertical_and_slash")
    return {{"type", "vertical_slash"},
            {"vertical_size", std::max<Index>(first, 30)},
            {"slash_size", std::max<Index>(second, 50)},
            {"block_size", 64}};
  if (pattern == "stream_llm") return {{"type", "a_shape"}, {"n_init", first}, {"n_local", std::max<Index>(second, 1)}};
  if (pattern == "block_sparse")
    return {{"type", "block_sparse"}, {"chunk_size", 64}, {"top_chunks", 100}, {"sink_chunks", 0}};
  throw ConfigError(place + "/0: \"" + pattern + R"(": expected "vertical_and_slash", "stream_llm" or "block_sparse")");
}

}  // namespace

int import_minference(const std::filesystem::path& file, int heads) {
  const auto text = read_file<FormatError>(file);
  try {
    const Json layers = Json::parse(text);
    if (!layers.is_array()) throw ConfigError("expected a list with one object per layer");
    const Json otherwise = Json::array({"vertical_and_slash", 1000, 6096, 1});
    Json maskers = Json::array();
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      const std::string here = "/" + std::to_string(layer);
      if (!layers[layer].is_object())
        throw ConfigError(here + ": expected an object: head -> [pattern, size, size, score]");
      std::map<int, Json> head_maskers;
      for (int head = 0; head < heads; ++head) head_maskers[head] = masker_of(otherwise, here);
      for (const auto& [head, entry] : layers[layer].items()) {
        const bool number = !head.empty() && head.size() < 7 &&
                            std::all_of(head.begin(), head.end(), [](char c) { return c >= '0' && c <= '9'; });
        if (!number || (heads > 0 && std::stoi(head) >= heads))
          throw ConfigError(here + "/" + head + ": expected the number of a query head");
        head_maskers[std::stoi(head)] = masker_of(entry, here + "/" + head);
      }
      std::vector<std::pair<Json, Json>> by_masker;  // each distinct masker with its heads
      for (const auto& [head, masker] : head_maskers) {
        const auto same = std::find_if(by_masker.begin(), by_masker.end(),
                                       [&, &wanted = masker](const auto& known) { return known.first == wanted; });
        if (same != by_masker.end()) {
          same->second.push_back(head);
        } else {
          by_masker.emplace_back(masker, Json::array({head}));
        }
      }
      for (auto& [masker, masker_heads] : by_masker) {
        masker["layers"] = Json::array({layer});
        masker["heads"] = std::move(masker_heads);
        maskers.push_back(std::move(masker));
      }
    }
    Json config = {{"description", "MInference: the patterns of " + file.filename().string() + "; dense generation"},
                   {"causal", true}};
    config["prefill"]["maskers"] = std::move(maskers);
    config["generation"]["maskers"] = Json::array();
    SparseAttention::from_json(config.dump());  // throws if the config is not valid
    fmt::print("{}\n", config.dump(1));
  } catch (const Json::exception& error) {
    throw ConfigError(file.string() + ": " + error.what());
  } catch (const ConfigError& error) {
    throw ConfigError(file.string() + ": " + error.what());
  }
  return 0;
}

}  // namespace reticle::tools
