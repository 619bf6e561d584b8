// Bernoulli: -log p(x | l) = -x log sigmoid(l) - (1 - x) log sigmoid(-l) = |l| d + log1p(e^-|l|), x in [0, 1], where d is
// x's distance from the side that l is on: 1 - x for l >= 0, x for l < 0. No term is negative, so nothing cancels.
#pragma once

#include "../accumulator.h"

namespace vae_fast {

// From logits l. One exponential e = e^-|l| serves the value and the gradient sigmoid(l) - x = +-(d - e / (1 + e)), which
// keeps its digits where it is small. The logarithm is shared: with Q <- Q + e + Q e, log1p(Q) is the sum of the
// log1p(e); Q at most doubles with each observation.
template <class T, int LANES>
struct Bernoulli : Defaults {
  static constexpr int kParameters = 1, kJoined = 120;
  static constexpr bool kLosesNaN = true, kLight = true, kStored = true;
  T linear[LANES], q[LANES];

  VAE_FAST_FN void step(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T l = parameters[0], e = rough_exp_minus_magnitude(l);
    const T side = side_of(l), d = side - x;  // d is of l's sign
    linear[lane] += l * d;
    q[lane] = q[lane] * e + (q[lane] + e);
    gradients[0] = scale * (d - to_side(quotient(e, T(1) + e), side, l));
  }
  VAE_FAST_FN void join(int lane, int other) {
    linear[lane] += linear[other];
    q[lane] = q[lane] * q[other] + (q[lane] + q[other]);
  }
  VAE_FAST_FN T sum(int lane) const { return linear[lane] + log1p(q[lane]); }
  VAE_FAST_FN T finish(T total, T) const { return total; }
};

// From probabilities p: -x log p - (1 - x) log1p(-p), with gradient (p - x) / (p (1 - p)). p is clamped to
// [2^-126, 1 - 2^-24] (float): p = 0 and p = 1 give a finite value and a gradient that still points the right way.
template <class T, int LANES>
struct BernoulliProbs : Sum<T, LANES> {
  static constexpr int kParameters = 1;
  static constexpr bool kHeavy = true, kStored = true;  // two logarithms
  static constexpr T kLow = std::numeric_limits<T>::min(), kHigh = T(1) - std::numeric_limits<T>::epsilon() / 2;

  VAE_FAST_FN void step(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T low = parameters[0] < kLow ? kLow : parameters[0];
    const T p = low > kHigh ? kHigh : low;
    this->total[lane] -= x * log(p) + (T(1) - x) * log1p(-p);
    gradients[0] = scale * quotient(p - x, p * (T(1) - p));
  }
};

}  // namespace vae_fast
