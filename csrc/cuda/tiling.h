// How rows and columns are cut among threads: a function of shapes and dtypes alone, so that results are too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vae_fast {

constexpr int kThreads = 128;      // of a block
constexpr int kBlocksInTurn = 20;  // of a launch, for each multiprocessor: few enough to be there at once, or nearly
constexpr int64_t kBlocks = 512;   // that many fill a large GPU
constexpr int kLong = 8;           // blocks' widths in a row that is worth splitting, which takes a second launch

// At least, where an observation has K parameters: up to 96 or 128 registers a thread, short of which ptxas spills
template <int K>
constexpr int blocks_per_processor = K < 4 ? 5 : 4;

struct Tiling {
  int team =
      kThreads;    // neighbouring threads that take a row, 1 to kThreads; a tile is as many rows as a block has teams
  int splits = 1;  // of a row, among blocks
  int split_columns = 0;   // of a split
  int tiles_together = 1;  // consecutive tiles of a block, more than 1 where gradients are summed over rows
  int64_t tiles = 0, groups = 0;
};

inline int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// vector: columns that a thread takes at once, 1 where operands aren't read by vectors. shared: some gradient is summed
// over rows.
inline Tiling tiling_of(int64_t rows, int64_t columns, int vector, bool shared) {
  Tiling t;
  const int64_t vectors = std::max<int64_t>(1, cdiv(columns, vector));
  const int least = vector > 1 ? 8 : 32;  // threads that read whole sectors
  if (!shared) {
    t.team = 1;
    while (t.team < kThreads && t.team < vectors && (t.team < least || cdiv(rows * t.team, kThreads) < kBlocks))
      t.team *= 2;
  }
  const int64_t width = int64_t{t.team} * vector, parts = cdiv(columns, width);
  t.tiles = cdiv(rows, kThreads / t.team);
  if (shared) t.tiles_together = static_cast<int>(std::max<int64_t>(1, cdiv(t.tiles, kBlocks)));
  t.groups = cdiv(t.tiles, t.tiles_together);
  int64_t split = std::max<int64_t>(1, parts);
  if (parts >= kLong && t.groups > 0 && t.groups < kBlocks) split = cdiv(parts, std::min(parts, kBlocks / t.groups));
  t.splits = static_cast<int>(std::max<int64_t>(1, cdiv(parts, split)));
  t.split_columns = static_cast<int>(split * width);
  return t;
}

}  // namespace vae_fast
