// A recorded case as the replays see it: its manifest, its tensors, and what comparing it found.
#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/tensor/safetensors.hpp>

namespace reticle::tools {

using Json = nlohmann::ordered_json;

enum class Outcome : std::uint8_t { pass, fail, deviation, unknown };

/// What comparing a case found. The largest difference is kept for the report, whatever the outcome.
struct Report {
  Outcome outcome = Outcome::pass;
  double largest = 0;
  std::string detail;

  void fail(const std::string& what) {
    if (outcome != Outcome::fail) detail = what;
    outcome = Outcome::fail;
  }
  void deviate(const std::string& why) {
    if (outcome == Outcome::pass) {
      outcome = Outcome::deviation;
      detail = why;
    }
  }
  void difference(const std::string& what, double difference, double tolerance);
};

/// The largest |a - b|; infinity when a value is not finite (unless equal) or the sizes differ.
double largest_difference(std::span<const float> a, std::span<const float> b);
/// The largest difference of p.
double largest_difference(const Mask& a, const Mask& b);

/// <case>.json, and <case>.safetensors beside it if it has tensors.
class CaseFile {
 public:
  explicit CaseFile(const std::filesystem::path& manifest);

  const std::filesystem::path& path() const { return path_; }
  const Json& json() const { return *json_; }
  bool has(std::string_view name) const { return tensors_ && tensors_->contains(name); }
  /// FormatError when there are none.
  const SafeTensors& tensors() const;
  const TensorView& tensor(std::string_view name) const { return tensors().at(name); }
  /// FormatError when the tensor has another dtype.
  template <class T>
  std::span<const T> values(std::string_view name) const {
    const TensorView& view = tensor(name);
    if (view.dtype != dtype_of<T>)
      throw FormatError(path_.string() + ": tensor \"" + std::string(name) + "\" is " + view.describe());
    return {static_cast<const T*>(view.data), static_cast<std::size_t>(view.elements())};
  }
  double tolerance(const char* name, double otherwise) const;
  /// The mask of a (..., queries, keys) tensor: F32 p, or U8 with 1 for attended.
  Mask mask_of(std::string_view name) const;

 private:
  std::filesystem::path path_;
  std::shared_ptr<const Json> json_;
  std::optional<SafeTensors> tensors_;
};

/// Replays a case of any of them; what is wrong with it is its failure.
Report replay(const std::filesystem::path& manifest);

/// A case of sparse-attention-hub: a manifest with a "kind" or an "op".
Report replay_hub(const CaseFile& file);
/// A case of a pattern: a manifest with a "family" and a "pattern".
Report replay_pattern(const CaseFile& file);
/// A case of native-sparse-attention-triton: a manifest with an "op" and a "suggested_tolerance".
Report replay_nsa(const CaseFile& file);

}  // namespace reticle::tools
