#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/output_file.hpp>

#include "support/files.hpp"

namespace reticle::testing {
namespace {

std::string refusal(const std::filesystem::path& path) {
  try {
    write_file(path, "new");
  } catch (const FormatError& error) {
    return std::string(error.what()).substr(path.string().size());
  }
  return "written";
}

TEST(OutputFile, KeepsModesAndFollowsLinks) {
  const TemporaryFolder folder;
  write_file(folder / "secret", "old");
  chmod((folder / "secret").c_str(), 0600);
  std::filesystem::create_symlink("secret", folder / "link");
  write_file(folder / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_bytes(folder / "secret"), "new");
  struct stat status {};
  ASSERT_EQ(stat((folder / "secret").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  std::filesystem::create_symlink("absent", folder / "dangling");
  write_file(folder / "dangling", "new");
  EXPECT_EQ(read_bytes(folder / "absent"), "new");
}

TEST(OutputFile, WritesToWhatIsNoRegularFileAndReplacesNothing) {
  const TemporaryFolder folder;
  write_file("/dev/null", "new");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(refusal(folder / "pipe"), ": cannot be written: nobody reads from it");
  EXPECT_TRUE(std::filesystem::is_fifo(folder / "pipe"));
  EXPECT_EQ(refusal(folder.path()), ": cannot be written: is a directory");
  EXPECT_EQ(refusal(folder / "no/such"), ": cannot be written: No such file or directory");
  EXPECT_EQ(refusal("/dev/full"), ": cannot be written: No space left on device");
}

TEST(OutputFile, LeavesWhatWasThereUnlessItIsCommitted) {
  const TemporaryFolder folder;
  write_file(folder / "kept", "old");
  {
    OutputFile file(folder / "kept");
    file.write("new", 3);
  }
  EXPECT_EQ(read_bytes(folder / "kept"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  const pid_t child = fork();
  if (child == 0) {
    OutputFile file(folder / "kept");
    file.write("new", 3);
    raise(SIGKILL);
  }
  waitpid(child, nullptr, 0);
  EXPECT_EQ(read_bytes(folder / "kept"), "old");
}

}  // namespace
}  // namespace reticle::testing
