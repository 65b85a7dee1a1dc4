#include <charconv>
#include <string>

#include <nlohmann/json.hpp>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/input_file.hpp>
#include <reticle/core/ops/channel_table.hpp>

namespace reticle {

ChannelTable::ChannelTable(const std::filesystem::path& path, std::string_view projection)
    : path_(path), projection_(projection) {
  const auto reject = [&](const std::string& what) { throw FormatError(path.string() + ": " + what); };
  const nlohmann::json file = nlohmann::json::parse(read_file<FormatError>(path), nullptr, /*allow_exceptions=*/false);
  if (!file.is_object()) reject("is not a JSON object");
  constexpr std::string_view kPrefix = "model.layers.";
  const std::string suffix = ".self_attn." + projection_;
  for (const auto& [key, heads] : file.items()) {
    if (!key.starts_with(kPrefix) || !key.ends_with(suffix)) continue;  // other projections
    const char* const first = key.data() + kPrefix.size();
    const char* const last = key.data() + key.size() - suffix.size();
    Index layer = -1;
    if (const auto [end, error] = std::from_chars(first, last, layer); error != std::errc() || end != last || layer < 0)
      reject("key \"" + key + "\" does not name a layer");
    if (!heads.is_array() || heads.empty()) reject("\"" + key + "\" must be a list with one list per query head");
    for (const nlohmann::json& channels : heads) {
      if (!channels.is_array()) reject("\"" + key + "\" must be a list with one list per query head");
      std::vector<Index>& head_channels = layers_[layer].emplace_back();
      for (const nlohmann::json& channel : channels) {
        if (!channel.is_number_unsigned() || channel.get<std::uint64_t>() > INT32_MAX)
          reject("\"" + key + "\" holds " + channel.dump() + "; expected channel numbers");
        head_channels.push_back(channel.get<Index>());
      }
    }
  }
}

const std::vector<std::vector<Index>>& ChannelTable::layer(Index layer) const {
  const auto found = layers_.find(layer);
  if (found == layers_.end())
    throw FormatError(path_.string() + ": has no \"model.layers." + std::to_string(layer) + ".self_attn." +
                      projection_ + "\"");
  return found->second;
}

}  // namespace reticle
