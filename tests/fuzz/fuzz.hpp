// Shared by the fuzz targets: files in memory, the errors that are valid results, and mutations that keep a format's
// structure valid, so that the code behind the parser is reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <reticle/core/base/error.hpp>

/// libFuzzer's generic mutation of bytes.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace reticle::fuzz {

using Json = nlohmann::ordered_json;

/// A folder in memory for this process, emptied at exit.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path write(const std::string& name, std::string_view bytes) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The folder for the input files of a target.
const Folder& folder();

/// Processes an input. Reticle's errors are valid results; any other exception ends the process, and with it the run.
template <class Call>
void expect_value_or_error(const Call& call) {
  try {
    call();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): it says what is wrong with the input
  }
}

/// Ends the process with a message, because an invariant does not hold.
[[noreturn]] void fail(const std::string& what);
inline void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

/// Mutates a document once: a value is replaced by another or a notable one, or a member is removed or duplicated.
void mutate(Json& document, std::mt19937& random);
/// Mutates a JSON text the same way; falls back to libFuzzer's mutation for invalid JSON, and sometimes at random.
std::size_t mutate_json_text(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random);
/// Mutates a safetensors file: its bytes, its header's text, or a tensor's dtype, shape or metadata, with offsets and
/// data made consistent again. JSON texts in the metadata are mutated as JSON.
std::size_t mutate_safetensors(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random);

}  // namespace reticle::fuzz
