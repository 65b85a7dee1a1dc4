#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <reticle/core/base/input_file.hpp>
#include <reticle/core/base/output_file.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/plugin.hpp>
#include <reticle/core/registry.hpp>

namespace reticle {
namespace {

std::string build_of(const AbiStamp& stamp) {
  const auto text = [](const auto& field) { return std::string(field, strnlen(field, sizeof field)); };
  return "reticle " + text(stamp.version) + " with " + text(stamp.compiler) + " (layout " +
         std::to_string(stamp.layout) + ")";
}

/// The dynamic linker trusts a file's headers and reads wherever they point. PluginError unless headers, segments and
/// the tables of the dynamic section lie inside the file. Truncated files and damaged headers are refused here; damaged
/// code is not detected.
class ElfCheck {
 public:
  ElfCheck(const std::filesystem::path& file, std::string_view bytes) : file_(file), bytes_(bytes) {}

  void run() {
    const auto header = read<Elf64_Ehdr>(0, "its header");
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_type != ET_DYN) reject("is not a shared object");
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_machine != this_machine())
      reject("is a shared object for another processor");
    if (header.e_phentsize != sizeof(Elf64_Phdr)) reject("is damaged: its segments have a wrong size");
    if (header.e_shoff > bytes_.size() ||
        header.e_shnum * std::uint64_t{header.e_shentsize} > bytes_.size() - header.e_shoff)
      reject("is damaged: it is shorter than its header says");
    std::optional<Elf64_Phdr> dynamic;
    for (std::uint64_t i = 0; i < header.e_phnum; ++i) {
      const auto segment = read<Elf64_Phdr>(header.e_phoff + i * sizeof(Elf64_Phdr), "its segments");
      if (segment.p_filesz > bytes_.size() || segment.p_offset > bytes_.size() - segment.p_filesz ||
          (segment.p_type == PT_LOAD && segment.p_filesz > segment.p_memsz) ||
          segment.p_vaddr + segment.p_memsz < segment.p_vaddr)
        reject("is damaged: a segment lies outside of it");
      if (segment.p_type == PT_LOAD) loaded_.push_back(segment);
      if (segment.p_type == PT_DYNAMIC) dynamic = segment;
    }
    if (!dynamic || dynamic->p_filesz % sizeof(Elf64_Dyn) != 0) reject("is damaged: it has no dynamic section");
    for (std::uint64_t at = 0; at < dynamic->p_filesz; at += sizeof(Elf64_Dyn)) {
      const auto entry = read<Elf64_Dyn>(dynamic->p_offset + at, "its dynamic section");
      if (entry.d_tag == DT_NULL) return;
      for (const Elf64_Sxword table : {DT_STRTAB, DT_SYMTAB, DT_RELA, DT_JMPREL, DT_INIT_ARRAY, DT_FINI_ARRAY,
                                       DT_GNU_HASH, DT_HASH, DT_VERSYM, DT_VERNEED, DT_INIT, DT_FINI}) {
        if (entry.d_tag == table && !is_loaded(entry.d_un.d_ptr))
          reject("is damaged: a table of its dynamic section lies outside of it");
      }
    }
    reject("is damaged: its dynamic section has no end");
  }

 private:
  static Elf64_Half this_machine() {
#if defined(__x86_64__)
    return EM_X86_64;
#elif defined(__aarch64__)
    return EM_AARCH64;
#else
    return EM_NONE;
#endif
  }

  template <class T>
  T read(std::uint64_t at, const char* what) const {
    if (at > bytes_.size() || bytes_.size() - at < sizeof(T))
      reject(std::string("is damaged: ") + what + " lie outside of it");
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }
  bool is_loaded(std::uint64_t address) const {
    return std::any_of(loaded_.begin(), loaded_.end(), [&](const Elf64_Phdr& segment) {
      return address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_memsz;
    });
  }
  [[noreturn]] void reject(const std::string& what) const { throw PluginError(file_.string() + ": " + what); }

  const std::filesystem::path& file_;
  std::string_view bytes_;
  std::vector<Elf64_Phdr> loaded_;
};

constexpr const char* kNoStamp =
    ": has no reticle ABI stamp; a plugin registers its maskers with RETICLE_REGISTER_MASKER";

std::string plugin_bytes(const std::filesystem::path& file) {
  std::error_code problem;
  if (std::filesystem::exists(file, problem) && !std::filesystem::is_regular_file(file, problem))
    throw PluginError(file.string() + ": is not a regular file");
  auto bytes = read_file<PluginError>(file);
  if (!bytes.starts_with(ELFMAG)) throw PluginError(file.string() + ": is not a shared object");
  ElfCheck(file, bytes).run();
  return bytes;
}

/// The offsets of ABI stamps in a file.
std::vector<std::size_t> stamps_in(std::string_view bytes) {
  constexpr AbiStamp kOurs = abi_stamp();
  const std::string_view magic(kOurs.magic, sizeof kOurs.magic);
  std::vector<std::size_t> stamps;
  for (std::size_t at = bytes.find(magic); at != std::string::npos; at = bytes.find(magic, at + 1)) {
    if (bytes.size() - at >= sizeof(AbiStamp)) stamps.push_back(at);
  }
  return stamps;
}

AbiStamp stamp_at(std::string_view bytes, std::size_t at) {
  AbiStamp stamp;
  std::memcpy(&stamp, bytes.data() + at, sizeof stamp);
  return stamp;
}

/// A checksum of the loaded segments, never 0. It leaves out the fields of the header that `strip` changes, and the
/// seals themselves.
std::uint64_t seal_of(std::string bytes, std::span<const std::size_t> stamps) {
  const auto clear = [&](std::size_t at, std::size_t size) {
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), size, '\0');
  };
  Elf64_Ehdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  clear(offsetof(Elf64_Ehdr, e_shoff), sizeof header.e_shoff);
  clear(offsetof(Elf64_Ehdr, e_shnum), sizeof header.e_shnum + sizeof header.e_shstrndx);
  for (const std::size_t at : stamps) clear(at + offsetof(AbiStamp, seal), sizeof(AbiStamp::seal));
  std::uint64_t seal = 0;
  for (Elf64_Half i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, bytes.data() + header.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_type != PT_LOAD) continue;
    for (std::uint64_t at = 0; at < segment.p_filesz; at += sizeof seal) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + segment.p_offset + at, std::min(sizeof word, segment.p_filesz - at));
      seal = derive_seed(seal ^ word, at);
    }
  }
  return std::max<std::uint64_t>(1, seal);
}

}  // namespace

void require_matching_stamps(const std::filesystem::path& file) {
  static constexpr AbiStamp kOurs = abi_stamp();
  const std::string bytes = plugin_bytes(file);
  const std::vector<std::size_t> stamps = stamps_in(bytes);
  std::uint64_t seal = 0;
  for (const std::size_t at : stamps) {
    AbiStamp theirs = stamp_at(bytes, at);
    seal = std::max(seal, std::exchange(theirs.seal, 0));
    if (std::memcmp(&theirs, &kOurs, sizeof theirs) != 0)
      throw PluginError(file.string() + ": was built for " + build_of(theirs) + "; this is " + build_of(kOurs) +
                        ". Build it again against the installed library");
  }
  if (stamps.empty()) throw PluginError(file.string() + kNoStamp);
  if (seal != 0 && seal != seal_of(bytes, stamps))
    throw PluginError(file.string() +
                      ": was damaged or changed after it was sealed; build it again, or seal what it is now");
}

void seal_plugin(const std::filesystem::path& file) {
  std::string bytes = plugin_bytes(file);
  const std::vector<std::size_t> stamps = stamps_in(bytes);
  if (stamps.empty()) throw PluginError(file.string() + kNoStamp);
  const std::uint64_t seal = seal_of(bytes, stamps);
  for (const std::size_t at : stamps) std::memcpy(bytes.data() + at + offsetof(AbiStamp, seal), &seal, sizeof seal);
  ElfCheck(file, bytes).run();  // in a damaged file a stamp may overlap what the dynamic linker reads
  write_file(file, bytes);
}

SharedObject::SharedObject(const std::filesystem::path& file) {
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw PluginError(std::string("cannot be loaded: ") + dlerror());
  handle_ = std::shared_ptr<void>(handle, [](void* open) { dlclose(open); });
}

void SharedObject::keep() {
  if (handle_) new std::shared_ptr<void>(handle_);
}

}  // namespace reticle
