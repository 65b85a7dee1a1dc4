#include <filesystem>
#include <fstream>
#include <string>
#include <sys/stat.h>
#include <thread>

#include <gtest/gtest.h>

#include <reticle/core/base/input_file.hpp>

#include "support/files.hpp"

namespace reticle::testing {
namespace {

/// The error message for a file that cannot be read; empty when it can.
std::string problem_of(const std::filesystem::path& path) {
  std::string bytes, problem;
  const bool was_read = read_whole(path, bytes, problem);
  EXPECT_EQ(was_read, problem.empty());
  return problem;
}

TEST(InputFile, IsReadWholeWhateverItsBytesAndLength) {
  const TemporaryFolder folder;
  // Sizes around the 64 KiB chunks in which streams are read.
  for (const std::size_t size : {0u, 1u, 65535u, 65536u, 65537u, 200000u}) {
    std::string written(size, 'x');
    for (std::size_t i = 0; i < size; i += 7) written[i] = static_cast<char>(i);
    write_bytes(folder / "file", written);
    std::string bytes = "what was there before", problem;
    EXPECT_TRUE(read_whole(folder / "file", bytes, problem)) << problem;
    EXPECT_EQ(bytes, written) << size;
  }
}

TEST(InputFile, WithoutASizeInAdvanceIsReadToItsEnd) {
  std::string bytes, problem;
  ASSERT_TRUE(read_whole("/proc/self/status", bytes, problem)) << problem;
  EXPECT_TRUE(bytes.starts_with("Name:")) << bytes;
  EXPECT_TRUE(bytes.ends_with('\n'));
}

TEST(InputFile, ThatIsAPipeIsReadToItsEnd) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(problem_of(path), "cannot be read: it is a pipe that nobody writes to");
  // Opened for reading and writing, so that the pipe has a writer before it is read.
  std::fstream pipe(path, std::ios::in | std::ios::out);
  const std::string written(100000, 'p');
  std::thread writer([&] {
    pipe << written;
    pipe.close();
  });
  std::string bytes, problem;
  EXPECT_TRUE(read_whole(path, bytes, problem)) << problem;
  writer.join();
  EXPECT_EQ(bytes, written);
}

TEST(InputFile, ThatCannotBeReadSaysWhy) {
  const TemporaryFolder folder;
  EXPECT_EQ(problem_of(folder / "absent"), "cannot be read: No such file or directory");
  EXPECT_EQ(problem_of(folder.path()), "cannot be read: it is a directory; expected a file");
  EXPECT_EQ(problem_of(folder / ("long" + std::string(300, 'g'))), "cannot be read: File name too long");
}

TEST(InputFile, WithoutAnEndIsGivenUp) {
  EXPECT_EQ(problem_of("/dev/zero"), "cannot be read: it gave 256 MiB without an end");
}

TEST(InputFile, ThatCannotBeReadIsTheCallersErrorAndNamesThePath) {
  const TemporaryFolder folder;
  write_bytes(folder / "config.json", "{}");
  EXPECT_EQ(read_file<ConfigError>(folder / "config.json"), "{}");
  try {
    read_file<ConfigError>(folder / "absent.json");
    FAIL() << "it was read";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.what(), (folder / "absent.json").string() + ": cannot be read: No such file or directory");
  }
  EXPECT_THROW(read_file<PluginError>(folder / "absent.so"), PluginError);
}

}  // namespace
}  // namespace reticle::testing
