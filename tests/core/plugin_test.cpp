// Tests plugin files that are refused before any of their code runs; tests/install_test.py builds and loads plugins.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <filesystem>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include <reticle/core/masker.hpp>
#include <reticle/core/registry.hpp>

#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

/// The bytes of a file that contains ABI stamps: the shared library, found by the address of one of its strings, or the
/// test executable if the library is linked statically.
std::string stamped_object() {
  Dl_info info;
  const char* text = Registry::global().at("sink").docs.summary.data();
  EXPECT_NE(dladdr(text, &info), 0);
  return read_bytes(info.dli_fname);
}

constexpr AbiStamp kOurs = abi_stamp();
constexpr std::string_view kMagic(kOurs.magic, sizeof kOurs.magic);

class Plugin : public ::testing::Test {
 protected:
  /// The error message for a file with these bytes, without the path, with which every message begins.
  std::string refusal(const std::string& bytes) {
    write_bytes(file_, bytes);
    return without_path(message_of<PluginError>([&] { Registry::global().load_plugin(file_); }));
  }
  std::string without_path(const std::string& message) {
    EXPECT_TRUE(message.starts_with(file_.string() + ": ")) << message;
    return message.substr(std::min(message.size(), file_.string().size() + 2));
  }

  TemporaryFolder folder_;
  std::filesystem::path file_ = folder_ / "plugin.so";
};

template <class T>
void put(std::string& bytes, std::size_t at, const T& value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

TEST_F(Plugin, ThatIsNoSharedObjectIsRefused) {
  EXPECT_EQ(refusal(""), "is not a shared object");
  EXPECT_EQ(refusal("#!/bin/sh\n"), "is not a shared object");
  EXPECT_EQ(refusal(ELFMAG), "is damaged: its header lie outside of it");
  EXPECT_EQ(message_of<PluginError>([&] { Registry::global().load_plugin(folder_.path()); }),
            folder_.path().string() + ": is not a regular file");
  EXPECT_EQ(message_of<PluginError>([] { Registry::global().load_plugin("/nonexistent/plugin.so"); }),
            "/nonexistent/plugin.so: No such file or directory");
}

TEST_F(Plugin, WithoutAStampIsRefused) {
  const std::string message = "has no reticle ABI stamp; a plugin registers its maskers with RETICLE_REGISTER_MASKER";
  std::string bytes = stamped_object();
  for (std::size_t at = bytes.find(kMagic); at != std::string::npos; at = bytes.find(kMagic, at)) bytes[at] = 'x';
  EXPECT_EQ(refusal(bytes), message);
  EXPECT_EQ(without_path(message_of<PluginError>([&] { seal_plugin(file_); })), message);
}

TEST_F(Plugin, OfAnotherBuildIsRefusedByTheNamesOfBoth) {
  std::string bytes = stamped_object();
  const std::size_t at = bytes.find(kMagic);
  ASSERT_NE(at, std::string::npos);
  AbiStamp theirs = kOurs;
  std::memcpy(theirs.version, "0.0.1", 6);
  std::memcpy(theirs.compiler, "cc 1", 5);
  theirs.layout = 77;
  put(bytes, at, theirs);
  EXPECT_EQ(refusal(bytes), "was built for reticle 0.0.1 with cc 1 (layout 77); this is reticle " +
                                std::string(kOurs.version) + " with " + kOurs.compiler + " (layout " +
                                std::to_string(kOurs.layout) + "). Build it again against the installed library");
}

TEST_F(Plugin, WhoseHeadersAreDamagedIsRefused) {
  const std::string good = stamped_object();
  const auto damaged = [&](std::size_t at, auto value) {
    std::string bytes = good;
    put(bytes, at, value);
    return refusal(bytes);
  };
  EXPECT_EQ(refusal(good.substr(0, good.size() / 2)).substr(0, 12), "is damaged: ");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_type), Elf64_Half{ET_REL}), "is not a shared object");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_machine), Elf64_Half{EM_NONE}), "is a shared object for another processor");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_phentsize), Elf64_Half{1}), "is damaged: its segments have a wrong size");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_shoff), Elf64_Off{good.size() + 1}),
            "is damaged: it is shorter than its header says");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_phoff), Elf64_Off{good.size()}),
            "is damaged: its segments lie outside of it");
  EXPECT_EQ(damaged(offsetof(Elf64_Ehdr, e_phnum), Elf64_Half{0}), "is damaged: it has no dynamic section");
}

TEST_F(Plugin, ThatChangesAfterItWasSealedIsRefused) {
  write_bytes(file_, stamped_object());
  seal_plugin(file_);
  std::string bytes = read_bytes(file_);
  const std::size_t stamp = bytes.find(kMagic);
  ASSERT_NE(stamp, std::string::npos);
  AbiStamp sealed;
  std::memcpy(&sealed, bytes.data() + stamp, sizeof sealed);
  EXPECT_NE(sealed.seal, 0u);
  bytes[stamp + sizeof(AbiStamp)] ^= 1;  // the bytes after a stamp are loaded too
  EXPECT_EQ(refusal(bytes), "was damaged or changed after it was sealed; build it again, or seal what it is now");
}

}  // namespace
}  // namespace reticle::testing
