// The loop over rows: value[b] = sum over columns of an accumulator's terms, and the gradients, block by block.
//
// Sums are the same for any number of threads: a row is cut into chunks by its length alone, a chunk's sum is taken by
// one thread, and the chunks are added in order, in double.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <functional>

#include "block.h"

namespace vae_fast {

constexpr int64_t kGrain = 32768;   // observations that are worth a thread
constexpr int64_t kGroups = 64;     // of rows, where a gradient is summed over rows; fewer where rows are long
constexpr int64_t kSums = 1 << 20;  // of such a gradient, over all groups

// Gradients summed over rows or columns: the chunks or groups in order
template <int K>
void reduce_gradients(Rows<K>& p, int64_t groups) {
  const int64_t chunks = p.chunks();
  for (Gradient& g : p.gradients) {
    std::vector<double>& s = g.sums;
    if (s.empty()) continue;
    if (!g.over_columns) {
      for (int64_t j = 1; j < groups; ++j)
        for (int64_t i = 0; i < p.columns; ++i) s[i] += s[j * p.columns + i];
      store(s.data(), g.to, 0, 0, p.columns);
      continue;
    }
    for (int64_t b = 0; b < p.rows; ++b) {
      double sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += s[b * chunks + c];
      s[b] = sum;
    }
    for (int64_t b = 1; g.over_rows && b < p.rows; ++b) s[0] += s[b];
    for (int64_t b = 0; b < (g.over_rows ? 1 : p.rows); ++b) store(&s[b], g.to, b, 0, 1);
  }
}

// Work cut into units of equal size, for any thread; `finish` once all are done
struct Work {
  int64_t units, observations;
  std::function<void(int64_t begin, int64_t end)> run;
  std::function<void()> finish;
};

// Fills `values` (unweighted) and the gradients that are asked for
template <template <class, int> class Accumulator, class T, int K>
Work work_on(Rows<K>& p) {
  using A = Accumulator<T, kLanes>;
  constexpr int block = kStaged<A, T>;
  // Without the gradient of a last parameter that is shared there is code of its own; counts would gain nothing by it
  constexpr int kFewer = shares_last<A, T> && !A::kSparse ? K - 1 : K;
  const int wanted = p.wanted();
  const Block<K> run_one = wanted == 0        ? block_of<Accumulator, T, 0>(p)
                           : wanted <= kFewer ? block_of<Accumulator, T, kFewer>(p)
                                              : block_of<Accumulator, T, K>(p);
  const int64_t chunks = p.chunks();
  int64_t groups = p.rows;
  for (const Gradient& g : p.gradients)
    if (g.to.data && g.over_rows && !g.over_columns) {
      groups = std::min(p.rows, std::clamp<int64_t>(kSums / std::max<int64_t>(1, p.columns), 1, kGroups));
      while (groups > 1 && p.rows * p.columns / groups < kGrain / 2) groups /= 2;  // their sums cost time, too
    }
  for (Gradient& g : p.gradients)
    g.past_caches =
        g.direct() && g.to.type == scalar_type<T> && is_streamed(p.rows * p.columns * size_of(g.to.type), A::kLight);
  for (Gradient& g : p.gradients)
    if (g.to.data && !g.direct())
      g.sums.assign(std::max<int64_t>(1, g.over_columns ? p.rows * chunks : std::max<int64_t>(1, groups) * p.columns),
                    0.);
  p.values.assign(p.rows * chunks, 0.);

  const int64_t group_rows = groups ? (p.rows + groups - 1) / groups : 0;
  const auto run_units = [=, &p](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t group = u / chunks, chunk = u % chunks;
      const int64_t last_row = std::min(p.rows, (group + 1) * group_rows);
      const int64_t last = std::min(p.columns, (chunk + 1) * kChunk);
      for (int64_t row = group * group_rows; row < last_row; ++row)
        for (int64_t column = chunk * kChunk; column < last; column += block) {
          const int n = static_cast<int>(std::min<int64_t>(block, last - column));
          run_one(p, row, column, n, group);
        }
    }
  };
  return {groups * chunks, p.rows * p.columns, run_units, [=, &p] { reduce_gradients(p, groups); }};
}

// All works in one parallel region: each thread takes the same share of each
inline void run_together(const std::vector<Work>& works) {
  int64_t shares = 1, observations = 1;
  for (const Work& w : works) shares = std::max(shares, w.units), observations += w.observations;
  torch::stable::parallel_for(0, shares, std::max<int64_t>(1, kGrain * shares / observations),
                              [&](int64_t begin, int64_t end) {
                                for (const Work& w : works) w.run(begin * w.units / shares, end * w.units / shares);
                                end_streams();
                              });
  for (const Work& w : works) w.finish();
}

// The weighted value of one row, in nats
template <class P>
double row_value(const P& p, int64_t row, int64_t chunks) {
  double sum = 0;
  for (int64_t c = 0; c < chunks; ++c) sum += p.values[row * chunks + c];
  if (!p.weight.data) return sum;
  const double weight = p.row_weight(row);
  return weight == 0 ? 0. : weight * sum;
}

}  // namespace vae_fast
