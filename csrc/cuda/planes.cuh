// The loop over planes on a GPU: value[b] = sum over the observations of a row, to each of which C parameters belong, and
// the gradients, in one pass.
//
// A block stages the parameters of a tile of observations in shared memory, read once and in the order in which they lie;
// there the gradients of the first pass take their place, are multiplied by the components' shares, and leave as they
// came. A thread takes an observation; of a likelihood whose components are single planes, a warp may instead.
// Blocks that share a row leave partial sums, as in rows.cuh.
//
// The loop does not know which likelihood it runs: that is an accumulator's (../joint.h).
#pragma once

#include "../cube.h"
#include "../joint.h"
#include "rows.cuh"

namespace vae_fast {

constexpr int kTileThreads = 64;             // of a block, and the most observations of a tile
constexpr int kTileBytes = (48 << 10) - 64;  // of shared memory, which a block's sums are in too
constexpr int kTileBlocks = 8;               // on a multiprocessor, at least

struct JointTerm {
  Cube parameters, x, gradient;  // the gradient may be absent
  Matrix mask;                   // may be absent
  float options[kMostOptions] = {};
  int planes = 0, columns = 0;
  int together = 0;     // observations of a tile; in shared memory planes are one more apart, which spreads the banks
  bool single = false;  // each observation is a row of its own, and `columns` those rows
};

// Calls f(offset, cell) for a tile's elements, neighbours in memory by neighbouring threads: where an element lies in
// `cube`, from the tile's first observation on, and in shared memory, where an observation is `across` further on than
// the one before, and a plane `down`. Both are only added to from one turn to the next.
template <class F>
__device__ __forceinline__ void each_element(const JointTerm& term, const Cube& cube, int n, int across, int down,
                                             const F& f) {
  const int threads = blockDim.x, planes = term.planes;
  const int of_plane = static_cast<int>(cube.plane_stride), of_column = static_cast<int>(cube.column_stride);
  if (term.parameters.plane_stride == 1) {
    const int i = threadIdx.x / planes, next = threads / planes, more = threads % planes;
    int c = threadIdx.x % planes, offset = i * of_column + c * of_plane, cell = i * across + c * down;
    const int offset_on = next * of_column + more * of_plane, cell_on = next * across + more * down;
    const int offset_back = of_column - planes * of_plane, cell_back = across - planes * down;
#pragma unroll 4
    for (int e = threadIdx.x; e < n * planes; e += threads) {
      f(offset, cell);
      c += more, offset += offset_on, cell += cell_on;
      if (c >= planes) c -= planes, offset += offset_back, cell += cell_back;
    }
  } else {
    const int i = threadIdx.x % term.together, side = threads / term.together;
    if (i >= n) return;
    const int first = threadIdx.x / term.together;
    int offset = i * of_column + first * of_plane, cell = i * across + first * down;
#pragma unroll 4
    for (int c = first; c < planes; c += side, offset += side * of_plane, cell += side * down) f(offset, cell);
  }
}

// Where observations from `column` on lie
template <class P>
__device__ __forceinline__ P* place(const Cube& cube, int64_t row, int64_t column) {
  return reinterpret_cast<P*>(cube.data) + row * cube.row_stride + column * cube.column_stride;
}

// The value of the thread's observation, from its planes; they become its gradients
template <class A, bool GRADIENTS>
__device__ __forceinline__ float close_thread(A& state, Planes<float> p, float factor) {
#pragma unroll 1
  for (int k = 0; k < state.components; ++k) state.template look<GRADIENTS>(0, k, p);
#pragma unroll 1
  for (int k = 0; k < state.components; ++k) state.weigh(0, k, p);
  const float value = state.close(0);
#pragma unroll 1
  for (int k = 0; GRADIENTS && k < state.components; ++k) state.share(0, k, p, factor);
  return value;
}

// The same for a warp's
template <class A, bool GRADIENTS>
__device__ __forceinline__ float close_warp(A& state, Planes<float> p, float factor) {
  const auto exchange = [](float value, int distance) { return __shfl_xor_sync(0xffffffffu, value, distance); };
  const int lane = threadIdx.x % 32;
  for (int k = lane; k < state.components; k += 32) state.template look<GRADIENTS>(0, k, p);
  state.join_looks(exchange);
  for (int k = lane; k < state.components; k += 32) state.weigh(0, k, p);
  state.join_weights(exchange);
  const float value = state.close(0);
  for (int k = lane; GRADIENTS && k < state.components; k += 32) state.share(0, k, p, factor);
  return value;
}

// A tile: how its observation counts, and its value, which the threads (of a warp, the first) whose it is return
template <class A, class P, bool GRADIENTS, bool BY_WARP>
__device__ __forceinline__ float see_tile(const JointTerm& term, int64_t row, int column, int n, float weight,
                                          float scale, float* staged) {
  const int planes = term.planes;
  const int across = BY_WARP ? planes : 1, down = BY_WARP ? 1 : term.together + 1;  // in shared memory
  const int mine = BY_WARP ? threadIdx.x / 32 : threadIdx.x;
  const auto* from = reinterpret_cast<const char*>(place<P>(term.parameters, row, column));
  __syncthreads();
  each_element(term, term.parameters, n, across, down,
               [&](int offset, int cell) { staged[cell] = load<P>(from, term.parameters.type, offset, 1.f); });
  __syncthreads();

  float value = 0.f;
  if (mine < n) {
    const int at = column + mine;
    bool counts = weight != 0.f;
    if (counts && term.mask.data)
      counts =
          __ldg(term.single ? term.mask.template at<uint8_t>(at, 0) : term.mask.template at<uint8_t>(row, at)) != 0;
    A state(term.options, planes);
    float x[A::kTargets];
    for (int c = 0; c < A::kTargets; ++c)
      x[c] = load<Any>(term.x.data, term.x.type,
                       row * term.x.row_stride + c * term.x.plane_stride + at * term.x.column_stride, 1.f);
    state.observe(0, x);
    const Planes<float> p{staged + mine * across, down};
    const float factor = counts ? weight * scale : 0.f;
    float found;
    if constexpr (BY_WARP) found = close_warp<A, GRADIENTS>(state, p, factor);
    else found = close_thread<A, GRADIENTS>(state, p, factor);
    if (counts && (!BY_WARP || threadIdx.x % 32 == 0)) value = found;
  }
  if (GRADIENTS) {
    auto* to = reinterpret_cast<char*>(place<P>(term.gradient, row, column));
    __syncthreads();
    each_element(term, term.gradient, n, across, down,
                 [&](int offset, int cell) { store<P>(to, term.gradient.type, offset, staged[cell]); });
  }
  return value;
}

// nll of each row, times its weight; scale (nll + beta kl), kl known; the gradients of scale nll. blockIdx.y is the split
// of a row; where observations are rows of their own, a block takes groups of tiles of them.
template <template <class, int> class Accumulator, class P, bool GRADIENTS, bool BY_WARP>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    joint_objective(const __grid_constant__ JointTerm term, const __grid_constant__ Objective o) {
  using A = Accumulator<float, 1>;
  extern __shared__ float staged[];
  __shared__ float warps[kTileThreads / 32];
  static_assert(kTileBytes + sizeof(warps) <= 48 << 10, "more shared memory than a block has without asking");
  const int split = blockIdx.y, together = term.together, threads = blockDim.x;
  const int mine = BY_WARP ? threadIdx.x / 32 : threadIdx.x;
  const bool writes = BY_WARP ? threadIdx.x % 32 == 0 : true;
  float beta = o.beta;
  if (o.beta_factor.data) beta *= load<Any>(o.beta_factor.data, o.beta_factor.type, 0, 1.f);
  const auto weight_of = [&](int64_t row) {
    return o.weight.data ? load<Any>(o.weight.data, o.weight.type, row * o.weight.row_stride, 1.f) : 1.f;
  };
  const auto loss_of = [&](float nll, int64_t row) {
    if (o.kl && split == 0 && beta != 0.f) nll += beta * o.kl[row];
    return nll * o.scale;
  };

  for (int64_t group = blockIdx.x; group < o.tiling.groups; group += gridDim.x) {
    const int64_t cell = split * o.tiling.groups + group;
    float total = 0.f, losses = 0.f;
    if (term.single) {
      const int first = static_cast<int>(group) * together, n = min(together, term.columns - first);
      const int64_t row = first + min(mine, n - 1);
      const float weight = weight_of(row);
      const float value = see_tile<A, P, GRADIENTS, BY_WARP>(term, 0, first, n, weight, o.scale, staged);
      if (mine < n && writes) {
        const float nll = weight != 0.f ? weight * value : 0.f;
        o.nll[row] = nll;
        losses = loss_of(nll, row);
        if (o.loss && !o.reduce) o.loss[row] = losses;
      }
    } else {
      const float weight = weight_of(group);
      const int begin = split * o.tiling.split_columns, end = min(begin + o.tiling.split_columns, term.columns);
      for (int column = begin; column < end; column += together)
        total += see_tile<A, P, GRADIENTS, BY_WARP>(term, group, column, min(together, end - column), weight, o.scale,
                                                    staged);
      total = team_sum(total, threads, warps);
      if (threadIdx.x == 0) {
        const float nll = weight != 0.f ? weight * total : 0.f;
        o.nll[split * o.rows + group] = nll;
        losses = loss_of(nll, group);
        if (o.loss && !o.reduce) o.loss[split * o.rows + group] = losses;
      }
    }
    if (o.loss && o.reduce) {
      losses = team_sum(losses, threads, warps);
      if (threadIdx.x == 0) o.loss[cell] = losses;
    }
  }
}

}  // namespace vae_fast
