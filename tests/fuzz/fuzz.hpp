// What the fuzz targets share: files for bytes, which errors are answers, and mutations that keep a format's frame
// whole so that what lies behind it is reached.
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

/// libFuzzer's own mutation of bytes.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace reticle::fuzz {

using Json = nlohmann::ordered_json;

/// A folder in memory of this process, emptied when it ends.
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

/// The folder that a target writes its input to.
const Folder& folder();

/// Runs what an input asks for. Our own errors are answers; anything else that is thrown ends the process, and with it
/// the run.
template <class Call>
void expect_value_or_error(const Call& call) {
  try {
    call();
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): it says what is wrong with the input
  }
}

/// Ends the process with a message: a promise was broken.
[[noreturn]] void fail(const std::string& what);
inline void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

/// One change somewhere in a document: a value becomes another's or a notable one, a member goes or comes twice.
void mutate(Json& document, std::mt19937& random);
/// The same in a text of JSON; libFuzzer's own where the text is none, or the draw says so.
std::size_t mutate_json_text(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random);
/// Of a safetensors file: its bytes, its header's text, or a tensor's dtype, shape or metadata, with offsets and data
/// that fit again. Texts of metadata that are JSON are mutated as such.
std::size_t mutate_safetensors(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random);

}  // namespace reticle::fuzz
