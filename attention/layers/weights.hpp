// The tensors of a model, by name, from the files of a folder or from memory.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <reticle/core/tensor/safetensors.hpp>

namespace reticle {

/// Views of F32, F16 or BF16 tensors, with shared ownership of the memory they view. Copies share it.
class RETICLE_API Weights {
 public:
  /// Reads model.safetensors, or the shards that model.safetensors.index.json names, in place. FormatError for a
  /// missing or damaged file, and for a tensor that is in two shards.
  static Weights from_folder(const std::filesystem::path& folder);
  /// The tensors of a file whose names start with `prefix`, with the prefix removed.
  static Weights from_file(const SafeTensors& file, std::string_view prefix = "");
  /// Tensors that the caller keeps alive.
  static Weights from_views(std::string source, std::map<std::string, TensorView, std::less<>> tensors);

  /// Where the tensors come from, for messages.
  const std::string& source() const { return source_; }
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  Index bytes() const;

 private:
  std::string source_;
  std::vector<SafeTensors> files_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

/// Takes tensors by name and shape, and reports all problems together at the end.
class RETICLE_API WeightReader {
 public:
  explicit WeightReader(const Weights& weights) : weights_(weights) {}
  /// The tensor, or an empty view after recording a complaint.
  TensorView take(const std::string& name, std::initializer_list<Index> shape);
  /// Marks a tensor as known but not needed.
  void pass_over(const std::string& name) { taken_[name] = true; }
  /// FormatError that names every tensor that is missing, misshapen, of another dtype, or unknown.
  void finish() const;

 private:
  const Weights& weights_;
  std::map<std::string, bool, std::less<>> taken_;
  std::vector<std::string> complaints_;
};

}  // namespace reticle
