// Output files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string_view>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// The bytes go to a temporary file beside the target, which commit() renames over the target, so that a failed or
/// interrupted write leaves the old file. Symbolic links are followed, and the mode of an existing file is kept.
/// Targets that are not regular files (devices, pipes) are written in place. Every call may throw FormatError with the
/// path and the reason; directories, files without write permission and pipes that nobody reads are refused.
class RETICLE_API OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  /// Removes the temporary file unless commit() was called.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t size);
  /// Syncs the bytes to the disk, then renames the file into place.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes a whole file.
RETICLE_API void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace reticle
