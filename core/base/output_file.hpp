// Files that are kept: put in the place of what stands there whole, or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// Written beside the file that it becomes, and renamed into its place by commit(), so that a failed or stopped write
/// leaves what was there. Links are followed, and a file's mode is kept. What is no regular file (a device, a pipe) is
/// written to in place. FormatError, naming the path and the reason, from every call; a directory, a file that may not
/// be written to and a pipe that nobody reads are refused.
class RETICLE_API OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  /// Without commit() nothing is left of it.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t size);
  /// The bytes are on the disk before the file is seen.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A whole file.
RETICLE_API void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace reticle
