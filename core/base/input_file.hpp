// Reads whole files: configs, tables, plugins.
#pragma once

#include <concepts>
#include <cstddef>
#include <filesystem>
#include <string>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/export.hpp>

namespace reticle {

/// The most bytes that are read from a pipe or a device, some of which never end.
inline constexpr std::size_t kMaxStreamBytes = std::size_t{1} << 28;

/// Reads a file into `bytes`. Returns false, with the reason in `problem`, if the file cannot be read. Pipes are read
/// to their end, but a pipe that nobody writes to is refused rather than waited for.
RETICLE_API bool read_whole(const std::filesystem::path& path, std::string& bytes, std::string& problem);

/// Returns the bytes of a file. Throws E, naming the path and the reason, if the file cannot be read.
template <std::derived_from<Error> E>
std::string read_file(const std::filesystem::path& path) {
  std::string bytes, problem;
  if (!read_whole(path, bytes, problem)) throw E(path.string() + ": " + problem);
  return bytes;
}

}  // namespace reticle
