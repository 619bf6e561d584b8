// The loop over rows on a GPU: value[b] = sum over columns of an accumulator's terms, and the gradients, in one pass.
//
// A team of 1 to 128 neighbouring threads takes a row, so that a block of 128 has several short rows or one long one;
// rows that are longer still are split among blocks. What blocks share, they leave as partial sums, which fold.cuh adds
// in fixed order. How rows are cut depends on shapes, dtypes and strides alone (tiling.h), so the sums' bits do too.
//
// The loop does not know which likelihood or divergence it runs: that is an accumulator's (../accumulator.h).
#pragma once

#include <type_traits>

#include "../divergences.h"
#include "memory.cuh"
#include "tiling.h"

namespace vae_fast {

constexpr int kMostOptions = 6;
constexpr int kSteps = 32;  // of a vector lane before its sum is folded, which bounds the rounding

struct None {};  // in place of x's dtype: there is none

// Columns that a thread reads at once: 128 bits of the widest operand, or 0 where dtypes are known at run time only
template <class P, class X>
constexpr int vector_of = std::is_same_v<P, Any>                                   ? 0
                          : std::is_same_v<X, float> || std::is_same_v<X, int32_t> ? 4
                                                                                   : 16 / sizeof(P);

// Where a parameter's gradient goes. A parameter that is one number a row, one row for all, or both, gets a sum.
struct Gradient {
  enum Kind { kEach, kOverColumns, kOverRows, kOverAll };
  // Absent, of the parameter's dtype, or float for partial sums: [splits, rows], [teams, columns], [splits, groups]
  char* data = nullptr;
  Kind kind = kEach;
};

// The operands of one accumulator
template <int K>
struct Term {
  Matrix parameters[K], x, mask;  // x and mask may be absent
  Gradient gradients[K];
  float options[kMostOptions] = {};
  int columns = 0;
  bool vectors = false;  // what has an element for each observation lies in aligned rows, and each observation counts
};

// What the values become
struct Objective {
  Tiling tiling;
  int64_t rows = 0;
  Matrix weight, beta_factor;  // [rows] and [1], or absent
  float beta = 1, scale = 1;
  float *nll = nullptr, *kl = nullptr;  // [splits, rows] and [rows]
  float* loss = nullptr;                // [splits, groups] if `reduce`, else [splits, rows]; or absent
  bool reduce = false;
};

// The latent's part in an objective. kKnown: its kl is there already.
struct Latent {
  enum Kind { kAbsent, kTyped, kAny, kKnown } kind = kAbsent;
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

// A part of a row, and this thread's place in the team that takes it
struct Part {
  int64_t row;
  bool exists;      // false: beyond the last row, to which `row` then points
  int first, last;  // columns
  int place, team;

  __device__ __forceinline__ Part(const Tiling& tiling, int64_t tile, int64_t rows, int columns, int split)
      : row(tile * (kThreads / tiling.team) + threadIdx.x / tiling.team),
        exists(row < rows),
        place(threadIdx.x % tiling.team),
        team(tiling.team) {
    if (!exists) row = rows - 1;
    first = min(split * tiling.split_columns, columns);
    last = exists ? min(first + tiling.split_columns, columns) : first;
  }
  __device__ __forceinline__ bool writes() const { return exists && place == 0; }
};

// How a part counts
struct Use {
  float weight, factor;  // of the value and of the gradients
  int64_t cell;          // where the part's sums go
  int64_t team_cell;     // where a team's sums over rows go
  bool first_row;        // of the team
};

// One observation
template <class A, int K>
__device__ __forceinline__ void see_one(A& state, int lane, const float (&parameters)[K], float x, float scale,
                                        float (&gradients)[K]) {
  if constexpr (A::kWhole) state.whole(lane, parameters, x, scale, gradients);
  else state.step(lane, parameters, x, scale, gradients);
  if constexpr (A::kSparse && !A::kWhole)
    if (x != 0.f) state.rest(lane, parameters, x, scale, gradients);
}

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

// By vectors. WANTED has a bit for each parameter whose gradient is asked for and, above those, a bit for each whose
// gradient is summed over rows: into `over_rows`, of this thread's columns.
template <template <class, int> class Accumulator, class P, class X, int WANTED, int K, int N>
__device__ __forceinline__ void see_vectors(const Term<K>& term, const Part& part, float factor, float last_parameter,
                                            Seen<K>& seen, float (&over_rows)[K][N]) {
  constexpr int V = vector_of<P, X>;
  using A = Accumulator<float, V>;
  constexpr int kEach = shares_last<A, float> ? K - 1 : K;  // parameters that have an element for each observation
  constexpr int kOver = WANTED >> K, kStored = WANTED & ~kOver;
  constexpr bool kSumLast = kEach < K && (WANTED >> (K - 1) & 1);
  constexpr int kInterval = A::kJoined / V < kSteps ? A::kJoined / V : kSteps;
  constexpr int kTogether = A::kHeavy || std::is_same_v<X, None> ? 1 : 2;  // turns whose loads are under way at once
  const P* in[K];
  P* out[K];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    in[k] = kept(term.parameters[k].template at<P>(part.row, 0));
    if (kStored >> k & 1) out[k] = kept(reinterpret_cast<P*>(term.gradients[k].data) + part.row * term.columns);
  }
  const X* x = nullptr;
  if constexpr (!std::is_same_v<X, None>) x = kept(term.x.template at<X>(part.row, 0));
  const float one = unit(term.x);

  const int stride = part.team * V;  // a power of two
  int column = part.first + part.place * V;
  int turns = column < part.last ? ((part.last - column - 1) >> (__ffs(stride) - 1)) + 1 : 0;
  while (turns > 0) {
    A state = start<A>(term.options, last_parameter);
    const int now = min(turns, kInterval);
    turns -= now;
#pragma unroll kTogether
    for (int turn = 0; turn < now; ++turn, column += stride) {
      float parameters[K][V], gradients[K][V], observed[V] = {};
#pragma unroll
      for (int k = 0; k < kEach; ++k) load_vector(in[k] + column, 1.f, parameters[k]);
      if constexpr (!std::is_same_v<X, None>) load_vector(x + column, one, observed);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        float p[K], g[K];
#pragma unroll
        for (int k = 0; k < K; ++k) p[k] = k < kEach ? parameters[k][lane] : last_parameter;
        see_one(state, lane, p, observed[lane], factor, g);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          gradients[k][lane] = g[k];
          if constexpr (kOver != 0) over_rows[k][lane] += g[k];
        }
        if (kSumLast) seen.sums[K - 1] += g[K - 1];
      }
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (kStored >> k & 1) store_vector(out[k] + column, gradients[k]);
    }
#pragma unroll
    for (int width = V / 2; width > 0; width /= 2)
#pragma unroll
      for (int lane = 0; lane < width; ++lane) state.join(lane, lane + width);
    seen.total += state.sum(0);
  }
}

// A gradient's element, stored or added to its sum. A team meets its rows in order, and a thread its columns alone.
template <class P>
__device__ __forceinline__ void deliver(const Gradient& g, ScalarType type, int64_t row, int columns, int column,
                                        const Use& use, float value, float& sum) {
  if (!g.data) return;
  if (g.kind == Gradient::kEach) return store<P>(g.data, type, row * columns + column, value);
  if (g.kind != Gradient::kOverRows) {
    sum += value;
  } else {
    float* cell = reinterpret_cast<float*>(g.data) + use.team_cell * columns + column;
    *cell = use.first_row ? value : *cell + value;
  }
}

// By elements: any strides, any mask. A part of weight 0, and gradients whose factor is 0, leave zeros. OVER: parameters
// whose gradients are summed in registers, which such zeros don't concern.
template <template <class, int> class Accumulator, class P, class X, int OVER, int K>
__device__ __forceinline__ void see_elements(const Term<K>& term, const Part& part, const Use& use,
                                             float last_parameter, Seen<K>& seen) {
  using A = Accumulator<float, 1>;
  constexpr int kInterval = A::kJoined < kSteps ? A::kJoined : kSteps;
  const float one = unit(term.x);
  for (int column = part.first + part.place; column < part.last;) {
    A state = start<A>(term.options, last_parameter);
    for (int step = 0; step < kInterval && column < part.last; ++step, column += part.team) {
      float g[K] = {};
      if (use.weight != 0 && (!term.mask.data || __ldg(term.mask.template at<uint8_t>(part.row, column)) != 0)) {
        float p[K], x = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const Matrix& m = term.parameters[k];
          p[k] = shares_last<A, float> && k == K - 1
                     ? last_parameter
                     : load<P>(m.data, m.type, part.row * m.row_stride + column * m.column_stride, 1.f);
        }
        if constexpr (!std::is_same_v<X, None>)
          x = load<X>(term.x.data, term.x.type, part.row * term.x.row_stride + column * term.x.column_stride, one);
        see_one(state, 0, p, x, use.factor, g);
        seen.kept += 1;
      }
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (!(OVER >> k & 1))
          deliver<P>(term.gradients[k], term.parameters[k].type, part.row, term.columns, column, use,
                     use.factor == 0 ? 0.f : g[k], seen.sums[k]);
    }
    seen.total += state.sum(0);
  }
}

// Gradients' sums of a group, in a thread
template <int K, int N>
struct Sums {
  float over_all[K] = {};      // elements, in the thread that writes for the team
  float over_rows[K][N] = {};  // of each of the thread's columns
};

// The value of a part, weighted, known to all of the team. Gradients summed over its columns go to their cell.
template <template <class, int> class Accumulator, class P, class X, int WANTED, int K, int N>
__device__ __forceinline__ float see(const Term<K>& term, const Part& part, const Use& use, Sums<K, N>& sums,
                                     float* warps) {
  using A = Accumulator<float, 1>;
  const Matrix& last = term.parameters[K - 1];
  const float last_parameter =
      shares_last<A, float> ? load<Any>(last.data, last.type, part.row * last.row_stride, 1.f) : 0.f;
  Seen<K> seen;
  bool elements = true;
  if constexpr (vector_of<P, X> > 0) elements = !term.vectors || use.factor == 0;
  if (elements) see_elements<Accumulator, P, X, (WANTED >> K)>(term, part, use, last_parameter, seen);
  else if constexpr (vector_of<P, X> > 0)
    see_vectors<Accumulator, P, X, WANTED>(term, part, use.factor, last_parameter, seen, sums.over_rows);

  const float total = team_sum(seen.total, part.team, warps);
  float count = use.weight != 0 ? static_cast<float>(part.last - part.first) : 0.f;
  if (term.mask.data) count = team_sum(seen.kept, part.team, warps);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!std::is_same_v<P, Any> && !(shares_last<A, float> && k == K - 1)) continue;  // these have no sums
    const Gradient& g = term.gradients[k];
    if (!g.data || g.kind == Gradient::kEach || g.kind == Gradient::kOverRows) continue;
    const float sum = team_sum(seen.sums[k], part.team, warps);
    if (part.writes() && g.kind == Gradient::kOverColumns) reinterpret_cast<float*>(g.data)[use.cell] = sum;
    if (part.writes() && g.kind == Gradient::kOverAll) sums.over_all[k] += sum;
  }
  return count > 0 ? use.weight * start<A>(term.options, last_parameter).finish(total, count) : 0.f;
}

// What a team's threads have summed over its rows, to its cells
template <int OVER, int K, int N>
__device__ __forceinline__ void store_over_rows(const Term<K>& term, const Part& part, int64_t team_cell,
                                                const float (&over_rows)[K][N]) {
  const int column = part.first + part.place * N;
  if (column >= part.last) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!(OVER >> k & 1)) continue;
    float* cells = reinterpret_cast<float*>(term.gradients[k].data) + team_cell * term.columns + column;
#pragma unroll
    for (int lane = 0; lane < N; lane += 4) {
      const float four[4] = {over_rows[k][lane], over_rows[k][lane + 1], over_rows[k][lane + 2],
                             over_rows[k][lane + 3]};
      store_vector(cells + lane, four);
    }
  }
}

// The value and gradients of a term, or of a likelihood with a standard normal latent beside it: nll and kl of each row,
// times its weight; scale (nll + beta kl). A divergence is a term alone, its gradients times scale and beta. A block
// takes groups of tiles of rows; blockIdx.y is the split, of which the first takes the latent.
//
// P, X: dtypes of the parameters and x. With Any, gradients may be sums. WANTED: see above; for Any, as it comes.
template <template <class, int> class Accumulator, class P, class X, int WANTED, int K>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    objective(const __grid_constant__ Term<K> term, const __grid_constant__ Term<2> standard,
              const __grid_constant__ Objective o, const Latent latent) {
  constexpr bool kLikelihood = !std::is_same_v<X, None>;
  constexpr int kOver = WANTED >> K, N = kOver != 0 ? vector_of<P, X> : 1;
  __shared__ float warps[kThreads / 32];
  const Tiling& tiling = o.tiling;
  const int split = blockIdx.y, teams = kThreads / tiling.team;
  float beta = o.beta;
  if (o.beta_factor.data) beta *= load<Any>(o.beta_factor.data, o.beta_factor.type, 0, 1.f);

  for (int64_t group = blockIdx.x; group < tiling.groups; group += gridDim.x) {
    float losses = 0;
    Sums<K, N> sums;
    for (int step = 0; step < tiling.tiles_together; ++step) {
      const Part part(tiling, group * tiling.tiles_together + step, o.rows, term.columns, split);
      Use use;
      use.weight = part.exists ? 1.f : 0.f;
      if (part.exists && o.weight.data)
        use.weight = load<Any>(o.weight.data, o.weight.type, part.row * o.weight.row_stride, 1.f);
      use.factor = use.weight * o.scale * (kLikelihood ? 1.f : beta);
      use.cell = split * o.rows + part.row;
      use.team_cell = group * teams + threadIdx.x / tiling.team;
      use.first_row = step == 0;

      float loss = see<Accumulator, P, X, WANTED>(term, part, use, sums, warps);
      if (part.writes()) o.nll[use.cell] = loss;
      if (kLikelihood && split == 0 && latent.kind != Latent::kAbsent) {
        Part whole = part;
        whole.first = 0, whole.last = part.exists ? standard.columns : 0;
        use.factor *= beta;
        float kl;
        Sums<2, 1> none;
        if (latent.kind == Latent::kKnown) kl = part.writes() ? o.kl[part.row] : 0.f;
        else if (latent.kind == Latent::kTyped) kl = see<StandardKl, P, None, 0b11>(standard, whole, use, none, warps);
        else kl = see<StandardKl, Any, None, 0b11>(standard, whole, use, none, warps);
        if (part.writes() && latent.kind != Latent::kKnown) o.kl[part.row] = kl;
        if (beta != 0.f) loss += beta * kl;
      }
      loss *= o.scale;
      if (part.writes() && o.loss && !o.reduce) o.loss[use.cell] = loss;
      if (part.writes()) losses += loss;
    }
    if constexpr (kOver != 0) {
      const Part first(tiling, group * tiling.tiles_together, o.rows, term.columns, split);
      store_over_rows<kOver>(term, first, group * teams + threadIdx.x / tiling.team, sums.over_rows);
    }
    const int64_t cell = split * tiling.groups + group;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Gradient& g = term.gradients[k];
      if (!g.data || g.kind != Gradient::kOverAll) continue;
      const float sum = team_sum(sums.over_all[k], kThreads, warps);
      if (threadIdx.x == 0) reinterpret_cast<float*>(g.data)[cell] = sum;
    }
    if (kLikelihood && o.loss && o.reduce) {
      losses = team_sum(losses, kThreads, warps);
      if (threadIdx.x == 0) o.loss[cell] = losses;
    }
  }
}

}  // namespace vae_fast
