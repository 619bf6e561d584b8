// What the loops over rows need of a likelihood or a divergence: an accumulator over the observations of a row, with a
// state of its own for each of LANES vector lanes.
//
//   kParameters                                    how many parameters belong to one observation
//   step(lane, parameters, x, scale, gradients)    adds one observation; the gradients are times scale
//   join(lane, other)                              adds another lane's observations
//   sum(lane)                                      turns a lane's state into a number that adds up; after at most
//                                                  kJoined observations, in one lane or joined
//   kHeavy                                         whether a step takes so much that a GPU has no room for two at once
//   finish(total, count)                           closes the sum over `count` observations, in nats; a row's parts,
//                                                  finished one by one, must add up to the row
//
// One that is constructed from a T takes the row's last parameter as shared by all columns.
#pragma once

#include "math.h"

namespace vae_fast {

// The common state: one sum
template <class T, int LANES>
struct Sum {
  static constexpr int kJoined = 1 << 30;
  static constexpr bool kHeavy = false;
  T total[LANES];

  VAE_FAST_FN void join(int lane, int other) { total[lane] += total[other]; }
  VAE_FAST_FN T sum(int lane) const { return total[lane]; }
  VAE_FAST_FN T finish(T total, T) const { return total; }
};

}  // namespace vae_fast
