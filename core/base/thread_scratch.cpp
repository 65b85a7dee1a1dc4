#include <memory>
#include <new>
#include <pthread.h>
#include <utility>

#include <reticle/core/base/thread_scratch.hpp>

namespace reticle {
namespace {

/// The list of what each thread owns hangs on a POSIX key: setting one fails with an error, where registering a C++
/// destructor ends the process.
class Key {
 public:
  Key() : made_(pthread_key_create(&key_, [](void* list) { delete static_cast<OwnedByThread*>(list); }) == 0) {}
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;
  ~Key() {
    // What threads still own then is left to the end of the process, which is what deletes this.
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
