// A recorded case, what it holds, and how results are compared with it: what the replayers of hub.cpp, nsa.cpp and
// patterns.cpp share. docs/verify.md describes the manifests.
#pragma once

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/tensor/safetensors.hpp>

namespace reticle::golden {

using Json = nlohmann::ordered_json;

enum class Outcome : std::uint8_t { pass, fail, deviation, unknown };

/// What a replay found. `detail` describes the first failure; `largest` is the largest difference of all comparisons.
struct Report {
  Outcome outcome = Outcome::pass;
  double largest = 0;
  std::string detail;

  void fail(const std::string& what);
  void deviate(const std::string& why);
  void difference(const std::string& what, double difference, double tolerance);
};

/// How far a number may be from a recorded one: absolute + relative * |recorded|.
struct Tolerance {
  double absolute = 0, relative = 0;
};

/// The largest |a - b|; infinity when a value is not finite (unless equal) or the sizes differ.
double largest_difference(std::span<const float> a, std::span<const float> b);
/// The largest difference of p.
double largest_difference(const Mask& a, const Mask& b);

/// The i-th entry of a tensor's first dimension, which must be contiguous; ShapeError when there is none.
TensorView entry(const TensorView& view, Index i);

/// <case>.json, <case>.safetensors beside it if it has tensors, and the report of its replay. A replayer derives from
/// it. FormatError for files that are malformed.
class Case {
 public:
  explicit Case(const std::filesystem::path& manifest);

  const std::filesystem::path& path() const { return path_; }
  const Json& json() const { return *json_; }

 protected:
  // --- what is recorded ---

  /// FormatError when there are none.
  const SafeTensors& tensors() const;
  bool has(std::string_view name) const { return tensors_ && tensors_->contains(name); }
  const TensorView& tensor(std::string_view name) const { return tensors().at(name); }
  std::optional<TensorView> find_tensor(std::string_view name) const;
  /// FormatError when the tensor has another dtype.
  template <class T>
  std::span<const T> values(std::string_view name) const {
    const TensorView& view = tensor(name);
    if (view.dtype != dtype_of<T>) throw_wrong_dtype(name);
    return {static_cast<const T*>(view.data), static_cast<std::size_t>(view.elements())};
  }
  /// The same; FormatError unless there are `count` of them.
  template <class T>
  std::span<const T> values(std::string_view name, Index count) const {
    require_elements(name, count);
    return values<T>(name);
  }
  void require_elements(std::string_view name, Index count) const;
  /// Where each of some sequences begins among `tokens` tokens, and where the last ends. FormatError for other numbers.
  std::vector<Index> offsets(std::string_view name, Index tokens) const;
  /// The elements of an I16, I32 or I64 tensor.
  template <class T>
  std::vector<T> integers(std::string_view name) const {
    const auto as_vector = [](auto values) { return std::vector<T>(values.begin(), values.end()); };
    const DType dtype = tensor(name).dtype;
    if (dtype == DType::i16) return as_vector(values<std::int16_t>(name));
    if (dtype == DType::i64) return as_vector(values<std::int64_t>(name));
    return as_vector(values<std::int32_t>(name));
  }
  /// The mask of a (..., queries, keys) tensor: F32 p, or U8 with 1 for attended.
  Mask mask(std::string_view name) const { return mask(name, tensor(name)); }
  Mask mask(std::string_view name, const TensorView& view) const;

  const Json& parameters() const;
  /// A whole number of the parameters.
  Index number(const char* name) const;
  double expected(const std::string& name) const;
  /// For tolerances that the manifest lacks. Of several defaults the first holds.
  void set_default_tolerances(const std::map<std::string, double>& tolerances) {
    default_tolerances_.insert(tolerances.begin(), tolerances.end());
  }
  double tolerance(const char* name) const;

  // --- comparisons ---

  void fail(const std::string& what) { report_.fail(what); }
  void compare(const std::string& name, double ours, double recorded, double tolerance) {
    report_.difference(name, std::abs(ours - recorded), tolerance);
  }
  void compare(const std::string& name, const Mask& ours, const Mask& recorded, double tolerance) {
    report_.difference(name, largest_difference(ours, recorded), tolerance);
  }
  /// The failure message gives the largest difference if the tolerance is absolute, else the first that exceeds it.
  void compare(const std::string& name, std::span<const float> ours, std::span<const float> recorded, Tolerance t);
  /// Compares with the tensor `name`, by the usual tolerance.
  void compare(const std::string& name, std::span<const float> ours) {
    compare(name, ours, values<float>(name), usual_);
  }
  void compare(const std::string& name, const Tensor& ours) { compare(name, ours.span<float>()); }
  /// Compares with that tensor's elements from `first` on.
  void compare_part(const std::string& name, std::span<const float> ours, Index first);

  Tolerance usual_;  // of attention outputs; set by the replayer
  Report report_;

 private:
  [[noreturn]] void throw_wrong_dtype(std::string_view name) const;

  std::filesystem::path path_;
  std::shared_ptr<const Json> json_;
  std::optional<SafeTensors> tensors_;
  std::map<std::string, double> default_tolerances_;
};

/// Replays a case of any kind; an exception is a failure.
Report replay(const std::filesystem::path& manifest);

/// A case of sparse-attention-hub: a manifest with a "kind" or an "op".
Report replay_hub(const Case& file);
/// A case of a pattern: a manifest with a "family" and a "pattern".
Report replay_pattern(const Case& file);
/// A case of native-sparse-attention-triton: a manifest with an "op" and a "suggested_tolerance".
Report replay_nsa(const Case& file);

/// `reticle verify`: replays every case of a folder and prints what was found; 0 when none fails, else 1.
int verify(const std::filesystem::path& directory, bool known_only);

}  // namespace reticle::golden
