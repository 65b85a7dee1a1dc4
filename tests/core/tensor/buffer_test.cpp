#include <gtest/gtest.h>

#include <reticle/core/tensor/buffer.hpp>

namespace reticle {
namespace {

TEST(Buffer, BlocksFreedLastAreGivenOutAgainAndOldOnesMakeRoom) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "nothing is kept under the address sanitizer, to which memory used again would hide errors";
#endif
  constexpr std::size_t kOld = std::size_t{192} << 20, kNew = std::size_t{96} << 20;
  free_aligned(allocate_aligned(kOld), kOld);
  void* const block = allocate_aligned(kNew);
  free_aligned(block, kNew);
  void* const again = allocate_aligned(kNew);
  EXPECT_EQ(again, block);
  free_aligned(again, kNew);
}

TEST(Buffer, BlocksLargerThanWhatIsKeptGoBackToTheSystem) {
  constexpr std::size_t kHuge = std::size_t{512} << 20;
  void* const block = allocate_aligned(kHuge);
  ASSERT_NE(block, nullptr);
  free_aligned(block, kHuge);
}

}  // namespace
}  // namespace reticle
