// One block of one row: its observations' value, and their gradients, in one pass.
//
// It does not know which likelihood or divergence it runs: that is an accumulator's (../accumulator.h).
#pragma once

#include <algorithm>
#include <vector>

#include "../accumulator.h"
#include "lanes.h"
#include "matrix.h"
#include "memory.h"
#include "selection.h"
#include "stream.h"

// A loop by lanes: independent of one another, and not to be taken apart before vectors are made of it
#define VAE_FAST_BY_LANES _Pragma("GCC ivdep") _Pragma("GCC unroll 1")

namespace vae_fast {

constexpr int kLanes = 16;
constexpr int kBlock = 512;  // observations of one sum: 32 steps a lane, whose rounding stays below 1e-6
constexpr int kPiece = 128;  // that a part of a step takes in turn: what it hands on stays in the first-level cache
constexpr int64_t kChunk = 32 * kBlock;  // of a row, for one thread
constexpr int64_t kUncached = 1 << 19;   // that two cores' own caches don't hold

// One parameter's gradient. Summed over rows or columns where the parameter is repeated along them.
struct Gradient {
  Matrix to;  // absent: not asked for
  bool over_rows = false, over_columns = false;
  bool past_caches = false;  // it is written there (stream.h)
  std::vector<double> sums;  // over columns: [rows, chunks]; over rows alone: [groups, columns]

  bool direct() const { return to.data && !over_rows && !over_columns; }
};

struct Position {
  int64_t row, column;
};

template <int K>
struct Rows {
  int64_t rows = 0, columns = 0;
  Matrix parameters[K], x, mask;  // x and mask may be absent
  Matrix weight;                  // [rows] or absent: a row of weight 0 is not used
  double scale = 1;               // of the gradients, beside the weight
  std::vector<double> options;    // of the accumulator
  Gradient gradients[K];
  std::vector<double> values;  // [rows, chunks]

  int64_t chunks() const { return columns > kChunk ? (columns + kChunk - 1) / kChunk : 1; }
  int64_t cell(int64_t row, int64_t column) const { return row * chunks() + column / kChunk; }
  double row_weight(int64_t row) const {
    double w = 1;
    return weight.data ? *load(weight, row, 0, 1, &w) : w;
  }
  // What memory is asked for during the n observations from (row, column) on: the next ones, but a piece further on, since
  // what is asked for with a block's last steps would come too late for the next one's first. Where rows don't follow each
  // other in memory, the first piece of each isn't asked for.
  Position position_ahead(int64_t row, int64_t column, int64_t n) const {
    const bool ends = column + n == columns;
    return {ends ? row + 1 : row, (ends ? 0 : column + n) + kPiece};
  }
  // Whether that goes for what lies in place, too: Intel's processors gain by it, AMD's lose
  bool is_asked_for_in_place() const { return kIsIntel && rows * columns >= kUncached; }
  // The place of the last parameter whose gradient is asked for, counted from 1; 0 if there is none
  int wanted() const {
    int k = K;
    while (k > 0 && !gradients[k - 1].to.data) --k;
    return k;
  }
};

template <int WIDTH = kLanes / 2, class T>
inline __attribute__((always_inline)) T add_lanes(const T* sums) {
  T halves[WIDTH];
  for (int lane = 0; lane < WIDTH; ++lane) halves[lane] = sums[lane] + sums[lane + WIDTH];
  if constexpr (WIDTH == 1) return halves[0];
  else return add_lanes<WIDTH / 2>(halves);
}

// Blocks of a row that are staged at once: of few parameters two, of sums that are settled in between four
template <class A>
constexpr int kBlocks = A::kSettled > 0 ? 4 : 2 - (A::kParameters > 2);

// Observations of these, in double as many bytes; and those of one sum
template <class A, class T>
constexpr int kStaged = kBlock * kBlocks<A> * sizeof(float) / sizeof(T);
template <class A, class T>
constexpr int kSummed = A::kSettled > 0 ? kStaged<A, T> : std::min(kBlock, kStaged<A, T>);

// Which of an accumulator's functions sees the observations
enum class Call { kStep, kRest };

// How many parameters are an observation's own: the last may be the row's
template <class A, class T>
constexpr int kOwn = A::kParameters - shares_last<A, T>;

// Whether what an observation finds at k is its own
template <class A, class T>
constexpr bool is_own(int k) {
  return k < kOwn<A, T> || k >= A::kParameters;
}

// How many numbers of an observation the part finds: the parameters, and what parts before it handed on
template <class A>
constexpr int seen_by(int part) {
  int seen = A::kParameters;
  for (int k = 0; k < part; ++k) seen += A::kCarried[k];
  return seen;
}
template <class A, Call CALL>
constexpr int kSeen = seen_by<A>(CALL == Call::kStep ? A::kParts - 1 : 0);

// What kLanes observations are made of, which is stored as P and X, as T; in: where the parameters are then
template <class A, class P, class X, class T>
inline __attribute__((always_inline)) void widen_operands(const P* const* parameters, const X* x,
                                                          T (&widened)[A::kParameters + 1][kLanes],
                                                          const T* (&in)[A::kParameters]) {
  for (int k = 0; k < A::kParameters; ++k) in[k] = widened[k];
  for (int k = 0; k < kOwn<A, T>; ++k) widen_lanes(parameters[k], widened[k]);
  widen_lanes(x, widened[A::kParameters]);
}

// A part, not the last, of the steps of kLanes consecutive observations, from place i of a piece on; P and X: what
// parameters and x are stored as
template <int PART, class A, class P, class X, class T>
inline __attribute__((always_inline)) void prepare_lanes(const A& state, const P* const* parameters,
                                                         T (*carried)[kPiece], int i, const X* x) {
  constexpr int K = A::kParameters, S = seen_by<A>(PART), HANDED = A::kCarried[PART];
  if constexpr (std::is_same_v<P, T> && std::is_same_v<X, T>) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) {
      T in[S], out[HANDED];
      for (int k = 0; k < K; ++k) in[k] = is_own<A, T>(k) ? parameters[k][lane] : T(0);
      for (int k = K; k < S; ++k) in[k] = carried[k - K][i + lane];
      state.prepare(in, x[lane], out);
      for (int k = 0; k < HANDED; ++k) carried[S - K + k][i + lane] = out[k];
    }
  } else {
    T widened[K + 1][kLanes];
    const T* in[K];
    widen_operands<A>(parameters, x, widened, in);
    prepare_lanes<PART>(state, in, carried, i, widened[K]);
  }
}

// All parts of n <= kPiece steps but the last; n is a multiple of kLanes. Meanwhile memory fetches, of operands in
// place, what the last part will write to and the next n observations: parts in turn would ask for it all at once, and
// wait.
template <int GRADIENTS, int PART = 0, class A, class P, class X, class T>
inline __attribute__((always_inline)) void prepare(const A& state, const P* const* parameters, T (*carried)[kPiece],
                                                   const X* x, P* const* gradients, int n) {
  if constexpr (PART + 1 < A::kParts) {
    constexpr int K = A::kParameters;
    for (int i = 0; i < n; i += kLanes) {
      if constexpr (PART == 0)
        for (int k = 0; k < std::min(GRADIENTS, kOwn<A, T>); ++k) __builtin_prefetch(gradients[k] + i, 1);
      if constexpr (PART == A::kParts - 2) {
        __builtin_prefetch(x + n + i);
        for (int k = 0; k < kOwn<A, T>; ++k) __builtin_prefetch(parameters[k] + n + i);
      }
      const P* from[K];
      for (int k = 0; k < K; ++k) from[k] = parameters[k] + i;
      prepare_lanes<PART>(state, from, carried, i, x + i);
    }
    prepare<GRADIENTS, PART + 1>(state, parameters, carried, x, gradients, n);
  }
}

// kLanes consecutive observations, and the gradients of the first GRADIENTS parameters; P and X: what parameters and x are
// stored as; carried: what parts before handed on
template <int GRADIENTS, Call CALL, class A, class P, class X, class T>
inline __attribute__((always_inline)) void step_lanes(A& state, const P* const* parameters, const X* x,
                                                      P* const* gradients, T scale, const T* const* carried = nullptr) {
  constexpr int K = A::kParameters, S = kSeen<A, CALL>;
  if constexpr (std::is_same_v<P, T> && std::is_same_v<X, T>) {
    VAE_FAST_BY_LANES
    for (int lane = 0; lane < kLanes; ++lane) {
      T in[S], out[K] = {};
      for (int k = 0; k < K; ++k) in[k] = is_own<A, T>(k) ? parameters[k][lane] : T(0);
      for (int k = K; k < S; ++k) in[k] = carried[k - K][lane];
      if constexpr (S > K) state.complete(lane, in, x[lane], scale, out);
      else if constexpr (CALL == Call::kStep) state.step(lane, in, x[lane], scale, out);
      else state.rest(lane, in, x[lane], scale, out);
      for (int k = 0; k < GRADIENTS; ++k) gradients[k][lane] = out[k];
    }
  } else {
    T widened[K + 1][kLanes], found[K][kLanes];
    const T* in[K];
    T* out[K];
    for (int k = 0; k < K; ++k) out[k] = found[k];
    widen_operands<A>(parameters, x, widened, in);
    step_lanes<GRADIENTS, CALL>(state, in, widened[K], out, scale, carried);
    for (int k = 0; k < GRADIENTS; ++k) narrow_lanes(found[k], gradients[k]);
  }
}

// After the step on lanes from i on
template <class A>
inline __attribute__((always_inline)) void settle_after(A& state, int i) {
  if constexpr (A::kSettled > 0) {
    if (i / kLanes % A::kSettled != A::kSettled - 1) return;
#pragma GCC ivdep
#pragma GCC unroll 1
    for (int lane = 0; lane < kLanes; ++lane) state.settle(lane);
  }
}

// Operands and results that are needed later: the next block's, where blocks are moved to and from a buffer. A move is a
// burst that waits for memory, which has nothing to do during the steps before: then it is asked for what comes next.
template <int N>
class Ahead {
 public:
  void add(const Matrix& m, int64_t row, int64_t column) {
    if (m.column_stride != 1 || m.row_stride == 0) return;
    bytes_[count_] = static_cast<int>(size_of(m.type));
    first_[count_] = m.data + (row * m.row_stride + column) * bytes_[count_];
    ++count_;
  }
  bool is_empty() const { return count_ == 0; }
  // kPiece observations. Were it not inlined at once, GCC would see no effect in it, and leave it out.
  inline __attribute__((always_inline)) void fetch(int from) const {
    for (int k = 0; k < count_; ++k)
      for (int byte = 0; byte < kPiece * bytes_[k]; byte += kLine)
        __builtin_prefetch(first_[k] + from * bytes_[k] + byte);
  }

 private:
  const char* first_[N];
  int bytes_[N];  // of an observation
  int count_ = 0;
};

// Nothing to do between steps
struct NothingBetween {
  void operator()(int) const {}
};

// n steps; n is a multiple of kLanes. between(i) before that of observation i, a multiple of kPiece. Light steps have a
// loop of their own from one to the next: around `between`, their sums would go through memory. Constants of heavier
// steps don't all fit the registers, and would come back once more for each such loop.
template <int GRADIENTS, class A, class P, class X, class T, class F>
inline __attribute__((always_inline)) void take_steps(A& state, const P* const* parameters, const X* x,
                                                      P* const* gradients, T scale, int n, const F& between) {
  constexpr int K = A::kParameters, S = kSeen<A, Call::kStep>, PIECE = S > K ? kPiece : kStaged<A, T>;
  T carried[S - K + 1][kPiece];
  for (int begin = 0; begin < n; begin += PIECE) {
    const int length = std::min(PIECE, n - begin);
    const P* from[K];
    P* to[K];
    for (int k = 0; k < K; ++k) from[k] = parameters[k] + begin, to[k] = gradients[k] + begin;
    if constexpr (S > K) prepare<GRADIENTS>(state, from, carried, x + begin, to, length);
    const auto step = [&](int i) __attribute__((always_inline)) {
      const P* seen[K];
      P* out[K];
      const T* handed[S - K + 1];
      for (int k = 0; k < K; ++k) seen[k] = from[k] + i, out[k] = to[k] + i;
      for (int k = K; k < S; ++k) handed[k - K] = carried[k - K] + i;
      step_lanes<GRADIENTS, Call::kStep>(state, seen, x + begin + i, out, scale, handed);
      settle_after(state, i);
    };
    if constexpr (A::kLight && !std::is_same_v<F, NothingBetween>) {
      for (int i = 0; i < length;) {
        between(begin + i);
        for (const int next = std::min(i + kPiece, length); i < next; i += kLanes) step(i);
      }
    } else {
      for (int i = 0; i < length; i += kLanes) {
        if (i % kPiece == 0) between(begin + i);
        step(i);
      }
    }
  }
}

// Places of the n <= N numbers that aren't 0, and behind those up to eight of anything; how many is returned
template <int N, class T>
inline __attribute__((always_inline)) int places_of_others(const T* x, int n, int* places) {
  uint8_t others[N + kEight];
  for (int i = 0; i < n; ++i) others[i] = x[i] != T(0);
  std::fill(others + n, others + n + kEight, uint8_t(0));
  int count = 0;
  for (int i = 0; i < n; i += kEight) {
    const uint8_t byte = bits_of(others + i);
    for (int k = 0; k < kEight; ++k) places[count + k] = i + kBits.places[byte][k];
    count += __builtin_popcount(byte);
  }
  return count;
}

// `rest` of those of n observations that aren't 0: of few packed together, of most where they are, zeros among them.
// The gradients that are asked for are theirs.
template <int GRADIENTS, class A, class T>
inline __attribute__((always_inline)) void add_others(A& state, const T* const* parameters, const T* x,
                                                      T* const* gradients, const bool* asked, T scale, int n) {
  constexpr int K = A::kParameters, OWN = kOwn<A, T>, N = kStaged<A, T>;
  int places[N + kLanes];
  const int count = places_of_others<N>(x, n, places);
  if (count == 0) return;
  T packed[K + 1][N], found[K][N];
  const T* in[K + 1];
  for (int k = 0; k < K; ++k) in[k] = parameters[k];
  in[K] = x;
  const bool together = 2 * count < n || n % kLanes != 0;
  const int steps = ((together ? count : n) + kLanes - 1) / kLanes, length = steps * kLanes;
  if (together) {
    std::fill(places + count, places + length, 0);
    for (int i = 0; i < length; ++i) {
      for (int k = 0; k < OWN; ++k) packed[k][i] = parameters[k][places[i]];
      packed[K][i] = x[places[i]];
    }
    for (int k = 0; k <= K; ++k)
      if (is_own<A, T>(k)) in[k] = packed[k];
    std::fill(packed[K] + count, packed[K] + length, T(0));
  }
  for (int i = 0; i < length; i += kLanes) {
    const T* seen[K];
    T* out[K];
    for (int k = 0; k < K; ++k) seen[k] = in[k] + i, out[k] = found[k] + i;
    step_lanes<GRADIENTS, Call::kRest>(state, seen, in[K] + i, out, scale);
    settle_after(state, i);
  }
  for (int k = 0; k < GRADIENTS; ++k) {
    if (!asked[k]) continue;
    if (together)
      for (int i = 0; i < count; ++i) gradients[k][places[i]] = found[k][i];
    else
      for (int i = 0; i < n; ++i) gradients[k][i] = choose(x[i] != T(0), found[k][i], gradients[k][i]);
  }
}

// n <= kStaged observations: their value, and gradients times scale. The last lanes run on a copy of the last one. `last`:
// the last parameter, if it is the row's.
template <class A, int GRADIENTS, class P, class X, class T, int N>
inline __attribute__((always_inline)) T accumulate_with(const T* options, T last, const P* const* parameters,
                                                        const X* x, P* const* gradients, const bool* asked, T scale,
                                                        int n, const Ahead<N>& ahead,
                                                        Stream (&streams)[A::kParameters]) {
  constexpr int K = A::kParameters;
  const A fresh = start<A, T>(options, last);
  A state = fresh;
  T sums[kLanes] = {};
  const int whole = n - n % kLanes;
  bool idle = A::kParts == 1 && ahead.is_empty();
  for (const Stream& stream : streams) idle = idle && !stream.is_open();
  for (int first = 0; first < whole; first += kSummed<A, T>) {
    const P* from[K];
    P* to[K];
    for (int k = 0; k < K; ++k) from[k] = parameters[k] + first, to[k] = gradients[k] + first;
    const int some = std::min(kSummed<A, T>, whole - first);
    const auto memory = [&](int i) __attribute__((always_inline)) {
      ahead.fetch(first + i);
      for (int k = 0; k < GRADIENTS; ++k)
        if (!A::kSparse && streams[k].is_open()) streams[k].advance((first + i) * static_cast<int64_t>(sizeof(P)));
    };
    // To ask at every step whether it is time for memory is a tenth of the shortest ones
    if (idle) take_steps<GRADIENTS>(state, from, x + first, to, scale, some, NothingBetween{});
    else take_steps<GRADIENTS>(state, from, x + first, to, scale, some, memory);
    if constexpr (!A::kSparse) {
#pragma GCC unroll 1
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += state.sum(lane);
      state = fresh;
    }
  }
  if (const int rest = n - whole) {
    P copies[K][kLanes], out[K][kLanes];
    X targets[kLanes];
    const P* from[K];
    P* to[K];
    A tail = fresh;
    for (int k = 0; k < K; ++k) from[k] = copies[k], to[k] = out[k];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int place = whole + (lane < rest ? lane : rest - 1);
      for (int k = 0; k < kOwn<A, T>; ++k) copies[k][lane] = parameters[k][place];
      targets[lane] = x[place];
    }
    take_steps<GRADIENTS>(tail, from, targets, to, scale, kLanes, NothingBetween{});
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += lane < rest ? tail.sum(lane) : T(0);
    for (int k = 0; k < GRADIENTS; ++k)
      for (int lane = 0; lane < rest; ++lane) gradients[k][whole + lane] = out[k][lane];
  }
  if constexpr (A::kSparse) {
    add_others<GRADIENTS>(state, parameters, x, gradients, asked, scale, n);
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += state.sum(lane);
  }
  return fresh.finish(add_lanes(sums), static_cast<T>(n));
}

template <class A, int GRADIENTS, class P, class X, class T, int N>
inline __attribute__((always_inline)) T accumulate(const T* options, T last, const P* const* parameters, const X* x,
                                                   P* const* gradients, const bool* asked, T scale, int n,
                                                   const Ahead<N>& ahead, Stream (&streams)[A::kParameters]) {
  if constexpr (A::kPlain) {
    constexpr T kZeros[A::kOptions] = {};
    if (std::all_of(options, options + A::kOptions, [](T option) { return option == 0; }))
      return accumulate_with<A, GRADIENTS>(kZeros, last, parameters, x, gradients, asked, scale, n, ahead, streams);
  }
  return accumulate_with<A, GRADIENTS>(options, last, parameters, x, gradients, asked, scale, n, ahead, streams);
}

// A block's gradient, where it belongs: summed, rounded to its dtype, or already in place
template <class T, int K>
inline __attribute__((always_inline)) void deliver(const Rows<K>& p, Gradient& g, const T* computed, const T* buffer,
                                                   int64_t row, int64_t column, int n, int64_t group) {
  if (g.over_columns) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += computed[i];
    g.sums[p.cell(row, column)] += sum;
  } else if (g.over_rows) {
    double* sums = g.sums.data() + group * p.columns + column;
    for (int i = 0; i < n; ++i) sums[i] += computed[i];
  } else if (computed == buffer) {
    store(computed, g.to, row, column, n);
  }
}

// NaN for the gradients of observations of which any number, those in `in`, is NaN
template <class A, int GRADIENTS, int K, class T>
inline void pass_nan(const T* const (&in)[K + 1], T* const (&gradients)[K], int n) {
  for (int i = 0; i < n; ++i) {
    bool found = false;
    for (int k = 0; k <= K; ++k) found = found || std::isnan(in[k][is_own<A, T>(k) ? i : 0]);
    for (int k = 0; found && k < GRADIENTS; ++k) gradients[k][i] = std::numeric_limits<T>::quiet_NaN();
  }
}

// One block of one row, with the gradients of the first GRADIENTS parameters
template <template <class, int> class Accumulator, class T, int GRADIENTS, int K>
VAE_FAST_CLONES void run_block(Rows<K>& p, int64_t row, int64_t column, int n, int64_t group) {
  using A = Accumulator<T, kLanes>;
  constexpr int N = kStaged<A, T>;
  T staged[K + 1][N], packed[K + 1][N], buffers[K][N], gathered[std::max(1, GRADIENTS)][N];
  const T* in[K + 1];
  T *out[K], *target[K];
  Ahead<2 * K + 1> ahead;
  const Position next = p.position_ahead(row, column, n);
  const bool in_place = A::kParts == 1 && p.is_asked_for_in_place();
  for (int k = 0; k < K; ++k) in[k] = load(p.parameters[k], row, column, is_own<A, T>(k) ? n : 1, staged[k]);
  in[K] = p.x.data ? load(p.x, row, column, n, staged[K]) : in[0];
  for (int k = 0; k <= K; ++k)
    if (in[k] == staged[k] || p.mask.data || in_place) ahead.add(k < K ? p.parameters[k] : p.x, next.row, next.column);
  bool asked[K];
  for (int k = 0; k < K; ++k) asked[k] = p.gradients[k].to.data;
  const double weight = p.row_weight(row);
  const T scale = static_cast<T>(weight * p.scale);
  const bool zeroed = scale == 0 && weight != 0;  // after the steps
  Stream streams[K];
  for (int k = 0; k < K; ++k) {
    const Gradient& g = p.gradients[k];
    target[k] = g.direct() ? destination(g.to, row, column, buffers[k]) : buffers[k];
    const bool may_stream = k < GRADIENTS && (A::kParts == 1 || !A::kSparse);
    if (may_stream && g.past_caches && target[k] != buffers[k] && !p.mask.data && !zeroed) {
      streams[k] = {buffers[k], target[k]};
      target[k] = buffers[k];
    } else if (g.direct() && (target[k] == buffers[k] || p.mask.data || in_place)) {
      ahead.add(g.to, next.row, next.column);
    }
    out[k] = target[k];
  }

  const Selection<N> selected(p.mask, weight, row, column, n);
  const int count = selected.count;
  if (count != n) {
    for (int k = 0; k <= K; ++k) {
      if (!is_own<A, T>(k)) continue;
      pack(selected.bits, in[k], n, packed[k]);
      in[k] = packed[k];
    }
    for (int k = 0; k < GRADIENTS; ++k) out[k] = gathered[k];
  }

  T options[A::kOptions + 1];
  for (int k = 0; k < A::kOptions; ++k) options[k] = static_cast<T>(p.options[k]);
  bool changed = false;
  if (count > 0) {
    const T value =
        accumulate<A, GRADIENTS>(options, in[K - 1][0], in, in[K], out, asked, scale, count, ahead, streams);
    if (GRADIENTS && A::kLosesNaN && value != value) {
      pass_nan<A, GRADIENTS>(in, out, count);
      changed = true;
    }
    p.values[p.cell(row, column)] += value;
  }
  for (int k = 0; k < GRADIENTS; ++k) {
    Gradient& g = p.gradients[k];
    if (!g.to.data) continue;
    if (scale == 0) std::fill(out[k], out[k] + count, T(0));
    if (count != n) unpack(selected.bits, out[k], n, target[k]);
    if (streams[k].is_open()) streams[k].finish(n * static_cast<int64_t>(sizeof(T)), changed);
    else deliver(p, g, target[k], buffers[k], row, column, n, group);
  }
}

#if defined(VAE_FAST_TARGET)
// The same without a mask, of observations that are widened, and gradients that are rounded, in registers. What is rare is
// left to the other: rows that don't count, and NaN that may be lost. P and X: `Stored`.
template <template <class, int> class Accumulator, int GRADIENTS, class P, class X, int K>
struct StoredBlock {
  static inline __attribute__((always_inline)) void run(Rows<K>& p, int64_t row, int64_t column, int n, int64_t group) {
    using A = Accumulator<float, kLanes>;
    static_assert(!A::kSparse);
    constexpr int N = kStaged<A, float>;
    const auto scale = static_cast<float>(p.row_weight(row) * p.scale);
    if (scale == 0) return run_block<Accumulator, float, GRADIENTS>(p, row, column, n, group);
    P buffers[K][N];
    const P* in[K];
    P* out[K];
    bool asked[K];
    Stream streams[K];
    Ahead<2 * K + 1> ahead;
    const Position next = p.position_ahead(row, column, n);
    const bool in_place = A::kParts == 1 && p.is_asked_for_in_place();
    for (int k = 0; k < K; ++k) {
      const Gradient& g = p.gradients[k];
      asked[k] = g.to.data;
      out[k] = asked[k] && !g.past_caches ? g.to.template at<P>(row, column) : buffers[k];
      if (g.past_caches) streams[k] = {buffers[k], g.to.template at<P>(row, column)};
      else if (in_place && asked[k]) ahead.add(g.to, next.row, next.column);
      in[k] = k < kOwn<A, float> ? p.parameters[k].template at<P>(row, column) : buffers[k];
      if (in_place) ahead.add(p.parameters[k], next.row, next.column);
    }
    if (in_place) ahead.add(p.x, next.row, next.column);
    float options[A::kOptions + 1], last = 0;
    for (int k = 0; k < A::kOptions; ++k) options[k] = static_cast<float>(p.options[k]);
    if constexpr (shares_last<A, float>) last = *load(p.parameters[K - 1], row, column, 1, &last);
    const X* x = p.x.template at<X>(row, column);
    const float value = accumulate<A, GRADIENTS>(options, last, in, x, out, asked, scale, n, ahead, streams);
    if (GRADIENTS && A::kLosesNaN && value != value)
      return run_block<Accumulator, float, GRADIENTS>(p, row, column, n, group);
    for (Stream& stream : streams)
      if (stream.is_open()) stream.finish(n * static_cast<int64_t>(sizeof(P)), false);
    p.values[p.cell(row, column)] += value;
  }
};
#endif

template <int K>
using Block = void (*)(Rows<K>& p, int64_t row, int64_t column, int n, int64_t group);

#if defined(VAE_FAST_TARGET)
template <template <class, int> class Accumulator, int GRADIENTS, class PROCESSOR, class P, class X, int K>
constexpr Block<K> kRunStored =
    PROCESSOR::template run<StoredBlock<Accumulator, GRADIENTS, Stored<PROCESSOR, P>, Stored<PROCESSOR, X>, K>,
                            Rows<K>&, int64_t, int64_t, int, int64_t>;

// The code for a block as it is stored; null where there is none
template <template <class, int> class Accumulator, int GRADIENTS, class PROCESSOR, int K>
Block<K> stored_block_of(const Rows<K>& p) {
  using A = Accumulator<float, kLanes>;
  const auto are = [&p](ScalarType type) {
    bool all = !p.mask.data && p.x.column_stride == 1;
    for (int k = 0; k < kOwn<A, float>; ++k) {
      const Matrix &from = p.parameters[k], &to = p.gradients[k].to;
      all = all && from.type == type && from.column_stride == 1;
      all = all && (!to.data || (p.gradients[k].direct() && to.type == type && to.column_stride == 1));
    }
    return all;
  };
  using Bytes = std::conditional_t<A::kCounts, uint8_t, Intensity>;
  using Plain = typename PROCESSOR::Plain;
  using Rounding = std::conditional_t<(GRADIENTS > 0), PROCESSOR, Plain>;
  if (are(ScalarType::BFloat16)) {
    if (p.x.type == ScalarType::Byte) return kRunStored<Accumulator, GRADIENTS, Rounding, BFloat16, Bytes, K>;
    if (p.x.type == ScalarType::Bool) return kRunStored<Accumulator, GRADIENTS, Rounding, BFloat16, Truth, K>;
    if (p.x.type == ScalarType::BFloat16) return kRunStored<Accumulator, GRADIENTS, Rounding, BFloat16, BFloat16, K>;
    if (p.x.type == ScalarType::Float) return kRunStored<Accumulator, GRADIENTS, Rounding, BFloat16, float, K>;
  } else if (are(ScalarType::Float)) {
    if (p.x.type == ScalarType::Byte) return kRunStored<Accumulator, GRADIENTS, Plain, float, Bytes, K>;
    if (p.x.type == ScalarType::Bool) return kRunStored<Accumulator, GRADIENTS, Plain, float, Truth, K>;
  }
  return nullptr;
}
#endif

// The code for a block with the gradients of the first GRADIENTS parameters
template <template <class, int> class Accumulator, class T, int GRADIENTS, int K>
Block<K> block_of([[maybe_unused]] const Rows<K>& p) {
#if defined(VAE_FAST_TARGET)
  using A = Accumulator<T, kLanes>;
  if constexpr (std::is_same_v<T, float> && A::kStored && GRADIENTS <= kOwn<A, T>) {
    const auto found = for_this_processor([&p](auto processor) -> Block<K> {
      using PROCESSOR = decltype(processor);
      // One long chain, in vectors half as long, gains little, or loses
      if constexpr (std::is_same_v<PROCESSOR, Avx2> && !A::kLight && A::kParts == 1) return nullptr;
      else return stored_block_of<Accumulator, GRADIENTS, PROCESSOR>(p);
    });
    if (found) return found;
  }
#endif
  return run_block<Accumulator, T, GRADIENTS>;
}

}  // namespace vae_fast
