// How rows and columns are cut among threads: a function of shapes, dtypes and strides alone, so that results are too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vae_fast {

constexpr int kThreads = 128;     // of a block
constexpr int kBlocksAtOnce = 4;  // on a multiprocessor, at least: up to 128 registers a thread; for more, ptxas spills
constexpr int kBlocksInTurn = 16;  // of a launch, for each multiprocessor: so few that nearly all are there at once
constexpr int64_t kBlocks = 512;   // that many fill a large GPU
constexpr int64_t kGroups = 4096;  // of tiles whose sums are added together, at most
constexpr int kLong = 8;           // blocks' widths in a row that is worth splitting, which takes a second launch

struct Tiling {
  int team = 1;            // neighbouring threads that take a row; a tile is as many rows as a block has teams
  int splits = 1;          // of a row, among blocks
  int split_columns = 0;   // of a split
  int tiles_together = 1;  // consecutive tiles of a block: a group
  int64_t tiles = 0, groups = 0;
};

inline int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// vector: columns that a thread takes at once, 1 where operands aren't read by vectors. shared: some gradient is summed
// over rows, first by the teams of few groups; by vectors each thread keeps the sums of its own, so that rows are split.
inline Tiling tiling_of(int64_t rows, int64_t columns, int vector, bool shared) {
  Tiling t;
  const int64_t vectors = std::max<int64_t>(1, cdiv(columns, vector));
  const int least = shared ? kThreads : vector > 1 ? 8 : 32;  // threads that read whole sectors
  while (t.team < kThreads && t.team < vectors && (t.team < least || cdiv(rows * t.team, kThreads) < kBlocks))
    t.team *= 2;
  const int64_t width = int64_t{t.team} * vector, parts = std::max<int64_t>(1, cdiv(columns, width));
  t.tiles = cdiv(rows, kThreads / t.team);
  const bool kept = shared && vector > 1;
  const int64_t groups = kept ? std::max<int64_t>(1, kBlocks / parts) : shared ? kBlocks : kGroups;
  t.tiles_together = static_cast<int>(std::max<int64_t>(1, cdiv(t.tiles, groups)));
  t.groups = cdiv(t.tiles, t.tiles_together);
  int64_t split = kept ? 1 : parts;
  if (!kept && parts >= kLong && t.groups > 0 && t.groups < kBlocks)
    split = cdiv(parts, std::min(parts, cdiv(kBlocks, t.groups)));
  t.splits = static_cast<int>(cdiv(parts, split));
  t.split_columns = static_cast<int>(split * width);
  return t;
}

// Teams that have a row: the last group may be short of some
inline int64_t teams_of(const Tiling& t, int64_t rows) {
  const int64_t teams = kThreads / t.team, before = std::max<int64_t>(0, t.groups - 1);
  return before * teams + std::min(teams, rows - before * t.tiles_together * teams);
}

}  // namespace vae_fast
