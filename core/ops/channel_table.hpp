// The channels of a head that matter most, measured offline: the files that Double Sparsity (Yang et al. 2024) ships.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/base/export.hpp>
#include <reticle/core/base/types.hpp>

namespace reticle {

/// Per layer and query head, channel numbers, most important first.
class RETICLE_API ChannelTable {
 public:
  /// From JSON: "model.layers.<i>.self_attn.<projection>" -> one list of channel numbers per query head,
  /// or one for all. FormatError, naming the file and the key, when the file is malformed.
  ChannelTable(const std::filesystem::path& path, std::string_view projection);
  /// FormatError when the file has no such layer.
  const std::vector<std::vector<Index>>& layer(Index layer) const;

 private:
  std::filesystem::path path_;
  std::string projection_;
  std::map<Index, std::vector<std::vector<Index>>> layers_;
};

}  // namespace reticle
