// The safetensors file format: an 8-byte little-endian header length, a JSON header (name -> dtype, shape,
// data_offsets), raw little-endian data. Files are data: every offset and size is checked before anything is read.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <reticle/core/tensor/tensor_view.hpp>

namespace reticle {

/// A file's tensors. The bytes are copied, or mapped if the file is larger than 64 MiB; a mapped file must not be
/// truncated while in use. Views stay valid as long as any copy of the SafeTensors lives; copies share the bytes.
class RETICLE_API SafeTensors {
 public:
  /// FormatError, naming the file and what is wrong with it.
  explicit SafeTensors(const std::filesystem::path& path);

  /// Sorted by name.
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
  std::optional<TensorView> find(std::string_view name) const;
  /// FormatError that names the nearest tensor when there is none of that name.
  const TensorView& at(std::string_view name) const;

 private:
  std::filesystem::path path_;
  struct Storage;
  std::shared_ptr<const Storage> storage_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

struct NamedTensor {
  std::string name;
  TensorView tensor;
};

/// Writes tensors (strided ones are packed) as OutputFile does. FormatError when the file cannot be written or a name
/// occurs twice.
RETICLE_API void save_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                                  const std::map<std::string, std::string, std::less<>>& metadata = {});

}  // namespace reticle
