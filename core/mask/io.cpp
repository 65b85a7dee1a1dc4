#include <charconv>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include <reticle/core/mask/convert.hpp>
#include <reticle/core/mask/io.hpp>
#include <reticle/core/tensor/safetensors.hpp>

namespace reticle {
namespace {

constexpr std::string_view kFormat = "reticle.mask.v1";

template <class T>
TensorView view_of(const Buffer<T>& buffer) {
  return {buffer.data(), dtype_of<T>, {buffer.size()}};
}

template <class T>
Buffer<T> buffer_of(const SafeTensors& file, std::string_view name) {
  const TensorView& view = file.at(name);
  if (view.dtype != dtype_of<T>)
    throw FormatError(file.path().string() + ": tensor \"" + std::string(name) + "\" is " + view.describe() +
                      "; expected dtype " + std::string(name_of(dtype_of<T>)));
  return Buffer<T>::copy({static_cast<const T*>(view.data), static_cast<std::size_t>(view.elements())});
}

}  // namespace

void save(const Mask& mask, const std::filesystem::path& path) {
  const MaskShape& s = mask.shape();
  std::map<std::string, std::string, std::less<>> metadata{
      {"format", std::string(kFormat)},
      {"kind", std::string(name_of(mask.kind()))},
      {"batch", std::to_string(s.batch)},
      {"heads", std::to_string(s.heads)},
      {"queries", std::to_string(s.queries)},
      {"keys", std::to_string(s.keys)},
      {"shared_batch", std::to_string(static_cast<int>(s.shared_batch))},
      {"shared_heads", std::to_string(static_cast<int>(s.shared_heads))},
      {"shared_queries", std::to_string(static_cast<int>(s.shared_queries))}};
  std::vector<NamedTensor> tensors;
  const auto& representation = mask.representation();
  if (const auto* bits = std::get_if<BitDense>(&representation)) tensors.push_back({"words", view_of(bits->words)});
  if (const auto* dense = std::get_if<WeightedDense>(&representation)) tensors.push_back({"p", view_of(dense->p)});
  if (const auto* csr = std::get_if<Csr>(&representation)) {
    tensors.push_back({"row_ptr", view_of(csr->row_ptr)});
    tensors.push_back({"indices", view_of(csr->indices)});
    if (!csr->p.empty()) tensors.push_back({"p", view_of(csr->p)});
  }
  if (const auto* runs = std::get_if<Runs>(&representation)) {
    tensors.push_back({"row_ptr", view_of(runs->row_ptr)});
    tensors.push_back({"intervals", {runs->intervals.data(), DType::i32, {runs->intervals.size(), 2}}});
    if (!runs->p.empty()) tensors.push_back({"p", view_of(runs->p)});
  }
  save_safetensors(path, tensors, metadata);
}

Mask load_mask(const std::filesystem::path& path) {
  const SafeTensors file(path);
  const auto reject = [&](const std::string& what) { throw FormatError(path.string() + ": " + what); };
  const auto text = [&](std::string_view key) -> std::string_view {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) reject("is not a mask: its metadata lacks \"" + std::string(key) + "\"");
    return found->second;
  };
  const auto number = [&](std::string_view key) {
    const std::string_view digits = text(key);
    Index value = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || value < 0)
      reject("metadata \"" + std::string(key) + "\" is \"" + std::string(digits) + "\"; expected a count");
    return value;
  };
  if (text("format") != kFormat)
    reject("its format is \"" + std::string(text("format")) + "\"; expected \"" + std::string(kFormat) + "\"");
  const MaskShape shape{number("batch"),
                        number("heads"),
                        number("queries"),
                        number("keys"),
                        number("shared_batch") != 0,
                        number("shared_heads") != 0,
                        number("shared_queries") != 0};
  const std::string_view kind = text("kind");
  const auto p = [&] { return file.contains("p") ? buffer_of<float>(file, "p") : Buffer<float>(); };
  try {
    shape.validate();
    if (kind == "empty") return Mask::empty(shape);
    if (kind == "full") return Mask::full(shape);
    if (kind == "bits") return Mask::bits(shape, buffer_of<std::uint64_t>(file, "words"));
    if (kind == "dense") return convert(Mask::dense(shape, p().span()), MaskKind::dense);
    if (kind == "csr")
      return Mask::csr(shape, buffer_of<Index>(file, "row_ptr"), buffer_of<std::int32_t>(file, "indices"), p());
    if (kind == "runs") {
      const Buffer<std::int32_t> columns = buffer_of<std::int32_t>(file, "intervals");
      if (columns.size() % 2 != 0) reject("tensor \"intervals\" has an odd number of columns");
      Array<Interval> intervals(static_cast<std::size_t>(columns.size() / 2));
      for (std::size_t i = 0; i < intervals.size(); ++i)
        intervals[i] = {columns.span()[2 * i], columns.span()[2 * i + 1]};
      return Mask::runs(shape, buffer_of<Index>(file, "row_ptr"), std::move(intervals), p());
    }
  } catch (const ShapeError& error) {
    reject(error.what());
  }
  reject("kind \"" + std::string(kind) + "\" is unknown");
  return {};
}

}  // namespace reticle
