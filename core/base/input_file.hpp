// Files that are read whole: configs, tables, plugins.
#pragma once

#include <concepts>
#include <cstddef>
#include <filesystem>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/export.hpp>

namespace reticle {

/// What a pipe or a device may give at most: some never end.
inline constexpr std::size_t kMaxStreamBytes = std::size_t{1} << 28;

/// The bytes of a file; or false, and in `problem` why it cannot be read. Pipes are read to their end, but those that
/// nobody writes to are refused rather than waited for.
RETICLE_API bool read_whole(const std::filesystem::path& path, std::string& bytes, std::string& problem);

/// The bytes of a file. E, naming the path and the reason, when it cannot be read.
template <std::derived_from<Error> E>
std::string read_file(const std::filesystem::path& path) {
  std::string bytes, problem;
  if (!read_whole(path, bytes, problem)) throw E(path.string() + ": " + problem);
  return bytes;
}

}  // namespace reticle
