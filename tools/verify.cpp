// Replays recorded cases: a <case>.json manifest and a <case>.safetensors beside it. What a case recorded of the
// reference's random choices is injected; everything after it is computed anew and compared. The format of the
// manifests is described in docs/verify.md, the documented deviations in docs/deviations.md.
#include <algorithm>
#include <cmath>
#include <exception>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/core/base/input_file.hpp>
#include <reticle/core/mask/convert.hpp>

#include "options.hpp"
#include "verify_case.hpp"

namespace reticle::tools {

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

namespace {

/// Numbers are read as whole ones where a case asks for them, which no float beyond is.
void require_moderate(const Json& value, const std::filesystem::path& path) {
  if (value.is_number_float() && !(std::abs(value.get<double>()) < 0x1p31))
    throw FormatError(path.string() + ": holds " + value.dump() + "; expected numbers below 2^31");
  if (!value.is_structured()) return;
  for (const Json& member : value) require_moderate(member, path);
}

}  // namespace

CaseFile::CaseFile(const std::filesystem::path& manifest) : path_(manifest) {
  json_ = std::make_shared<const Json>(Json::parse(read_file<FormatError>(manifest)));
  require_moderate(*json_, path_);
  std::filesystem::path tensors = manifest;
  tensors.replace_extension(".safetensors");
  if (json_->contains("tensors") && !json_->at("tensors").empty()) tensors_.emplace(tensors);
}

double CaseFile::tolerance(const char* name, double otherwise) const {
  return json_->contains("tolerance") ? json_->at("tolerance").value(name, otherwise) : otherwise;
}

const SafeTensors& CaseFile::tensors() const {
  if (!tensors_) throw FormatError(path_.string() + ": has no tensors");
  return *tensors_;
}

Mask CaseFile::mask_of(std::string_view name) const {
  const TensorView& view = tensor(name);
  MaskShape shape;
  shape.keys = view.size(view.rank - 1);
  shape.queries = view.rank > 1 ? view.size(view.rank - 2) : 1;
  shape.heads = view.rank > 2 ? view.size(view.rank - 3) : 1;
  shape.batch = view.rank > 3 ? view.size(view.rank - 4) : 1;
  if (view.dtype != DType::u8) return Mask::dense(shape, values<float>(name));
  const std::span<const std::uint8_t> kept = values<std::uint8_t>(name);
  return Mask::dense(shape, std::vector<float>(kept.begin(), kept.end()));
}

Report replay(const std::filesystem::path& manifest) {
  try {
    const CaseFile file(manifest);
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
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".json") manifests.push_back(entry.path());
  }
  std::sort(manifests.begin(), manifests.end());
  if (manifests.empty()) throw Error(directory.string() + ": holds no cases (<case>.json)");

  std::size_t counts[4] = {};
  for (const std::filesystem::path& manifest : manifests) {
    const Report report = replay(manifest);
    constexpr const char* kNames[] = {"pass", "FAIL", "deviation", "unknown"};
    ++counts[static_cast<std::size_t>(report.outcome)];
    if (report.outcome == Outcome::unknown && known_only) continue;
    fmt::print("{:<9}  {:<45}  {:.1e}  {}\n", kNames[static_cast<std::size_t>(report.outcome)],
               manifest.stem().string(), report.largest, report.detail);
  }
  const std::size_t failed = counts[1] + (known_only ? 0 : counts[3]);
  fmt::print("{} cases: {} passed, {} deviate as documented, {} failed, {} not supported\n", manifests.size(),
             counts[0], counts[2], counts[1], counts[3]);
  return failed == 0 ? 0 : 1;
}

}  // namespace reticle::tools
