#include <gtest/gtest.h>

#include <reticle/core/tensor/buffer.hpp>

namespace reticle {
namespace {

TEST(Buffer, BlocksFreedLastAreGivenOutAgainAndOldOnesMakeRoom) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "nothing is kept under the address sanitizer, to which memory used again would hide errors";
#endif
  const std::size_t old_size = most_kept_bytes() / 4 * 3, new_size = old_size / 2;
  free_aligned(allocate_aligned(old_size), old_size);
  void* const block = allocate_aligned(new_size);
  free_aligned(block, new_size);
  void* const again = allocate_aligned(new_size);
  EXPECT_EQ(again, block);
  free_aligned(again, new_size);
}

TEST(Buffer, BlocksLargerThanWhatIsKeptGoBackToTheSystem) {
  const std::size_t size = most_kept_bytes() + (std::size_t{1} << 20);
  void* const block = allocate_aligned(size);
  ASSERT_NE(block, nullptr);
  free_aligned(block, size);
}

}  // namespace
}  // namespace reticle
