// The loop over planes: value[b] = sum over the observations of a row, each with C parameters that lie in as many planes,
// and the gradients, in one pass.
//
// Blocks of kTogether observations are staged as [C][kStagedOf] in T, one part after the other, so that vectors run
// over observations whatever the layout; the second pass, over components whose shares are known, finds the staged
// gradients of the first in the cache, if there are some thousand planes at most.
// It does not know which likelihood it runs: that is an accumulator's (../joint.h).
//
// Sums are the same for any number of threads, as in rows.h.
#pragma once

#include <memory>
#include <new>

#include "../cube.h"
#include "../joint.h"
#include "classes.h"
#include "rows.h"
#include "transpose.h"

namespace vae_fast {

constexpr int kTogether = 64;  // observations of a block
constexpr int64_t kChunkParameters = 1 << 15, kMostInChunk = 1024;
constexpr int64_t kMostAhead = 1 << 20;  // bytes of a row; longer ones are displaced before they are read

// Observations whose parameters are staged at once: where their state fits into registers, no more than stay there, and
// of components of ten planes so few that the first-level cache holds them beside what comes and goes
template <class A>
constexpr int kStagedOf = A::kSingle ? kLanes : kTogether / (A::kPlanes >= 10 ? 2 : 1);

struct JointRows {
  int64_t rows = 0, planes = 0, columns = 0;
  Cube parameters, x, gradient;  // the gradient may be absent
  Matrix mask, weight;           // as in rows.h
  double scale = 1;
  std::vector<double> options, values;  // values: [rows, chunks]

  // Observations of a row for one thread
  int64_t in_chunk() const {
    const int64_t blocks = kChunkParameters / kTogether / std::max<int64_t>(1, planes);
    return std::clamp<int64_t>(blocks, 1, kMostInChunk / kTogether) * kTogether;
  }
  int64_t chunks() const { return std::max<int64_t>(1, (columns + in_chunk() - 1) / in_chunk()); }
  double row_weight(int64_t row) const {
    double w = 1;
    return weight.data ? *load(weight, row, 0, 1, &w) : w;
  }
};

// n observations from `column` on as planes [C][WIDTH]; lanes up to whole vectors are copies of the last
template <int WIDTH, int STRIP, class T>
inline __attribute__((always_inline)) void gather(const Cube& cube, int64_t row, int64_t column, int n, int64_t planes,
                                                  T* to, T* buffer) {
  if (!cube.by_observation()) {
    const Matrix m = cube.planes_of(row);
    for (int64_t c = 0; c < planes; ++c) {
      T* plane = to + c * WIDTH;
      const T* from = load(m, c, column, n, plane);
      if (from != plane) {
        std::copy(from, from + n, plane);
        for (int i = 0; i < WIDTH; i += kLine / sizeof(T)) __builtin_prefetch(from + kTogether + i);
      }
      for (int i = n; i % kLanes; ++i) plane[i] = plane[n - 1];
    }
    return;
  }
  const Matrix m = cube.observations_of(row);
  for (int i = 0; i < n || i % kLanes; i += STRIP) {
    const T* rows[STRIP];
    for (int k = 0; k < STRIP; ++k) rows[k] = load(m, column + std::min(i + k, n - 1), 0, planes, buffer + k * planes);
    to_planes(rows, planes, to + i, WIDTH);
  }
}

// and back
template <int WIDTH, int STRIP, class T>
inline __attribute__((always_inline)) void scatter(const T* from, int64_t planes, int n, const Cube& cube, int64_t row,
                                                   int64_t column, T* buffer) {
  if (!cube.by_observation()) {
    const Matrix m = cube.planes_of(row);
    for (int64_t c = 0; c < planes; ++c) {
      const T* plane = from + c * WIDTH;
      if (T* to = destination<T>(m, c, column, nullptr)) {
        std::copy(plane, plane + n, to);
        for (int i = 0; i < WIDTH; i += kLine / sizeof(T)) __builtin_prefetch(to + kTogether + i, 1);
      } else {
        store(plane, m, c, column, n);
      }
    }
    return;
  }
  const Matrix m = cube.observations_of(row);
  for (int i = 0; i < n; i += STRIP) {
    T* rows[STRIP];
    for (int k = 0; k < STRIP; ++k) {
      rows[k] = buffer + k * planes;
      if (i + k < n) rows[k] = destination(m, column + i + k, 0, rows[k]);
    }
    from_planes(from + i, WIDTH, planes, rows);
    for (int k = 0; k < STRIP && i + k < n; ++k)
      if (rows[k] == buffer + k * planes) store(rows[k], m, column + i + k, 0, planes);
  }
}

// Planes of kLanes observations, which are read and written where they lie, beside the arithmetic, if they can be.
//
// Meanwhile memory fetches the next block's planes, and, to the second-level cache, the same part of the next row, line
// by line in the order in which it lies there (of bfloat16 each line twice, of double every second one): planes side by
// side, a line of each, are a pattern that no processor foresees. Where observations are neighbours, the part of those
// kTogether further on.
template <class T>
struct InPlace {
  Matrix planes;     // absent: they are gathered before, or scattered afterwards
  const char* next;  // what is fetched
  int64_t step = 0;

  InPlace(const Cube& cube, int64_t row, int64_t column, const JointRows& p, bool whole) : next(cube.data) {
    if (!cube.data) return;
    const int64_t size = size_of(cube.type);
    const bool neighbours = cube.by_observation();
    const int64_t ahead = neighbours ? row * cube.row_stride + p.planes * (column + kTogether)
                                     : (row + 1) * cube.row_stride + p.planes * column;
    // Else step stays 0: one cached line each time, cheaper than a branch
    if (neighbours || p.planes * p.columns * size <= kMostAhead) next += ahead * size, step = kLanes * size;
    const bool known = cube.type == ScalarType::BFloat16 || cube.type == scalar_type<T>;
    if (!whole || !known || neighbours || cube.column_stride != 1) return;
    planes = cube.planes_of(row);
    planes.data += column * size;
  }

  // f(pointer to the first plane), of the type that it has; to void if it is absent
  template <class F>
  inline __attribute__((always_inline)) void find(const F& f) const {
    if (!planes.data) f(static_cast<void*>(nullptr));
    else if (planes.type == scalar_type<T>) f(planes.at<T>(0, 0));
    else f(planes.at<BFloat16>(0, 0));
  }
  // As much of that part as a plane is. Were it not inlined at once, GCC would see no effect in it, and leave it out.
  inline __attribute__((always_inline)) void fetch(int64_t plane) const {
    __builtin_prefetch(next + plane * step, 0, 2);
  }
  // A plane to `staged`, and back
  template <class S>
  inline __attribute__((always_inline)) void load(const S* first, int64_t plane, T* staged) const {
    fetch(plane);
    if constexpr (!std::is_void_v<S>) {
      const S* place = first + plane * planes.row_stride;
      VAE_FAST_BY_LANES
      for (int lane = 0; lane < kLanes; ++lane) staged[lane] = static_cast<T>(place[lane]);
      __builtin_prefetch(place + kTogether);
    }
  }
  template <class S>
  inline __attribute__((always_inline)) void store(S* first, int64_t plane, const T* staged) const {
    fetch(plane);
    if constexpr (!std::is_void_v<S>) {
      S* place = first + plane * planes.row_stride;
      VAE_FAST_BY_LANES
      for (int lane = 0; lane < kLanes; ++lane) place[lane] = round_to<S>(staged[lane]);
      __builtin_prefetch(place + kTogether, 1);
    }
  }
};

// f(lane) for as many lanes as n observations take, by whole vectors
template <class A, class F>
inline __attribute__((always_inline)) void each_lane(int n, const F& f) {
  if (kStagedOf<A> == kLanes) n = kLanes;
  for (int from = 0; from < n; from += kLanes) VAE_FAST_BY_LANES
  for (int lane = from; lane < from + kLanes; ++lane) f(lane);
}

// n observations, from their planes: their values; the gradients in place of the parameters. A component meets all of
// them before the next does, so that no vector waits for what it added last.
template <class A, bool GRADIENTS, class T>
inline __attribute__((always_inline)) void close_together(const T* options, int64_t planes, T* first,
                                                          const InPlace<T>& from, const InPlace<T>& to, const T* x,
                                                          int n, const T* scale, T* values) {
  A state(options, planes);
  const int components = state.components;
  const auto planes_of = [=](int lane) { return Planes<T>{first + lane, kStagedOf<A>}; };
  each_lane<A>(n, [&](int lane) {
    T observed[A::kTargets];
    for (int c = 0; c < A::kTargets; ++c) observed[c] = x[c * kTogether + lane];
    state.observe(lane, observed);
  });
  if constexpr (A::kSingle)
    from.find([&](const auto* place) __attribute__((always_inline)) {
      for (int k = 0; k < components; ++k) {
        from.load(place, k, first + k * kLanes);
        each_lane<A>(n, [&](int lane) { state.template look<GRADIENTS>(lane, k, planes_of(lane)); });
      }
    });
  else
    for (int k = 0; k < components; ++k) {
      constexpr int kVectors = A::kPlanes * kStagedOf<A> / kLanes;
      for (int i = k * kVectors; i < (k + 1) * kVectors; ++i) {
        from.fetch(i);
        if (GRADIENTS) to.fetch(i);
      }
      each_lane<A>(n, [&](int lane) { state.prepare(lane, k, planes_of(lane)); });
      each_lane<A>(n, [&](int lane) { state.prepare_bins(lane, k, planes_of(lane)); });
      each_lane<A>(n, [&](int lane) { state.template complete<GRADIENTS>(lane, k, planes_of(lane)); });
    }
  for (int k = 0; k < components; ++k) each_lane<A>(n, [&](int lane) { state.weigh(lane, k, planes_of(lane)); });
  each_lane<A>(n, [&](int lane) { values[lane] = state.close(lane); });
  if (!GRADIENTS) return;
  to.find([&](auto* place) __attribute__((always_inline)) {
    for (int k = 0; k < components; ++k) {
      each_lane<A>(n, [&](int lane) { state.share(lane, k, planes_of(lane), scale[lane]); });
      if constexpr (A::kSingle) to.store(place, k, first + k * kLanes);
    }
  });
}

// Whether n observations are faster one after the other: each takes as long as some 290 parameters more, but no lane is
// idle, and nothing is transposed, which is worth a third of the rest
inline bool shares_lanes(int n, int64_t planes) {
  const int lanes = (n + kLanes - 1) / kLanes * kLanes;
  return 3 * n * (290 + planes) < 4 * lanes * planes;
}

template <bool GRADIENTS, class T>
inline __attribute__((always_inline)) void close_each(const JointRows& p, int64_t row, int64_t column, int n,
                                                      const T* x, const T* scale, T* buffer, T* values) {
  const Matrix from = p.parameters.observations_of(row), to = p.gradient.observations_of(row);
  T* const rounded = buffer + p.planes;  // the second of two rows
  for (int i = 0; i < n; ++i) {
    const T* logits = load(from, column + i, 0, p.planes, buffer);
    T* gradient = GRADIENTS ? destination(to, column + i, 0, rounded) : rounded;
    values[i] = close_classes<GRADIENTS>(logits, static_cast<int>(p.planes), x[i], scale[i], gradient);
    if (GRADIENTS && gradient == rounded) store(rounded, to, column + i, 0, p.planes);
  }
}

// One block of one row: its value, unweighted. STRIP: how many observations are transposed at once
template <template <class, int> class Accumulator, class T, bool GRADIENTS, int STRIP>
inline __attribute__((always_inline)) double run_block_of(const JointRows& p, int64_t row, int64_t column, int n,
                                                          T* planes, T* buffer) {
  using A = Accumulator<T, kStagedOf<Accumulator<T, kLanes>>>;
  constexpr int WIDTH = kStagedOf<A>;
  static_assert(A::kTargets * STRIP <= kTogether);  // `values` is a buffer of x's first
  const double weight = p.row_weight(row);
  T options[A::kOptions + 1], x[A::kTargets][kTogether], scale[kTogether], values[kTogether];
  if (weight == 0) {
    if (GRADIENTS) {
      std::fill(planes, planes + p.planes * kTogether, T(0));
      scatter<kTogether, STRIP>(planes, p.planes, n, p.gradient, row, column, buffer);
    }
    return 0;
  }
  for (int k = 0; k < A::kOptions; ++k) options[k] = static_cast<T>(p.options[k]);
  gather<kTogether, STRIP>(p.x, row, column, n, A::kTargets, x[0], values);
  const T whole = static_cast<T>(weight * p.scale);
  for (int i = 0; i < kTogether; ++i) scale[i] = whole;
  for (int i = 0; p.mask.data && i < n; ++i) scale[i] = *p.mask.at<uint8_t>(row, column + i) ? whole : T(0);

  bool one_by_one = false;
  if constexpr (A::kSingle) {
    one_by_one = p.parameters.by_observation() && shares_lanes(n, p.planes);
    if (one_by_one) close_each<GRADIENTS>(p, row, column, n, x[0], scale, buffer, values);
  }
  for (int i = 0; !one_by_one && i < n; i += WIDTH) {
    const int some = std::min(WIDTH, n - i);
    const bool whole_vector = A::kSingle && some == kLanes;
    const InPlace<T> from(p.parameters, row, column + i, p, whole_vector),
        to(p.gradient, row, column + i, p, whole_vector);
    if (!from.planes.data) gather<WIDTH, STRIP>(p.parameters, row, column + i, some, p.planes, planes, buffer);
    close_together<A, GRADIENTS>(options, p.planes, planes, from, to, x[0] + i, some, scale + i, values + i);
    if (GRADIENTS && !to.planes.data)
      scatter<WIDTH, STRIP>(planes, p.planes, some, p.gradient, row, column + i, buffer);
  }
  double sum = 0;
  for (int i = 0; i < n; ++i)
    if (!p.mask.data || *p.mask.at<uint8_t>(row, column + i)) sum += values[i];
  return sum;
}

template <template <class, int> class Accumulator, class T, bool GRADIENTS>
VAE_FAST_CLONES double run_block(const JointRows& p, int64_t row, int64_t column, int n, T* planes, T* buffer) {
  return run_block_of<Accumulator, T, GRADIENTS, kStrip>(p, row, column, n, planes, buffer);
}
#if defined(VAE_FAST_TARGET)
// In which no intrinsic may be called (matrix.h)
template <template <class, int> class Accumulator, class T, bool GRADIENTS>
VAE_FAST_TARGET("arch=x86-64-v4")
double run_wide_block(const JointRows& p, int64_t row, int64_t column, int n, T* planes, T* buffer) {
  return run_block_of<Accumulator, T, GRADIENTS, kWideStrip>(p, row, column, n, planes, buffer);
}
#endif

// The one for this processor
template <template <class, int> class Accumulator, class T, bool GRADIENTS>
auto block_for_processor() {
#if defined(VAE_FAST_TARGET)
  if (kHasWideShuffles) return run_wide_block<Accumulator, T, GRADIENTS>;
#endif
  return run_block<Accumulator, T, GRADIENTS>;
}

// n numbers from the beginning of a cache line on: vectors across two lines take longer
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : memory_(new (std::align_val_t{kLine}) T[n]) {}
  T* get() const { return memory_.get(); }

 private:
  struct Delete {
    void operator()(T* memory) const { operator delete[](memory, std::align_val_t{kLine}); }
  };
  std::unique_ptr<T[], Delete> memory_;
};

// Fills `values` (unweighted) and the gradient, if asked for
template <template <class, int> class Accumulator, class T>
Work work_on(JointRows& p) {
  using A = Accumulator<T, kLanes>;
  const int64_t chunks = p.chunks(), in_chunk = p.in_chunk();
  p.values.assign(p.rows * chunks, 0.);
  const auto run_one =
      p.gradient.data ? block_for_processor<Accumulator, T, true>() : block_for_processor<Accumulator, T, false>();
  const auto run_units = [=, &p](int64_t begin, int64_t end) {
    const Scratch<T> planes(planes_staged<A>(p.planes) * kTogether);
    const Scratch<T> buffer(std::max<int64_t>(p.planes, A::kTargets) * kWideStrip);
    for (int64_t u = begin; u < end; ++u) {
      const int64_t row = u / chunks, first = u % chunks * in_chunk;
      const int64_t last = std::min(p.columns, first + in_chunk);
      for (int64_t column = first; column < last; column += kTogether) {
        const int n = static_cast<int>(std::min<int64_t>(kTogether, last - column));
        p.values[u] += run_one(p, row, column, n, planes.get(), buffer.get());
      }
    }
  };
  return {p.rows * chunks, p.rows * p.columns * p.planes, run_units, [] {}};
}

}  // namespace vae_fast
