// What the loops over rows need of a likelihood or a divergence: an accumulator over the observations of a row, with a
// state of its own for each of LANES vector lanes.
//
//   kParameters                                    how many parameters belong to one observation
//   step(lane, parameters, x, scale, gradients)    adds one observation; the gradients are times scale
//   join(lane, other)                              adds another lane's observations
//   sum(lane)                                      turns a lane's state into a number that adds up; after at most
//                                                  kJoined observations, in one lane or joined
//   kHeavy                                         whether a step takes so much that a GPU has no room for two at once
//   kLight                                         whether a step takes so little that memory decides on every CPU
//   kStored                                        whether a CPU has code of its own for observations in bfloat16 and bytes
//                                                  (lanes.h; without AVX-512 if the step is light or in parts,
//                                                  too); not sparse
//   kOptions                                       how many numbers, the same for all observations, choose its form
//   kOfColumns                                     a bit for each parameter that is often one row for all: a GPU has
//                                                  kernels for their gradients' sums
//   kPlain                                         whether options that are all 0 get code of their own
//   kCounts                                        x is a count, and bytes are the numbers they are; else they are x / 255
//   kPixels                                        these counts are pixels: a GPU has kernels for half precision too
//   kSparse                                        step adds nothing of x != 0, and has no gradients of it:
//   rest(lane, parameters, x, scale, gradients)    does, and adds nothing of x = 0
//   kParts                                         in how many parts a CPU takes a step of many operations: one part of a
//                                                  block's steps after the other, since of short chains of operations a
//                                                  processor runs more at once
//   kCarried                                       how many numbers each of them but the last hands on
//   prepare(seen, x, carried)                      such a part. It finds what was handed on so far behind the parameters,
//                                                  and by how many they are it is known
//   complete(lane, seen, x, scale, gradients)      the last part, instead of step
//   kSettled                                       if not 0, a CPU calls, at least every so many steps,
//   settle(lane)                                   which makes room for as many again
//   kWhole                                         whether a GPU, which has them in one thread, takes instead of either
//   whole(lane, parameters, x, scale, gradients)   which is step or rest
//   kLosesNaN                                      whether a NaN may be lost on a CPU on its way to the gradients, not to
//                                                  the value: the loop over rows puts it back
//   finish(total, count)                           closes the sum over `count` observations, in nats; a row's parts,
//                                                  finished one by one, must add up to the row
//
// It is constructed from its options, `const T*`, if it has any; one that is also constructed from a T, behind them,
// takes the row's last parameter as shared by all columns.
#pragma once

#include <type_traits>

#include "math.h"

namespace vae_fast {

struct Defaults {
  static constexpr int kJoined = 1 << 30, kOptions = 0, kOfColumns = 0, kParts = 1, kCarried[] = {0};
  static constexpr int kSettled = 0;
  static constexpr bool kHeavy = false, kLight = false, kStored = false, kPlain = false, kCounts = false;
  static constexpr bool kPixels = false, kSparse = false, kWhole = false, kLosesNaN = false;
};

// The common state: one sum
template <class T, int LANES>
struct Sum : Defaults {
  T total[LANES];

  VAE_FAST_FN void join(int lane, int other) { total[lane] += total[other]; }
  VAE_FAST_FN T sum(int lane) const { return total[lane]; }
  VAE_FAST_FN T finish(T total, T) const { return total; }
};

// Whether it takes the last parameter as shared
template <class A, class T>
constexpr bool shares_last = A::kOptions > 0 ? std::is_constructible_v<A, const T*, T> : std::is_constructible_v<A, T>;

template <class A, class T>
VAE_FAST_FN A start(const T* options, T last_parameter) {
  if constexpr (A::kOptions > 0 && shares_last<A, T>) return A(options, last_parameter);
  else if constexpr (A::kOptions > 0) return A(options);
  else if constexpr (shares_last<A, T>) return A(last_parameter);
  else return A{};
}

}  // namespace vae_fast
