#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <poll.h>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

#include <reticle/core/base/input_file.hpp>

namespace reticle {
namespace {

class OpenFile {
 public:
  /// Opens without waiting (O_NONBLOCK): an ordinary open blocks forever on a pipe that nobody writes to.
  explicit OpenFile(const std::filesystem::path& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

}  // namespace

bool read_whole(const std::filesystem::path& path, std::string& bytes, std::string& problem) {
  const auto refuse = [&](const std::string& why) {
    problem = why;
    return false;
  };
  const auto unreadable = [&] { return refuse(std::string("cannot be read: ") + std::strerror(errno)); };
  const OpenFile file(path);
  struct stat status {};
  if (file.descriptor() < 0 || ::fstat(file.descriptor(), &status) != 0) return unreadable();
  if (S_ISDIR(status.st_mode)) return refuse("cannot be read: it is a directory; expected a file");
  const bool regular = S_ISREG(status.st_mode);
  constexpr std::size_t kPiece = std::size_t{1} << 16;
  bytes.clear();
  for (;;) {
    const std::size_t before = bytes.size();
    // The size of a regular file is known; one further byte shows whether the file has grown.
    const std::size_t rest =
        regular && status.st_size > 0 && before == 0 ? static_cast<std::size_t>(status.st_size) + 1 : kPiece;
    bytes.resize(before + rest);
    ssize_t got = ::read(file.descriptor(), bytes.data() + before, rest);
    while (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      pollfd wait{file.descriptor(), POLLIN, 0};
      if (::poll(&wait, 1, -1) < 0 && errno != EINTR) return unreadable();
      got = ::read(file.descriptor(), bytes.data() + before, rest);
    }
    if (got < 0) return unreadable();
    bytes.resize(before + static_cast<std::size_t>(got));
    if (got == 0) break;
    if (!regular && bytes.size() > kMaxStreamBytes) return refuse("cannot be read: it gave 256 MiB without an end");
  }
  if (bytes.empty() && S_ISFIFO(status.st_mode)) return refuse("cannot be read: it is a pipe that nobody writes to");
  return true;
}

}  // namespace reticle
