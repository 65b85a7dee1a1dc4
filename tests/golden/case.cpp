#include "golden/case.hpp"

#include <algorithm>
#include <exception>
#include <limits>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/base/input_file.hpp>
#include <reticle/core/mask/convert.hpp>

namespace reticle::golden {

void Report::fail(const std::string& what) {
  if (outcome != Outcome::fail) detail = what;
  outcome = Outcome::fail;
}

void Report::deviate(const std::string& why) {
  if (outcome != Outcome::pass) return;
  outcome = Outcome::deviation;
  detail = why;
}

void Report::difference(const std::string& what, double difference, double tolerance) {
  largest = std::max(largest, difference);
  if (!(difference <= tolerance))
    fail(fmt::format("{} differs by {:.2g}, tolerance {:.2g}", what, difference, tolerance));
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

double largest_difference(const Mask& a, const Mask& b) { return largest_difference(to_dense(a), to_dense(b)); }

TensorView entry(const TensorView& view, Index i) {
  const TensorView first = view.slice(0, i, i + 1);
  return {first.data, first.dtype, std::span(first.shape).subspan(1, static_cast<std::size_t>(first.rank - 1))};
}

namespace {

/// Replayers read whole numbers with get<Index>(), which is undefined for a float beyond its range.
void require_moderate(const Json& value, const std::filesystem::path& path) {
  if (value.is_number_float() && !(std::abs(value.get<double>()) < 0x1p31))
    throw FormatError(path.string() + ": holds " + value.dump() + "; expected numbers below 2^31");
  if (!value.is_structured()) return;
  for (const Json& member : value) require_moderate(member, path);
}

}  // namespace

Case::Case(const std::filesystem::path& manifest) : path_(manifest) {
  json_ = std::make_shared<const Json>(Json::parse(read_file<FormatError>(manifest)));
  require_moderate(*json_, path_);
  std::filesystem::path tensors = manifest;
  tensors.replace_extension(".safetensors");
  if (json_->contains("tensors") && !json_->at("tensors").empty()) tensors_.emplace(tensors);
}

const SafeTensors& Case::tensors() const {
  if (!tensors_) throw FormatError(path_.string() + ": has no tensors");
  return *tensors_;
}

std::optional<TensorView> Case::find_tensor(std::string_view name) const {
  return has(name) ? std::optional(tensor(name)) : std::nullopt;
}

void Case::throw_wrong_dtype(std::string_view name) const {
  throw FormatError(path_.string() + ": tensor \"" + std::string(name) + "\" is " + tensor(name).describe());
}

void Case::require_elements(std::string_view name, Index count) const {
  if (tensor(name).elements() == count) return;
  throw FormatError(fmt::format("{}: tensor \"{}\" is {}; expected {} elements", path_.string(), name,
                                tensor(name).describe(), count));
}

std::vector<Index> Case::offsets(std::string_view name, Index tokens) const {
  std::vector<Index> offsets = integers<Index>(name);
  if (!offsets.empty() && offsets.front() == 0 && std::ranges::is_sorted(offsets) && offsets.back() <= tokens)
    return offsets;
  throw FormatError(fmt::format("{}: tensor \"{}\": expected ascending offsets of sequences from 0 to at most {}",
                                path_.string(), name, tokens));
}

Mask Case::mask(std::string_view name, const TensorView& view) const {
  const auto extent = [&](int from_last) { return view.rank >= from_last ? view.size(view.rank - from_last) : 1; };
  const MaskShape shape{extent(4), extent(3), extent(2), extent(1)};
  const auto elements = [&]<class T>(const T* data) { return std::vector<float>(data, data + view.elements()); };
  if (view.dtype == DType::u8) return Mask::dense(shape, elements(static_cast<const std::uint8_t*>(view.data)));
  if (view.dtype != DType::f32) throw_wrong_dtype(name);
  return Mask::dense(shape, elements(static_cast<const float*>(view.data)));
}

const Json& Case::parameters() const { return json_->at("params"); }
Index Case::number(const char* name) const { return parameters().at(name).get<Index>(); }
double Case::expected(const std::string& name) const { return json_->at("expected").at(name).get<double>(); }

double Case::tolerance(const char* name) const {
  const double otherwise = default_tolerances_.at(name);
  return json_->contains("tolerance") ? json_->at("tolerance").value(name, otherwise) : otherwise;
}

void Case::compare(const std::string& name, std::span<const float> ours, std::span<const float> recorded, Tolerance t) {
  if (ours.size() != recorded.size())
    return fail(fmt::format("{}: {} elements, recorded are {}", name, ours.size(), recorded.size()));
  if (t.relative == 0) return report_.difference(name, largest_difference(ours, recorded), t.absolute);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] == recorded[i]) continue;  // infinities, too
    const auto a = static_cast<double>(ours[i]), b = static_cast<double>(recorded[i]);
    report_.difference(name, std::abs(a - b), t.absolute + t.relative * std::abs(b));
  }
}

void Case::compare_part(const std::string& name, std::span<const float> ours, Index first) {
  const std::span<const float> recorded = values<float>(name);
  const auto begin = static_cast<std::size_t>(first);
  if (begin > recorded.size() || ours.size() > recorded.size() - begin)
    return fail(fmt::format("{}: {} elements from {} on, recorded are {}", name, ours.size(), first, recorded.size()));
  compare(name, ours, recorded.subspan(begin, ours.size()), usual_);
}

Report replay(const std::filesystem::path& manifest) {
  try {
    const Case file(manifest);
    return file.json().contains("pattern")               ? replay_pattern(file)
           : file.json().contains("suggested_tolerance") ? replay_nsa(file)
                                                         : replay_hub(file);
  } catch (const std::exception& error) {
    Report report;
    report.fail(error.what());
    return report;
  }
}

int verify(const std::filesystem::path& directory, bool known_only) {
  if (!std::filesystem::is_directory(directory)) throw Error(directory.string() + ": is not a directory");
  std::vector<std::filesystem::path> manifests;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() == ".json") manifests.push_back(file.path());
  }
  std::sort(manifests.begin(), manifests.end());
  if (manifests.empty()) throw Error(directory.string() + ": holds no cases (<case>.json)");

  std::size_t counts[4] = {};
  for (const std::filesystem::path& manifest : manifests) {
    const Report report = replay(manifest);
    constexpr const char* kNames[] = {"pass", "FAIL", "deviation", "unknown"};
    const auto outcome = static_cast<std::size_t>(report.outcome);
    ++counts[outcome];
    if (report.outcome == Outcome::unknown && known_only) continue;
    fmt::print("{:<9}  {:<45}  {:.1e}  {}\n", kNames[outcome], manifest.stem().string(), report.largest, report.detail);
  }
  const std::size_t failed = counts[1] + (known_only ? 0 : counts[3]);
  fmt::print("{} cases: {} passed, {} deviate as documented, {} failed, {} not supported\n", manifests.size(),
             counts[0], counts[2], counts[1], counts[3]);
  return failed == 0 ? 0 : 1;
}

}  // namespace reticle::golden
