#include <memory>
#include <new>
#include <pthread.h>
#include <utility>

#include <reticle/core/base/thread_scratch.hpp>

namespace reticle {
namespace {

/// A POSIX key holds each thread's list of owned objects: setting a value reports failure, whereas a failed
/// registration of a C++ thread_local destructor ends the process.
class Key {
 public:
  Key() : made_(pthread_key_create(&key_, [](void* list) { delete static_cast<OwnedByThread*>(list); }) == 0) {}
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;
  ~Key() {
    // Objects that threads still own are leaked: static destruction means that the process ends.
    if (made_) pthread_key_delete(key_);
  }

  OwnedByThread* list() const {
    if (!made_) throw std::bad_alloc();
    return static_cast<OwnedByThread*>(pthread_getspecific(key_));
  }

  void set_list(OwnedByThread* list) const {
    if (pthread_setspecific(key_, list) != 0) throw std::bad_alloc();
  }

 private:
  pthread_key_t key_{};
  bool made_;
};

const Key& key() {
  static const Key made;
  return made;
}

}  // namespace

OwnedByThread::~OwnedByThread() = default;

void OwnedByThread::keep(std::unique_ptr<OwnedByThread> object) {
  OwnedByThread* list = key().list();
  key().set_list(object.get());
  object.release()->next_.reset(list);
}

}  // namespace reticle
