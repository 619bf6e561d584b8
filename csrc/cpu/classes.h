// A categorical observation whose logits lie one after the other: vectors run over the classes.
//
// x's class is left out of the sum, and so taken apart from the others with the vector that it is in.
#pragma once

#include "../likelihoods/categorical.h"
#include "rows.h"

namespace vae_fast {

// kLanes logits from k on, -inf beyond the last of `count` and at `hidden`
template <class T>
inline __attribute__((always_inline)) void hold(const T* logits, int k, int count, int hidden, T (&held)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane)
    held[lane] = k + lane < count && k + lane != hidden ? logits[k + lane] : -std::numeric_limits<T>::infinity();
}

template <int WIDTH = kLanes / 2, class T>
inline __attribute__((always_inline)) T largest_lane(const T* lanes) {
  T halves[WIDTH];
  for (int lane = 0; lane < WIDTH; ++lane) halves[lane] = larger(lanes[lane], lanes[lane + WIDTH]);
  if constexpr (WIDTH == 1) return halves[0];
  else return largest_lane<WIDTH / 2>(halves);
}

// Meanwhile memory fetches what will be written, where that is in place
template <class T>
inline __attribute__((always_inline)) T largest(const T* logits, int count, const T* gradient) {
  T top[kLanes];
  const int whole = count - count % kLanes;
  hold(logits, whole, count, -1, top);
  for (int k = 0; k < whole; k += kLanes) {
    __builtin_prefetch(gradient + k, 1);
    VAE_FAST_BY_LANES
    for (int lane = 0; lane < kLanes; ++lane) top[lane] = larger(logits[k + lane], top[lane]);
  }
  return largest_lane(top);
}

// e^(l - top) of kLanes classes, added to sums
template <bool GRADIENTS, class T>
inline __attribute__((always_inline)) void weigh_lanes(const T* logits, T top, T* weights, T (&sums)[kLanes]) {
  VAE_FAST_BY_LANES
  for (int lane = 0; lane < kLanes; ++lane) {
    const T e = exp_nonpositive(logits[lane] - top);
    sums[lane] += e;
    if (GRADIENTS) weights[lane] = e;
  }
}

// The same of those in [first, last), a multiple of kLanes: their sum, by blocks, so that rounding doesn't grow with it.
// Meanwhile memory fetches the next observation, `count` logits further on where they are read in place.
template <bool GRADIENTS, class T>
inline __attribute__((always_inline)) double weigh_classes(const T* logits, int count, int first, int last, T top,
                                                           T* weights) {
  double total = 0;
  for (int begin = first; begin < last; begin += kBlock) {
    T sums[kLanes] = {};
    const int end = std::min(last, begin + kBlock);
    for (int k = begin; k < end; k += kLanes) {
      __builtin_prefetch(logits + count + k);
      weigh_lanes<GRADIENTS>(logits + k, top, weights + k, sums);
    }
    total += add_lanes(sums);
  }
  return total;
}

// -log p(x); the gradient times scale
template <bool GRADIENTS, class T>
inline __attribute__((always_inline)) T close_classes(const T* logits, int count, T x, T scale, T* gradient) {
  const int nearest = x >= T(0) && x < T(count) ? static_cast<int>(x) : 0;
  const bool there = x == T(nearest);  // else it is no class
  const int at = there ? nearest : 0, whole = count - count % kLanes, mine = at - at % kLanes;
  const T top = largest(logits, count, gradient);
  const T picked = there ? logits[at] : std::numeric_limits<T>::quiet_NaN();
  double others = weigh_classes<GRADIENTS>(logits, count, 0, std::min(mine, whole), top, gradient) +
                  weigh_classes<GRADIENTS>(logits, count, mine + kLanes, whole, top, gradient);
  for (const int k : {mine, whole}) {
    if (k == count) break;  // there is no rest
    T held[kLanes], weights[kLanes], sums[kLanes] = {};
    hold(logits, k, count, at, held);
    weigh_lanes<true>(held, top, weights, sums);
    others += add_lanes(sums);
    if (GRADIENTS) std::copy_n(weights, std::min(kLanes, count - k), gradient + k);
    if (mine == whole) break;
  }
  const auto closed = close_categorical(top, picked, static_cast<T>(others));
  if (!GRADIENTS) return closed.value;
  const T factor = scale == T(0) ? T(0) : closed.inverse * scale;
  if (factor == T(0)) std::fill(gradient, gradient + count, T(0));
  else
    for (int k = 0; k < count; ++k) gradient[k] *= factor;
  gradient[at] = scaled(-static_cast<T>(others) * closed.inverse, scale);
  return closed.value;
}

}  // namespace vae_fast
