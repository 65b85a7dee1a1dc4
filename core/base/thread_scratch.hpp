#pragma once

#include <memory>
#include <utility>

#include <reticle/core/base/export.hpp>

namespace reticle {

/// An object that a thread owns until the thread ends.
class RETICLE_API OwnedByThread {
 public:
  OwnedByThread() = default;
  OwnedByThread(const OwnedByThread&) = delete;
  OwnedByThread& operator=(const OwnedByThread&) = delete;
  virtual ~OwnedByThread();

  /// Gives object to the calling thread.
  /// \throws std::bad_alloc
  static void keep(std::unique_ptr<OwnedByThread> object);

 private:
  std::unique_ptr<OwnedByThread> next_;
};

/// Memory that a thread keeps between calls, so that a loop allocates once:
///
///     static thread_local constinit ThreadScratch<std::vector<Run>> scratch;
///     std::vector<Run>& runs = scratch.get();
///
/// A plain thread_local vector does the same until memory runs out: the C library ends the process if it cannot
/// register the vector's destructor, whereas this class throws.
template <class T>
class ThreadScratch {
 public:
  /// The calling thread's T, made at its first call.
  /// \throws std::bad_alloc
  T& get() {
    if (object_ == nullptr) {
      auto made = std::make_unique<Owned>();
      T* object = &made->object;
      OwnedByThread::keep(std::move(made));
      object_ = object;
    }
    return *object_;
  }

 private:
  struct Owned final : OwnedByThread {
    T object;
  };

  T* object_ = nullptr;
};

}  // namespace reticle
