#include "fuzz.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <unistd.h>
#include <vector>

namespace reticle::fuzz {
namespace {

std::uint32_t below(std::mt19937& random, std::size_t n) {
  return static_cast<std::uint32_t>(random() % std::max<std::size_t>(1, n));
}

/// A value that often breaks limits.
Json notable(std::mt19937& random) {
  static const std::array<Json, 28> kValues{Json(0),
                                            Json(1),
                                            Json(-1),
                                            Json(2),
                                            Json(3),
                                            Json(7),
                                            Json(16),
                                            Json(64),
                                            Json(1000),
                                            Json(65536),
                                            Json(2147483647),
                                            Json(2147483648),
                                            Json(4294967296),
                                            Json(std::numeric_limits<std::int64_t>::max()),
                                            Json(std::numeric_limits<std::int64_t>::min()),
                                            Json(0.0),
                                            Json(-0.0),
                                            Json(0.5),
                                            Json(1e-300),
                                            Json(1e300),
                                            Json(0.999999),
                                            Json(nullptr),
                                            Json(true),
                                            Json(false),
                                            Json(""),
                                            Json("a"),
                                            Json::array(),
                                            Json::object()};
  return kValues[below(random, kValues.size())];
}

/// A random value in the document, more often a deep one.
Json* somewhere(Json& document, std::mt19937& random) {
  Json* at = &document;
  while ((at->is_object() || at->is_array()) && !at->empty() && below(random, 8) != 0) {
    auto member = at->begin();
    std::advance(member, below(random, at->size()));
    at = &*member;
  }
  return at;
}

std::size_t size_of(const std::string& dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  return 1;
}

struct SafetensorsText {
  Json header;
  std::string data;
};

bool parse(std::string_view bytes, SafetensorsText& file) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) return false;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > bytes.size() - sizeof length) return false;
  const std::string_view header = bytes.substr(sizeof length, length);
  // The parser drops values below a depth of 8, because mutations recurse through the document.
  file.header = Json::parse(
      header, [](int depth, Json::parse_event_t, Json&) { return depth < 8; }, false);
  file.data = bytes.substr(sizeof length + length);
  return file.header.is_object();
}

std::size_t put(std::string_view header, std::string_view data, std::uint8_t* to, std::size_t max_size) {
  const std::uint64_t length = header.size();
  if (sizeof length + header.size() + data.size() > max_size) return 0;
  std::memcpy(to, &length, sizeof length);
  std::memcpy(to + sizeof length, header.data(), header.size());
  if (!data.empty()) std::memcpy(to + sizeof length + header.size(), data.data(), data.size());
  return sizeof length + header.size() + data.size();
}

/// Gives the tensors consecutive offsets, and resizes the data to fit.
void lay_out(SafetensorsText& file, std::size_t max_size) {
  std::size_t offset = 0;
  for (auto& [name, tensor] : file.header.items()) {
    if (name == "__metadata__" || !tensor.is_object() || !tensor.contains("shape") || !tensor["shape"].is_array())
      continue;
    std::size_t bytes = size_of(tensor.value("dtype", Json("F32")).is_string() ? tensor.value("dtype", "F32") : "F32");
    for (const Json& extent : tensor["shape"])
      bytes *= extent.is_number_unsigned() ? std::min<std::size_t>(extent.get<std::size_t>(), max_size) : 1;
    if (offset + bytes > max_size) bytes = 0;
    tensor["data_offsets"] = {offset, offset + bytes};
    offset += bytes;
  }
  file.data.resize(offset, '\1');
}

void mutate_tensor(SafetensorsText& file, std::mt19937& random, std::size_t max_size) {
  static constexpr std::array<const char*, 12> kDtypes{"F64", "F32", "F16", "BF16", "I64",  "I32",
                                                       "I16", "I8",  "U8",  "U64",  "BOOL", "U16"};
  if (file.header.empty()) return;
  auto member = file.header.begin();
  std::advance(member, below(random, file.header.size()));
  Json& tensor = *member;
  if (member.key() == "__metadata__") {
    if (!tensor.is_object() || tensor.empty()) return;
    auto entry = tensor.begin();
    std::advance(entry, below(random, tensor.size()));
    if (!entry->is_string()) return;
    Json inner = Json::parse(
        entry->get<std::string>(), [](int depth, Json::parse_event_t, Json&) { return depth < 100; }, false);
    if (inner.is_structured()) {
      mutate(inner, random);
      *entry = inner.dump(-1, ' ', false, Json::error_handler_t::replace);
    } else {
      const Json value = notable(random);
      *entry = value.is_string() ? value.get<std::string>() : value.dump();
    }
    return;
  }
  switch (below(random, 5)) {
    case 0:
      if (tensor.is_object()) tensor["dtype"] = kDtypes[below(random, kDtypes.size())];
      break;
    case 1:
      if (tensor.is_object() && tensor.contains("shape") && tensor["shape"].is_array() && !tensor["shape"].empty())
        tensor["shape"][below(random, tensor["shape"].size())] = below(random, 70);
      break;
    case 2:
      if (tensor.is_object() && tensor.contains("shape") && tensor["shape"].is_array())
        tensor["shape"].push_back(below(random, 3));
      break;
    case 3:
      file.header.erase(member.key());
      break;
    default:
      mutate(tensor, random);
      break;
  }
  if (below(random, 4) != 0) lay_out(file, max_size);
}

}  // namespace

Folder::Folder() : path_(std::filesystem::path("/dev/shm") / ("reticle_fuzz_" + std::to_string(getpid()))) {
  std::filesystem::create_directories(path_);
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path Folder::write(const std::string& name, std::string_view bytes) const {
  const std::filesystem::path file = path_ / name;
  std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return file;
}

const Folder& folder() {
  static const Folder kFolder;
  return kFolder;
}

void fail(const std::string& what) {
  std::fprintf(stderr, "broken promise: %s\n", what.c_str());
  std::abort();
}

void mutate(Json& document, std::mt19937& random) {
  Json* at = somewhere(document, random);
  switch (below(random, 5)) {
    case 0:
    case 1:
      *at = notable(random);
      break;
    case 2: {
      const Json other = *somewhere(document, random);
      *at = other;
      break;
    }
    case 3:
      if (at->is_array() && !at->empty()) {
        at->erase(at->begin() + below(random, at->size()));
      } else if (at->is_object() && !at->empty()) {
        auto member = at->begin();
        std::advance(member, below(random, at->size()));
        at->erase(member.key());
      }
      break;
    default:
      if (at->is_number_integer()) {
        *at = at->get<std::int64_t>() / 2 + static_cast<std::int64_t>(below(random, 9)) - 4;
      } else if (at->is_number_float()) {
        *at = at->get<double>() * (below(random, 200) / 100.0);
      } else if (at->is_array() && !at->empty()) {
        const Json copy = (*at)[below(random, at->size())];
        at->push_back(copy);
      } else {
        *at = notable(random);
      }
  }
}

std::size_t mutate_json_text(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json document = Json::parse(
      text, [](int depth, Json::parse_event_t, Json&) { return depth < 100; }, false, true);
  if (document.is_discarded() || below(random, 4) == 0) return LLVMFuzzerMutate(data, size, max_size);
  for (std::uint32_t changes = 1 + below(random, 3); changes > 0; --changes) mutate(document, random);
  const std::string mutated = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (mutated.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(mutated.begin(), mutated.end(), data);
  return mutated.size();
}

std::size_t mutate_safetensors(std::uint8_t* data, std::size_t size, std::size_t max_size, std::mt19937& random) {
  SafetensorsText file;
  const bool whole = parse({reinterpret_cast<const char*>(data), size}, file);
  const std::uint32_t way = below(random, 5);
  if (!whole || way == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::string header = file.header.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (way == 1) {
    const std::size_t length = header.size();
    header.resize(length + 64);
    header.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(header.data()), length, header.size()));
  } else if (way == 2 && !file.data.empty()) {
    LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(file.data.data()), file.data.size(), file.data.size());
  } else {
    mutate_tensor(file, random, max_size);
    header = file.header.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  const std::size_t mutated = put(header, file.data, data, max_size);
  return mutated == 0 ? LLVMFuzzerMutate(data, size, max_size) : mutated;
}

}  // namespace reticle::fuzz
