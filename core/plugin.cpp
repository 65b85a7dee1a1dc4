#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/plugin.hpp>

namespace reticle {
namespace {

std::string build_of(const AbiStamp& stamp) {
  const auto text = [](const auto& field) { return std::string(field, strnlen(field, sizeof field)); };
  return "reticle " + text(stamp.version) + " with " + text(stamp.compiler) + " (layout " +
         std::to_string(stamp.layout) + ")";
}

/// The loader trusts what a file says of itself, and reads where that points: PluginError unless headers, segments and
/// the tables of the dynamic section lie inside the file. A file that was cut short, or whose headers were damaged, is
/// refused here; damaged code is not seen.
class ElfCheck {
 public:
  ElfCheck(const std::filesystem::path& file, std::string_view bytes) : file_(file), bytes_(bytes) {}

  void run() {
    const auto header = read<Elf64_Ehdr>(0, "its header");
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_type != ET_DYN) reject("is not a shared object");
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_machine != own_machine())
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
  static Elf64_Half own_machine() {
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

}  // namespace

void require_matching_stamps(const std::filesystem::path& file) {
  static constexpr AbiStamp kOurs = abi_stamp();
  std::error_code problem;
  if (std::filesystem::exists(file, problem) && !std::filesystem::is_regular_file(file, problem))
    throw PluginError(file.string() + ": is not a regular file");
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream && bytes.empty()) throw PluginError(file.string() + ": cannot be read");
  if (!bytes.starts_with(ELFMAG)) throw PluginError(file.string() + ": is not a shared object");
  ElfCheck(file, bytes).run();
  const std::string_view magic(kOurs.magic, sizeof kOurs.magic);
  std::size_t stamps = 0;
  for (std::size_t at = bytes.find(magic); at != std::string::npos; at = bytes.find(magic, at + 1)) {
    if (bytes.size() - at < sizeof(AbiStamp)) break;
    AbiStamp theirs;
    std::memcpy(&theirs, bytes.data() + at, sizeof theirs);
    if (std::memcmp(&theirs, &kOurs, sizeof theirs) != 0)
      throw PluginError(file.string() + ": was built for " + build_of(theirs) + "; this is " + build_of(kOurs) +
                        ". Build it again against the installed library");
    ++stamps;
  }
  if (stamps == 0)
    throw PluginError(file.string() +
                      ": has no reticle ABI stamp; a plugin registers its maskers with RETICLE_REGISTER_MASKER");
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
