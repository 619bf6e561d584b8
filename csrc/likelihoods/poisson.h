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

// What a CPU keeps of counts. Half the logarithms of those that aren't 0 are a product's, whose powers of two go to the
// total, and that is added up by kSettled steps: the rounding of a long sum of small ones stays small.
template <class T, int LANES>
struct Counts : Sum<T, LANES> {
  static constexpr int kSettled = 4;
  static constexpr bool kHeavy = true, kCounts = true, kSparse = true, kWhole = true, kLosesNaN = true;
  T settled[LANES], product[LANES];

  VAE_FAST_FN Counts() : Sum<T, LANES>{}, settled{} {
    for (int lane = 0; lane < LANES; ++lane) product[lane] = T(1);
  }

  VAE_FAST_FN void settle(int lane) {
    settled[lane] += this->total[lane];
    this->total[lane] = T(0);
  }
  // nll + log(v)/2, of x != 0
  VAE_FAST_FN void add_other(int lane, T x, T nll, T v) {
    T logarithm = T(0);
    add_log(choose(x == T(0), T(1), v), logarithm, product[lane]);
    this->total[lane] += choose(x == T(0), T(0), nll + T(0) * v) + T(0.5) * logarithm;  // NaN where v has overflowed
  }
  VAE_FAST_FN T sum(int lane) const {
#if defined(__CUDA_ARCH__)
    return this->total[lane];
#else
    return settled[lane] + (this->total[lane] + T(0.5) * log(product[lane]));
#endif
  }
};

// option log_rate: the parameter is log m
template <class T, int LANES>
struct Poisson : Counts<T, LANES> {
  static constexpr int kParameters = 1, kOptions = 1;
  bool log_rate;

  VAE_FAST_FN explicit Poisson(const T* options) : log_rate(options[0] != T(0)) {}

  VAE_FAST_FN T mean(T rate) const { return exp_if(log_rate, rate); }
  VAE_FAST_FN void step(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    this->total[lane] += choose(x == T(0), m, T(0));
    gradients[0] = scale * choose(log_rate, m, T(1));
  }
  VAE_FAST_FN void rest(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    x = counted(x);
    T spread;
    const T nll = of_other(m, x, spread);
    this->add_other(lane, x, nll, spread);
    gradients[0] = scale * choose(log_rate, m - x, quotient(m - x, m));
  }
  VAE_FAST_FN void whole(int lane, const T (&parameters)[1], T x, T scale, T (&gradients)[1]) {
    const T m = mean(parameters[0]);
    x = counted(x);
    T nll = m, spread;
    if (x != T(0)) nll = of_other(m, x, spread), nll += T(0.5) * rough_log(spread);
    this->total[lane] += nll;
    gradients[0] = scale * (log_rate ? m - x : x == T(0) ? T(1) : quotient(m - x, m));
  }
  // less log(spread)/2
  VAE_FAST_FN static T of_other(T m, T x, T& spread) {
    const T y = above_one(x), inverse = quotient(T(1), y), share = m * inverse;
    const T shift = x < T(1) ? share * share : T(1);  // p(x) = p(x + 1) (x + 1)/m
    spread = T(kTwoPi) * y * shift;
    return y * log1p_minus((m - y) * inverse, share) + stirling_from_one(y, inverse).value;
  }
};

}  // namespace vae_fast
