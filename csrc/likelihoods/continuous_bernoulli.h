// Continuous Bernoulli: -log p(x | l) = |l| d + log((1 - e^-|l|) / |l|), x in [0, 1], where d is x's distance from the
// side that l is on: 1 - x for l >= 0, x for l < 0. Its gradient is the difference of E[x] and x, and E[x]'s distance
// from that side is 1/|l| - 1 / (e^|l| - 1).
#pragma once

#include "../accumulator.h"

namespace vae_fast {

// The logarithms' sum is that of a product, whose powers of two go to the total.
template <class T, int LANES>
struct ContinuousBernoulli : Sum<T, LANES> {
  static constexpr int kParameters = 1;
  static constexpr bool kHeavy = true, kLosesNaN = true, kStored = true;
  T product[LANES];

  VAE_FAST_FN ContinuousBernoulli() : Sum<T, LANES>{} {
    for (int lane = 0; lane < LANES; ++lane) product[lane] = T(1);
  }

  VAE_FAST_FN void step(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T l = parameters[0], a = magnitude(l), e = exp_minus_magnitude(l);
    const T side = side_of(l), d = side - x;  // d is of l's sign
    this->total[lane] += l * d;
    add_log_decay_ratio(a, e, this->total[lane], product[lane]);
    gradients[0] = scale * (d - to_side(decay_mean(a, e), side, l));
  }
  VAE_FAST_FN void join(int lane, int other) {
    this->total[lane] += this->total[other];
    add_log(product[other], this->total[lane], product[lane]);
  }
  VAE_FAST_FN T sum(int lane) const { return this->total[lane] + log(product[lane]); }
};

}  // namespace vae_fast
