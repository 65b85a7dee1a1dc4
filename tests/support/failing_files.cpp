// Preloaded (LD_PRELOAD) to kill the process (FAIL_HOW=kill) or fill its disk (FAIL_HOW=full) from the FAIL_AT-th
// change on to files in the folder FAIL_UNDER. A change is opening a file for writing, writing, syncing, renaming,
// truncating or removing. FAIL_COUNT names a file that receives the number of changes when the process ends.
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <mutex>
#include <set>
#include <string>
#include <sys/types.h>
#include <unistd.h>

namespace {

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

struct Watch {
  std::mutex mutex;
  std::set<int> open;
  long changes = 0;

  static Watch& instance() {
    static Watch* const kWatch = new Watch;  // never destroyed
    return *kWatch;
  }
  static bool is_under(const char* path) {
    const char* const folder = std::getenv("FAIL_UNDER");
    return folder != nullptr && path != nullptr && std::strncmp(path, folder, std::strlen(folder)) == 0;
  }
  bool watches(int descriptor) {
    const std::lock_guard lock(mutex);
    return open.count(descriptor) != 0;
  }
  /// Counts a change; returns true if it fails because the disk is full.
  bool fails(bool needs_room) {
    const char* const at = std::getenv("FAIL_AT");
    const std::lock_guard lock(mutex);
    ++changes;
    if (at == nullptr || changes < std::atol(at)) return false;
    if (std::strcmp(std::getenv("FAIL_HOW"), "kill") == 0) kill(getpid(), SIGKILL);
    if (needs_room) errno = ENOSPC;
    return needs_room;
  }
  void opened(int descriptor) {
    const std::lock_guard lock(mutex);
    if (descriptor >= 0) open.insert(descriptor);
  }
};

void report() {
  if (const char* const path = std::getenv("FAIL_COUNT")) {
    if (std::FILE* const file = std::fopen(path, "w")) {
      std::fprintf(file, "%ld\n", Watch::instance().changes);
      std::fclose(file);
    }
  }
}

struct ReportAtExit {
  ~ReportAtExit() { report(); }
} report_at_exit;

int opened(int (*open_it)(const char*, int, ...), const char* path, int flags, mode_t mode) {
  const bool changes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0 && Watch::is_under(path);
  if (changes && Watch::instance().fails((flags & O_CREAT) != 0)) return -1;
  const int descriptor = open_it(path, flags, mode);
  if (changes) Watch::instance().opened(descriptor);
  return descriptor;
}

}  // namespace

extern "C" {

/// Reports the count in processes that end without running destructors.
void report_changes() { report(); }

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return opened(next<int(const char*, int, ...)>("open"), path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return opened(next<int(const char*, int, ...)>("open64"), path, flags, mode);
}

int mkostemp(char* name, int flags) {
  if (Watch::is_under(name) && Watch::instance().fails(true)) return -1;
  const int descriptor = next<int(char*, int)>("mkostemp")(name, flags);
  if (Watch::is_under(name)) Watch::instance().opened(descriptor);
  return descriptor;
}

int mkstemp(char* name) { return mkostemp(name, 0); }

ssize_t write(int descriptor, const void* data, size_t size) {
  if (Watch::instance().watches(descriptor)) {
    // With FAIL_HALF, half of the data is written before the disk is full.
    if (Watch::instance().fails(true)) {
      if (size > 1 && std::getenv("FAIL_HALF") != nullptr)
        return next<ssize_t(int, const void*, size_t)>("write")(descriptor, data, size / 2);
      return -1;
    }
  }
  return next<ssize_t(int, const void*, size_t)>("write")(descriptor, data, size);
}

int fsync(int descriptor) {
  if (Watch::instance().watches(descriptor) && Watch::instance().fails(true)) return -1;
  return next<int(int)>("fsync")(descriptor);
}

int ftruncate(int descriptor, off_t size) {
  if (Watch::instance().watches(descriptor)) Watch::instance().fails(false);
  return next<int(int, off_t)>("ftruncate")(descriptor, size);
}

int rename(const char* from, const char* to) {
  if (Watch::is_under(to)) Watch::instance().fails(false);
  return next<int(const char*, const char*)>("rename")(from, to);
}

int unlink(const char* path) {
  if (Watch::is_under(path)) Watch::instance().fails(false);
  return next<int(const char*)>("unlink")(path);
}

int close(int descriptor) {
  {
    Watch& watch = Watch::instance();
    const std::lock_guard lock(watch.mutex);
    watch.open.erase(descriptor);
  }
  return next<int(int)>("close")(descriptor);
}

}  // extern "C"
