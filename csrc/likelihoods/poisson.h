// Poisson: -log p(x | m) = m - x log m + log x!, m the mean, in the form in which no terms cancel (Loader 2000):
//
//   x >= 1:  x L(m/x - 1) + 1/2 log(2 pi x) + S(x)        x = 0:  m        0 < x < 1:  from x + 1        x < 0:  NaN
//
// with L(v) = v - log1p(v) and Stirling's remainder S (../gamma.h); d/dm = (m - x)/m, d/dlog m = m - x.
#pragma once

#include "../accumulator.h"
#include "../gamma.h"

namespace vae_fast {

// x, if it is a count at all
template <class T>
VAE_FAST_FN T counted(T x) {
  return choose(x < T(0), T(NAN), x);
}

// x, but x + 1 for fractions below 1, where Stirling's series ends: p(x) = p(x + 1) times a quotient
template <class T>
VAE_FAST_FN T above_one(T x) {
  return x + (x > T(0) && x < T(1) ? T(1) : T(0));
}

// option log_rate: the parameter is log m
template <class T, int LANES>
struct Poisson : Sum<T, LANES> {
  static constexpr int kParameters = 1, kOptions = 1;
  static constexpr bool kHeavy = true, kCounts = true, kSparse = true, kWhole = true;
  bool log_rate;

  VAE_FAST_FN explicit Poisson(const T* options) : Sum<T, LANES>{}, log_rate(options[0] != T(0)) {}

  VAE_FAST_FN T mean(T rate) const { return exp_if(log_rate, rate); }
  VAE_FAST_FN void step(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    this->total[lane] += x == T(0) ? m : T(0);
    gradients[0] = scale * choose(log_rate, m - x, x == T(0) ? T(1) : T(0));
  }
  VAE_FAST_FN void rest(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    x = counted(x);
    this->total[lane] += of_other(m, x);
    gradients[0] += choose(log_rate, x - x, scale * quotient(m - x, m));  // x - x: 0, or NaN
  }
  VAE_FAST_FN void whole(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    x = counted(x);
    T nll = m;
    if (x != T(0)) nll = of_other(m, x);
    this->total[lane] += nll;
    gradients[0] = scale * (log_rate ? m - x : x == T(0) ? T(1) : quotient(m - x, m));
  }
  VAE_FAST_FN static T of_other(T m, T x) {
    const T y = above_one(x), inverse = quotient(T(1), y), share = m * inverse;
    const T shift = x < T(1) ? share * share : T(1);  // p(x) = p(x + 1) (x + 1)/m
    return y * log1p_minus((m - y) * inverse, share) +
           (T(0.5) * rough_log(T(kTwoPi) * y * shift) + stirling_from_one(y, inverse).value);
  }
};

}  // namespace vae_fast
