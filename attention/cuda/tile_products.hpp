// Products of matrices in shared memory with the instructions of compute capability 8.0, 16 rows per warp, for tiles of
// rows and blocks of keys. Block::multiply_add and load_matrices define the fragments. Rows in shared memory are kRow
// elements apart, 16 bytes more than they hold, so that eight of them lie in different banks.
#pragma once

#include <reticle/attention/cuda/decode_block.hpp>

namespace reticle::cuda {

struct Fragment {
  std::uint32_t of[4];
};

/// The row of the tile that a thread holds as half 0 or 1; each warp has 16 rows.
RETICLE_HD inline int tile_row(int thread, int half) { return thread / kWarp * 16 + thread % kWarp / 4 + half * 8; }

/// Packs columns [16 step, 16 step + 16) of a result as the first factor of another product.
template <class T>
RETICLE_HD void pack_factor(const float (*result)[4], int step, std::uint32_t* to) {
  unrolled<4>([&](int piece) {
    const float* const pair = &result[step * 2 + piece / 2][piece % 2 * 2];
    to[piece] = pack_pair<T>(pair[0], pair[1]);
  });
}

/// A row of a tensor to copy. If `there` is false, zeros are copied instead; `from` must be a valid address even then.
template <class T>
struct SourceRow {
  const T* from;
  bool there;
};

/// Starts copying rows of head_dim elements into shared memory; row r comes from row_of(r).
template <int head_dim, int rows, int threads, class T, class Block, class RowOf>
RETICLE_HD void copy_rows(const Block& block, T* to, RowOf&& row_of) {
  constexpr int kPieces = head_dim / 8;  // of 16 bytes
  block.each([&](int thread) {
    for (int piece = thread; piece < rows * kPieces; piece += threads) {
      const int row = piece / kPieces, column = piece % kPieces * 8;
      const SourceRow<T> source = row_of(row);
      block.copy_16(&to[row * (head_dim + 8) + column], source.from + column, source.there);
    }
  });
}

/// Loads columns [16 step, 16 step + 16) of the warp's 16 rows as a first factor.
template <int kRow, class T, class Block, class To>
RETICLE_HD void load_first(const Block& block, const T* matrix, int step, To&& to) {
  block.template load_matrices<false>(
      [&](int thread) {
        const int lane = thread % kWarp, row = thread / kWarp * 16 + lane / 8 % 2 * 8 + lane % 8;
        return &matrix[row * kRow + step * 16 + lane / 16 * 8];
      },
      to);
}

/// C += A B, where A has columns [16 step, 16 step + 16) and B the rows of the same numbers, with 8 * tiles columns. If
/// `transposed`, C += A B^T, where B has 8 * tiles rows, of which the same columns are used.
template <int kRow, int tiles, bool transposed, class T, class Block, class C, class A>
RETICLE_HD void multiply_tiles(const Block& block, C&& c_of, A&& a_of, const T* b, int step) {
  PerThread<Block, Fragment> second(block);
  unrolled<tiles / 2>([&](int pair) {
    block.template load_matrices<!transposed>(
        [&](int thread) {
          const int lane = thread % kWarp, along = step * 16 + lane / 8 % 2 * 8, across = pair * 16 + lane / 16 * 8;
          return transposed ? &b[(across + lane % 8) * kRow + along] : &b[(along + lane % 8) * kRow + across];
        },
        [&](int thread) { return second[thread].of; });
    unrolled<2>([&](int n) {
      block.template multiply_add<T>([&](int thread) { return c_of(thread)[pair * 2 + n]; }, a_of,
                                     [&](int thread) { return &second[thread].of[n * 2]; });
    });
  });
}

/// C = A B^T over head_dim columns: A has 16 rows per warp, B has 8 * tiles rows. Results is a struct with a member
/// float of[tiles][4].
template <int head_dim, int tiles, class T, class Block, class Results>
RETICLE_HD void multiply_rows(const Block& block, Results& results, const T* a, const T* b) {
  constexpr int kRow = head_dim + 8;
  PerThread<Block, Fragment> first(block);
  block.each([&](int thread) {
    unrolled<tiles>([&](int tile) { unrolled<4>([&](int e) { results[thread].of[tile][e] = 0; }); });
  });
  unrolled<head_dim / 16>([&](int step) {
    load_first<kRow>(block, a, step, [&](int thread) { return first[thread].of; });
    multiply_tiles<kRow, tiles, true>(
        block, [&](int thread) { return results[thread].of; }, [&](int thread) { return first[thread].of; }, b, step);
  });
}

}  // namespace reticle::cuda
