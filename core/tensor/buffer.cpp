#include <new>

#include <reticle/core/tensor/buffer.hpp>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace reticle {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;

/// Small blocks would be rounded up by too much.
std::align_val_t alignment_of(std::size_t bytes) { return std::align_val_t{bytes >= 2 * kHugePage ? kHugePage : 64}; }

}  // namespace

void* allocate_aligned(std::size_t bytes) {
  const std::align_val_t alignment = alignment_of(bytes);
  void* const memory = ::operator new(bytes, alignment);
#ifdef __linux__
  if (static_cast<std::size_t>(alignment) == kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

void free_aligned(void* memory, std::size_t bytes) noexcept { ::operator delete(memory, alignment_of(bytes)); }

}  // namespace reticle
