// The loop over rows on a GPU: value[b] = sum over columns of an accumulator's terms, and the gradients, in one pass.
//
// A team of 1 to 128 neighbouring threads takes a row, so that a block of 128 has several short rows or one long one;
// rows that are longer still are split among blocks. What blocks share, they leave as partial sums, which fold.cuh adds
// in fixed order. How rows are cut is decided by shapes and dtypes alone (tiling.h), so the sums' bits are too.
//
// The loop does not know which likelihood or divergence it runs: that is an accumulator's (../accumulator.h).
#pragma once

#include "../divergences.h"
#include "memory.cuh"
#include "tiling.h"

#include <type_traits>

namespace vae_fast {

constexpr int kSteps = 32;  // of a vector lane before its sum is folded, which bounds the rounding

// Where a parameter's gradient goes. A parameter that is one number a row, one row for all, or both, gets a sum.
struct Gradient {
  char* data =
      nullptr;  // absent, or of the parameter's dtype; float for sums: [splits, rows], [groups, columns], [parts]
  enum Kind { kEach, kOverColumns, kOverRows, kOverAll } kind = kEach;
};

// The operands of one accumulator
template <int K>
struct Term {
  Matrix parameters[K], x, mask;  // x and mask may be absent
  Gradient gradients[K];
  int columns = 0;
  bool vectors = false;  // what has an element for each observation lies in aligned rows, and has a gradient if any has
};

struct None {};  // in place of x's dtype: there is none

// What the values become
struct Objective {
  Tiling tiling;
  int64_t rows = 0;
  Matrix weight, beta_factor;  // [rows] and [1], or absent
  float beta = 1, scale = 1;
  int latent_columns = 0;
  float *nll = nullptr, *kl = nullptr;  // [splits, rows] and [rows]
  float* loss = nullptr;                // [splits, groups] if `reduce`, else [splits, rows]; or absent
  bool reduce = false;
};

// The sum over a team, known to all of it; `warps` is a block's shared memory
__device__ __forceinline__ float team_sum(float value, int team, float* warps) {
  for (int distance = min(team, 32) / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (team <= 32) return value;
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int first = threadIdx.x / team * (team / 32);
  value = warps[first];
#pragma unroll 1
  for (int k = 1; k < team / 32; ++k) value += warps[first + k];
  return value;
}

// A part of a row, and this thread's place in its team
struct Part {
  int64_t row;
  int first, last;  // columns
  int place, team;
  float factor;  // of the gradients
  bool counts;   // false: beyond the last row, or of weight 0
};

template <class A>
__device__ __forceinline__ A start(float last_parameter) {
  if constexpr (std::is_constructible_v<A, float>) return A(last_parameter);
  else return A{};
}

template <class A>
constexpr bool shares_last = std::is_constructible_v<A, float>;

// p, held in registers rather than computed again in every turn of a loop
template <class S>
__device__ __forceinline__ S* kept(S* p) {
  asm("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
  return p;
}

// What a thread has seen of a part
template <int K>
struct Seen {
  float total = 0, kept = 0;  // terms; observations that a mask leaves
  float sums[K] = {};         // of gradients that are summed over columns
};

// Vectors: all operands of one row lie one after the other and aligned, and each observation counts.
template <template <class, int> class Accumulator, class P, class X, int V, bool GRADIENTS, bool SUM_LAST, int K>
__device__ __forceinline__ void see_vectors(const Term<K>& term, const Part& part, float last_parameter,
                                            Seen<K>& seen) {
  using A = Accumulator<float, V>;
  constexpr int kEach = shares_last<A> ? K - 1 : K;  // parameters that have an element for each observation
  constexpr int kInterval = A::kJoined / V < kSteps ? A::kJoined / V : kSteps;
  const int stride = part.team * V;
  const P* in[K];
  P* out[K];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    in[k] = kept(term.parameters[k].template at<P>(part.row, 0));
    out[k] = kept(reinterpret_cast<P*>(term.gradients[k].data) + part.row * term.columns);
  }
  const X* x = nullptr;
  if constexpr (!std::is_same_v<X, None>) x = kept(term.x.template at<X>(part.row, 0));
  const float one = unit(term.x.type);
  for (int column = part.first + part.place * V; column < part.last;) {
    A state = start<A>(last_parameter);
    const int end = min(part.last, column + kInterval * stride);
#pragma unroll 2
    for (; column < end; column += stride) {
      float parameters[K][V], gradients[K][V], observed[V] = {};
#pragma unroll
      for (int k = 0; k < kEach; ++k) load_vector(in[k] + column, 1.f, parameters[k]);
      if constexpr (!std::is_same_v<X, None>) load_vector(x + column, one, observed);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        float p[K], g[K];
#pragma unroll
        for (int k = 0; k < K; ++k) p[k] = k < kEach ? parameters[k][lane] : last_parameter;
        state.step(lane, p, observed[lane], part.factor, g);
#pragma unroll
        for (int k = 0; k < K; ++k) gradients[k][lane] = g[k];
        if (SUM_LAST) seen.sums[K - 1] += g[K - 1];
      }
      if (GRADIENTS) {
#pragma unroll
        for (int k = 0; k < kEach; ++k) store_vector(out[k] + column, gradients[k]);
      }
    }
#pragma unroll
    for (int width = V / 2; width > 0; width /= 2)
#pragma unroll
      for (int lane = 0; lane < width; ++lane) state.join(lane, lane + width);
    seen.total += state.sum(0);
  }
}

// A gradient's element, stored or added to its sum. A thread meets a column in row order and alone.
template <class P, bool SUMS>
__device__ __forceinline__ void deliver(const Gradient& g, ScalarType type, int64_t row, int columns, int column,
                                        int64_t group, bool first_row, float value, float& sum) {
  if (!g.data) return;
  if (!SUMS || g.kind == Gradient::kEach) return store<P>(g.data, type, row * columns + column, value);
  if (g.kind != Gradient::kOverRows) {
    sum += value;
  } else {
    float* cell = reinterpret_cast<float*>(g.data) + group * columns + column;
    *cell = first_row ? value : *cell + value;
  }
}

// Elements: any strides, any mask. A part that doesn't count, and gradients whose factor is 0, leave zeros.
template <template <class, int> class Accumulator, class P, class X, bool SUMS, int K>
__device__ __forceinline__ void see_elements(const Term<K>& term, const Part& part, float last_parameter, int64_t group,
                                             bool first_row, Seen<K>& seen) {
  using A = Accumulator<float, 1>;
  constexpr int kInterval = A::kJoined < kSteps ? A::kJoined : kSteps;
  const float one = unit(term.x.type);
  for (int column = part.first + part.place; column < part.last;) {
    A state = start<A>(last_parameter);
    for (int step = 0; step < kInterval && column < part.last; ++step, column += part.team) {
      const bool counts = part.counts && (!term.mask.data || *term.mask.template at<uint8_t>(part.row, column) != 0);
      float g[K] = {};
      if (counts) {
        float p[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Matrix& m = term.parameters[k];
          p[k] = shares_last<A> && k == K - 1
                     ? last_parameter
                     : load<P>(m.data, m.type, part.row * m.row_stride + column * m.column_stride, 1.f);
        }
        float x = 0;
        if constexpr (!std::is_same_v<X, None>)
          x = load<X>(term.x.data, term.x.type, part.row * term.x.row_stride + column * term.x.column_stride, one);
        state.step(0, p, x, part.factor, g);
        seen.kept += 1;
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const float value = part.factor == 0 ? 0.f : g[k];
        deliver<P, SUMS>(term.gradients[k], term.parameters[k].type, part.row, term.columns, column, group, first_row,
                         value, seen.sums[k]);
      }
    }
    seen.total += state.sum(0);
  }
}

// The value of a part, weighted, known to all of the team. Gradients summed over its columns go to their `cell`, those
// over all rows are gathered in the thread that `writes` for the team.
template <template <class, int> class Accumulator, class P, class X, int V, bool GRADIENTS, bool SUM_LAST, bool SUMS,
          int K>
__device__ __forceinline__ float see(const Term<K>& term, const Part& part, float weight, int64_t group, bool first_row,
                                     int64_t cell, bool writes, float (&over_all)[K], float* warps) {
  using A = Accumulator<float, 1>;
  constexpr bool kSums = SUMS || SUM_LAST;
  const Matrix& last = term.parameters[K - 1];
  const float last_parameter = shares_last<A> ? load<Any>(last.data, last.type, part.row * last.row_stride, 1.f) : 0.f;
  Seen<K> seen;
  bool elements = true;
  if constexpr (V > 0) elements = !term.vectors || !part.counts || part.factor == 0;
  if (elements) see_elements<Accumulator, P, X, kSums>(term, part, last_parameter, group, first_row, seen);
  else if constexpr (V > 0) see_vectors<Accumulator, P, X, V, GRADIENTS, SUM_LAST>(term, part, last_parameter, seen);

  const float total = team_sum(seen.total, part.team, warps);
  float count = part.counts ? static_cast<float>(part.last - part.first) : 0.f;
  if (term.mask.data) count = team_sum(seen.kept, part.team, warps);
#pragma unroll
  for (int k = 0; kSums && k < K; ++k) {
    const Gradient& g = term.gradients[k];
    if (!g.data || g.kind == Gradient::kEach || g.kind == Gradient::kOverRows) continue;
    const float sum = team_sum(seen.sums[k], part.team, warps);
    if (writes && g.kind == Gradient::kOverColumns) reinterpret_cast<float*>(g.data)[cell] = sum;
    if (writes && g.kind == Gradient::kOverAll) over_all[k] += sum;
  }
  return count > 0 ? weight * start<A>(last_parameter).finish(total, count) : 0.f;
}

template <int K>
__device__ __forceinline__ void deliver_totals(const Term<K>& term, int64_t cell, const float (&over_all)[K],
                                               float* warps) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const Gradient& g = term.gradients[k];
    if (!g.data || g.kind != Gradient::kOverAll) continue;
    const float sum = team_sum(over_all[k], kThreads, warps);
    if (threadIdx.x == 0) reinterpret_cast<float*>(g.data)[cell] = sum;
  }
}

// The latent's part of an objective: one of the two terms, or none
struct Latent {
  enum Kind { kAbsent, kStandard, kGiven } kind = kAbsent;
  bool typed = false;  // its operands have the kernel's dtype
};

// nll and kl of each row, times its weight; scale (nll + beta kl); and the gradients of that. A block takes groups of
// tiles of rows; blockIdx.y is the split.
//
// P, X: dtypes of the parameters and x. V: columns in one access, 0 for elements alone. GRADIENTS: any parameter wants
// one. SUM_LAST: so does the last, shared by a row's columns. SUMS: gradients of any kind.
template <template <class, int> class Accumulator, class P, class X, int V, bool GRADIENTS, bool SUM_LAST, bool SUMS,
          bool LATENT, int K>
__global__ void __launch_bounds__(kThreads, blocks_per_processor<K>)
    objective(const __grid_constant__ Term<K> term, const __grid_constant__ Term<2> standard,
              const __grid_constant__ Term<4> given, const __grid_constant__ Objective o, const Latent latent) {
  __shared__ float warps[kThreads / 32];
  const Tiling& tiling = o.tiling;
  const int team = tiling.team, split = blockIdx.y;
  const bool leads = threadIdx.x % team == 0;
  float beta = o.beta;
  if (LATENT && o.beta_factor.data) beta *= load<Any>(o.beta_factor.data, o.beta_factor.type, 0, 1.f);

  for (int64_t group = blockIdx.x; group < tiling.groups; group += gridDim.x) {
    float losses = 0, over_all[K] = {}, given_over_all[4] = {};
    for (int step = 0; step < tiling.tiles_together; ++step) {
      const int64_t row = (group * tiling.tiles_together + step) * (kThreads / team) + threadIdx.x / team;
      const bool exists = row < o.rows, writes = exists && leads;
      float weight = exists ? 1.f : 0.f;
      if (exists && o.weight.data) weight = load<Any>(o.weight.data, o.weight.type, row * o.weight.row_stride, 1.f);

      Part part{exists ? row : 0, 0, 0, static_cast<int>(threadIdx.x % team), team, weight * o.scale, weight != 0.f};
      if (exists) {
        part.first = min(split * tiling.split_columns, term.columns);
        part.last = min(part.first + tiling.split_columns, term.columns);
      }
      const int64_t cell = split * o.rows + row;
      float loss = see<Accumulator, P, X, V, GRADIENTS, SUM_LAST, SUMS>(term, part, weight, group, step == 0, cell,
                                                                        writes, over_all, warps);
      if (writes) o.nll[cell] = loss;
      if (LATENT && split == 0 && latent.kind != Latent::kAbsent) {
        part.first = 0, part.last = exists ? o.latent_columns : 0;
        part.factor *= beta;
        float kl, none[2];
        if (latent.kind == Latent::kGiven)
          kl = see<GaussianKl, Any, None, 0, true, false, SUMS>(given, part, weight, group, step == 0, row, writes,
                                                                given_over_all, warps);
        else if (latent.typed)
          kl = see<StandardKl, P, None, 0, true, false, false>(standard, part, weight, group, step == 0, row, writes,
                                                               none, warps);
        else
          kl = see<StandardKl, Any, None, 0, true, false, false>(standard, part, weight, group, step == 0, row, writes,
                                                                 none, warps);
        if (writes) o.kl[row] = kl;
        if (beta != 0.f) loss += beta * kl;
      }
      loss *= o.scale;
      if (writes && o.loss && !o.reduce) o.loss[cell] = loss;
      if (writes) losses += loss;
    }
    const int64_t part = split * tiling.groups + group;
    if (SUMS || SUM_LAST) deliver_totals(term, part, over_all, warps);
    if (LATENT && SUMS && split == 0 && latent.kind == Latent::kGiven)
      deliver_totals(given, group, given_over_all, warps);
    if (LATENT && o.loss && o.reduce) {
      losses = team_sum(losses, kThreads, warps);
      if (threadIdx.x == 0) o.loss[part] = losses;
    }
  }
}

}  // namespace vae_fast
