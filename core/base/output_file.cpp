#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

#include <reticle/core/base/error.hpp>
#include <reticle/core/base/output_file.hpp>

namespace reticle {

struct OutputFile::State {
  std::filesystem::path path, target, temporary;  // temporary: empty when written in place
  int file = -1;

  [[noreturn]] void fail(const std::string& reason) const {
    throw FormatError(path.string() + ": cannot be written: " + reason);
  }
  [[noreturn]] void fail() const { fail(std::strerror(errno)); }

  void open_in_place() {
    // Without O_NONBLOCK, opening a pipe that nobody reads would wait forever.
    file = open(target.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) fail(errno == ENXIO ? "nobody reads from it" : std::strerror(errno));
    fcntl(file, F_SETFL, fcntl(file, F_GETFL) & ~O_NONBLOCK);
  }

  void open_beside(const struct stat* existing) {
    if (existing != nullptr && access(target.c_str(), W_OK) != 0) fail();
    static std::atomic<unsigned> count{0};
    temporary = target;
    temporary += ".partial-" + std::to_string(getpid()) + "-" + std::to_string(count.fetch_add(1));
    file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0) {
      temporary.clear();
      fail();
    }
    if (existing != nullptr && fchmod(file, existing->st_mode & 07777) != 0) fail();
  }

  void close_file() {
    if (file >= 0 && close(std::exchange(file, -1)) != 0) fail();
  }

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (file >= 0) close(file);
    if (!temporary.empty()) unlink(temporary.c_str());
  }
};

OutputFile::OutputFile(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->target = path;
  std::error_code problem;
  constexpr int kMaxLinks = 40;
  for (int links = 0; std::filesystem::is_symlink(state_->target, problem); ++links) {
    if (links == kMaxLinks) state_->fail("too many links");
    const std::filesystem::path next = std::filesystem::read_symlink(state_->target, problem);
    state_->target = next.is_absolute() ? next : state_->target.parent_path() / next;
  }
  struct stat status {};
  const bool exists = stat(state_->target.c_str(), &status) == 0;
  if (!exists && errno != ENOENT) state_->fail();
  if (exists && S_ISDIR(status.st_mode)) state_->fail("is a directory");
  if (exists && !S_ISREG(status.st_mode)) {
    state_->open_in_place();
  } else {
    state_->open_beside(exists ? &status : nullptr);
  }
}

OutputFile::~OutputFile() = default;

void OutputFile::write(const void* data, std::size_t size) {
  const auto* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::write(state_->file, bytes, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) state_->fail();
    bytes += count;
    size -= static_cast<std::size_t>(count);
  }
}

void OutputFile::commit() {
  if (state_->temporary.empty()) {
    state_->close_file();
    return;
  }
  if (fsync(state_->file) != 0) state_->fail();
  state_->close_file();
  if (rename(state_->temporary.c_str(), state_->target.c_str()) != 0) state_->fail();
  state_->temporary.clear();
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  OutputFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace reticle
