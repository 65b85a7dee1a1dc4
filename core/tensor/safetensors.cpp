#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <limits>
#include <list>
#include <set>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <reticle/core/base/checked.hpp>
#include <reticle/core/base/did_you_mean.hpp>
#include <reticle/core/base/output_file.hpp>
#include <reticle/core/tensor/safetensors.hpp>
#include <reticle/core/tensor/tensor.hpp>

static_assert(std::endian::native == std::endian::little, "safetensors data is read in place");

namespace reticle {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kPrefix = sizeof(std::uint64_t);

/// Files up to this size are copied, larger ones mapped. If a mapped file is truncated meanwhile, the process ends.
constexpr std::size_t kMaxCopiedBytes = std::size_t{64} << 20;

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f64, DType::i64, DType::i32,    DType::i16,
                             DType::i8,  DType::u64, DType::u32,  DType::u16, DType::u8,  DType::boolean};

/// A file's bytes, copied, or mapped if the file is large.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) fail(path, std::strerror(errno));
    struct stat status {};
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(file);
      fail(path, "is not a regular file");
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ <= kMaxCopiedBytes) {
      const std::string problem = read_all(file);
      close(file);
      if (!problem.empty()) fail(path, problem);
      return;
    }
    if (size_ > 0) {
      address_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      if (address_ == MAP_FAILED) {
        close(file);
        fail(path, std::strerror(errno));
      }
    }
    close(file);
  }
  ~Mapping() {
    if (address_ != nullptr) munmap(address_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::byte* data() const { return address_ != nullptr ? static_cast<const std::byte*>(address_) : copy_.data(); }
  std::size_t size() const { return size_; }

  [[noreturn]] static void fail(const std::filesystem::path& path, const std::string& what) {
    throw FormatError(path.string() + ": " + what);
  }

 private:
  /// Returns what went wrong, or an empty string if everything was read.
  std::string read_all(int file) {
    copy_.resize(size_);
    for (std::size_t done = 0; done < size_;) {
      const ssize_t count = read(file, copy_.data() + done, size_ - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return std::strerror(errno);
      if (count == 0) return "became shorter while it was read";
      done += static_cast<std::size_t>(count);
    }
    return {};
  }

  void* address_ = nullptr;  // start of the mapping; null if the bytes are copied
  Array<std::byte> copy_;
  std::size_t size_ = 0;
};

/// Parses a header, which must be shallow and must not repeat a name.
json parse_header(const std::filesystem::path& path, std::string_view text) {
  constexpr int kMaxDepth = 4;
  std::vector<std::set<std::string>> keys_of_open_objects;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth)
      Mapping::fail(path, "its header is nested more than " + std::to_string(kMaxDepth) + " levels deep");
    if (event == json::parse_event_t::object_start) keys_of_open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) keys_of_open_objects.pop_back();
    if (event == json::parse_event_t::key && !keys_of_open_objects.back().insert(parsed.get<std::string>()).second)
      Mapping::fail(path, "its header has " + parsed.dump() + " twice");
    return true;
  };
  return json::parse(text, check, /*allow_exceptions=*/false);
}

/// FormatError unless the tensors' bytes cover the data without gaps and overlaps.
void require_covered(const std::filesystem::path& path, std::vector<std::pair<Index, Index>> parts, Index size) {
  std::sort(parts.begin(), parts.end());
  Index end = 0;
  for (const auto& [from, to] : parts) {
    if (from != end)
      Mapping::fail(path, "its tensors " + std::string(from < end ? "overlap" : "leave a hole") + " at byte " +
                              std::to_string(std::min(from, end)) + " of its data");
    end = to;
  }
  if (end != size) Mapping::fail(path, "has " + std::to_string(size - end) + " bytes behind its tensors");
}

/// The value if it is a non-negative integer that fits into Index, else nothing.
std::optional<Index> as_index(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) return std::nullopt;
  return static_cast<Index>(number);
}

TensorView read_entry(const json& entry, const std::byte* data, Index data_size, std::string& problem) {
  TensorView none;
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
    problem = "needs dtype, shape and data_offsets";
    return none;
  }
  const json& dtype_name = entry["dtype"];
  const auto* dtype = std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](DType known) {
    return dtype_name.is_string() && dtype_name.get_ref<const std::string&>() == name_of(known);
  });
  if (dtype == std::end(kDTypes)) {
    problem =
        "dtype " + dtype_name.dump() + " is not one that is read (F64, F32, F16, BF16, I64 ... I8, U64 ... U8, BOOL)";
    return none;
  }
  const json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > TensorView::kMaxRank) {
    problem = "shape must be a list of at most " + std::to_string(TensorView::kMaxRank) + " extents";
    return none;
  }
  std::vector<Index> extents;
  for (const json& value : shape) {
    const std::optional<Index> extent = as_index(value);
    if (!extent) {
      problem = "shape holds " + value.dump() + "; expected non-negative integers";
      return none;
    }
    extents.push_back(*extent);
  }
  const json& offsets = entry["data_offsets"];
  const std::optional<Index> begin = offsets.is_array() && offsets.size() == 2 ? as_index(offsets[0]) : std::nullopt;
  const std::optional<Index> end = offsets.is_array() && offsets.size() == 2 ? as_index(offsets[1]) : std::nullopt;
  if (!begin || !end || *begin > *end || *end > data_size) {
    problem = "data_offsets " + offsets.dump() + " do not lie in the " + std::to_string(data_size) + " bytes of data";
    return none;
  }
  TensorView view;
  try {
    view = TensorView(data + *begin, *dtype, extents);
  } catch (const ShapeError& error) {
    problem = error.what();
    return none;
  }
  if (view.elements() * size_of(*dtype) != *end - *begin) {
    problem = view.describe() + " needs " + std::to_string(view.elements() * size_of(*dtype)) +
              " bytes; data_offsets give " + std::to_string(*end - *begin);
    return none;
  }
  return view;
}

}  // namespace

struct SafeTensors::Storage {
  explicit Storage(const std::filesystem::path& path) : mapping(path) {}
  const void* keep_aligned(const TensorView& view) {
    const auto* bytes = static_cast<const std::byte*>(view.data);
    return copies.emplace_back(bytes, bytes + view.elements() * size_of(view.dtype)).data();
  }

  Mapping mapping;
  std::list<Array<std::byte>> copies;
};

SafeTensors::SafeTensors(const std::filesystem::path& path) : path_(path) {
  const auto storage = std::make_shared<Storage>(path);
  const Mapping* const mapping = &storage->mapping;
  const std::size_t size = mapping->size();
  if (size < kPrefix) Mapping::fail(path, "has " + std::to_string(size) + " bytes; a safetensors file has 8 or more");
  std::uint64_t header_size = 0;
  std::memcpy(&header_size, mapping->data(), kPrefix);
  if (header_size > kMaxHeaderBytes || header_size > size - kPrefix)
    Mapping::fail(path, "is not a safetensors file, or is truncated: it announces a header of " +
                            std::to_string(header_size) + " bytes and has " + std::to_string(size));
  const std::byte* data = mapping->data() + kPrefix + header_size;
  const auto data_size = static_cast<Index>(size - kPrefix - header_size);
  const auto* text = reinterpret_cast<const char*>(mapping->data() + kPrefix);
  const json header = parse_header(path, {text, static_cast<std::size_t>(header_size)});
  if (!header.is_object()) Mapping::fail(path, "its header is not a JSON object");

  std::vector<std::pair<Index, Index>> parts;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) Mapping::fail(path, "__metadata__ is not a JSON object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) Mapping::fail(path, "__metadata__ holds \"" + key + "\", which is not a string");
        metadata_.emplace(key, value.get<std::string>());
      }
      continue;
    }
    std::string problem;
    TensorView view = read_entry(entry, data, data_size, problem);
    if (!problem.empty()) Mapping::fail(path, "tensor \"" + name + "\": " + problem);
    const Index from = static_cast<const std::byte*>(view.data) - data;
    parts.emplace_back(from, from + view.elements() * size_of(view.dtype));
    // Writers may leave a tensor unaligned; it is then copied, while all others are read in place.
    if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size_of(view.dtype)) != 0)
      view.data = storage->keep_aligned(view);
    tensors_.emplace(name, view);
  }
  require_covered(path, std::move(parts), data_size);
  storage_ = storage;
}

std::optional<TensorView> SafeTensors::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return std::nullopt;
  return found->second;
}

const TensorView& SafeTensors::at(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string_view> known;
  known.reserve(tensors_.size());
  for (const auto& [key, view] : tensors_) known.push_back(key);
  Mapping::fail(path_, "has no tensor \"" + std::string(name) + "\"" + did_you_mean(name, known));
}

void save_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                      const std::map<std::string, std::string, std::less<>>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = std::map<std::string, std::string>(metadata.begin(), metadata.end());
  // Widest elements first keeps every tensor aligned without gaps.
  std::vector<const NamedTensor*> order;
  order.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return size_of(a->tensor.dtype) > size_of(b->tensor.dtype);
  });
  Index offset = 0;
  for (const NamedTensor* entry : order) {
    const TensorView& view = entry->tensor;
    if (header.contains(entry->name))
      throw FormatError(path.string() + ": two tensors are named \"" + entry->name + "\"");
    if (is_quantised(entry->tensor.dtype))
      throw FormatError(path.string() + ": tensor \"" + entry->name + "\" is " + entry->tensor.describe() +
                        ", which safetensors files do not have; expected a floating or integer dtype");
    const Index bytes = checked_product({view.elements(), size_of(view.dtype)}, entry->name);
    header[entry->name] = {{"dtype", name_of(view.dtype)},
                           {"shape", std::vector<Index>(view.shape.begin(), view.shape.begin() + view.rank)},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t header_size = text.size();

  OutputFile file(path);
  file.write(&header_size, kPrefix);
  file.write(text.data(), text.size());
  for (const NamedTensor* entry : order) {
    const Tensor packed = entry->tensor.contiguous() ? Tensor() : Tensor::copy(entry->tensor, entry->tensor.dtype);
    const TensorView& view = entry->tensor.contiguous() ? entry->tensor : packed.view();
    file.write(view.data, static_cast<std::size_t>(view.elements() * size_of(view.dtype)));
  }
  file.commit();
}

}  // namespace reticle
