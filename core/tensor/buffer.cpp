#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include <reticle/core/tensor/buffer.hpp>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace reticle {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;

/// Only large blocks are aligned to huge pages; rounding small ones up to that would waste memory.
std::align_val_t alignment_of(std::size_t size) { return std::align_val_t{size >= 2 * kHugePage ? kHugePage : 64}; }

void* allocate_block(std::size_t bytes) {
  const std::align_val_t alignment = alignment_of(bytes);
  void* const memory = ::operator new(bytes, alignment);
#ifdef __linux__
  if (static_cast<std::size_t>(alignment) == kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

void free_block(void* memory, std::size_t bytes) noexcept { ::operator delete(memory, alignment_of(bytes)); }

/// A cache of freed blocks for reuse at the same size: the system clears every page that it hands out, which takes as
/// long as a union of masks. Sizes are rounded up to a quarter of a power of two, so that slowly growing data, such as
/// masks while decoding, finds a block again. The block that was freed longest ago is released first.
class KeptBlocks {
 public:
  /// Smaller blocks come from malloc, which caches them itself.
  static constexpr std::size_t kMinBytes = std::size_t{64} << 10;

  static std::size_t rounded(std::size_t bytes) {
    const std::size_t quarter = quarter_of(bytes);
    return (bytes + quarter - 1) / quarter * quarter;
  }

  /// Null if no block of this size is cached.
  void* take(std::size_t size) {
    const std::lock_guard lock(mutex_);
    std::vector<Block>& blocks = blocks_[class_of(size)];
    if (blocks.empty()) return nullptr;
    void* const memory = blocks.back().memory;
    blocks.pop_back();
    kept_ -= size;
    return memory;
  }

  void keep(void* memory, std::size_t size) noexcept {
    const std::lock_guard lock(mutex_);
    try {
      blocks_[class_of(size)].push_back({memory, size, ++clock_});
      kept_ += size;
    } catch (const std::bad_alloc&) {
      free_block(memory, size);
    }
    while (kept_ > most_kept_bytes()) drop_oldest();
  }

 private:
  struct Block {
    void* memory;
    std::size_t size;
    std::uint64_t freed;
  };

  void drop_oldest() noexcept {
    const auto oldest = [](const std::vector<Block>& blocks) {
      return blocks.empty() ? std::numeric_limits<std::uint64_t>::max() : blocks.front().freed;
    };
    std::vector<Block>& blocks = *std::ranges::min_element(blocks_, {}, oldest);
    kept_ -= blocks.front().size;
    free_block(blocks.front().memory, blocks.front().size);
    blocks.erase(blocks.begin());
  }

  static std::size_t quarter_of(std::size_t size) { return std::max<std::size_t>(1, std::bit_floor(size) / 4); }
  static std::size_t class_of(std::size_t size) {
    return static_cast<std::size_t>(std::bit_width(size)) * 4 + size / quarter_of(size) % 4;
  }

  std::mutex mutex_;
  std::array<std::vector<Block>, 65 * 4> blocks_;
  std::size_t kept_ = 0;
  std::uint64_t clock_ = 0;
};

/// Leaked on purpose: the last blocks may be freed during static destruction.
KeptBlocks& kept_blocks() {
  static KeptBlocks& blocks = *new KeptBlocks;
  return blocks;
}

}  // namespace

std::size_t most_kept_bytes() {
#if defined(__SANITIZE_ADDRESS__)
  return 0;  // reuse would hide errors from the sanitizer
#else
  static constexpr std::size_t kMaxBytes = std::size_t{512} << 20;
#ifdef __linux__
  static const std::size_t limit = [] {
    const long pages = sysconf(_SC_PHYS_PAGES), page_size = sysconf(_SC_PAGESIZE);
    const bool known = pages > 0 && page_size > 0;
    return known ? std::min(kMaxBytes, static_cast<std::size_t>(pages) / 32 * static_cast<std::size_t>(page_size))
                 : kMaxBytes;
  }();
  return limit;
#else
  return kMaxBytes;
#endif
#endif
}

void* allocate_aligned(std::size_t bytes) {
  if (bytes < KeptBlocks::kMinBytes || bytes > most_kept_bytes()) return allocate_block(bytes);
  const std::size_t size = KeptBlocks::rounded(bytes);
  void* const kept = kept_blocks().take(size);
  return kept != nullptr ? kept : allocate_block(size);
}

void free_aligned(void* memory, std::size_t bytes) noexcept {
  if (bytes < KeptBlocks::kMinBytes || bytes > most_kept_bytes()) return free_block(memory, bytes);
  kept_blocks().keep(memory, KeptBlocks::rounded(bytes));
}

}  // namespace reticle
