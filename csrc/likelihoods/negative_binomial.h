// Negative binomial of mean m = mu * library and inverse dispersion t = theta, variance m + m^2/t:
//
//   -log p(x | m, t) = -log[Gamma(x + t) / (Gamma(t) x!)] - t log(t/(t + m)) - x log(m/(t + m))
//
// in the form in which no terms cancel (Loader 2000), with r = (x - m)/(t + m), v = t (m - x)/(x (t + m)),
// L(v) = v - log1p(v) and Stirling's remainder S (../gamma.h):
//
//   x >= 1:  t L(r) + x L(v) + 1/2 log(2 pi x (x + t)/t) + S(t) + S(x) - S(x + t)        x = 0:  t [L(r) - r]
//   d/dm = t (m - x)/(m (m + t))        d/dt = L(r) - x/(2 t (x + t)) + S'(t) - S'(x + t);  at x = 0 L(r)
//
// For 0 < x < 1 p(x) is had from p(x + 1); for x < 0 all are NaN.
#pragma once

#include "poisson.h"

namespace vae_fast {

// One observation's mean and dispersion, with what x = 0 needs
template <class T>
struct Dispersed {
  static constexpr T kLeast = std::numeric_limits<T>::min();
  T mu, theta, m, inverse, y, r, u, deviance;  // inverse: 1/(t + m), t > 0; u: 1 + r; deviance: L(r), of y for x

  VAE_FAST_FN Dispersed(T mu, T theta, T library, T x)
      : mu(mu),
        theta(theta),
        m(mu * library),
        inverse(quotient(T(1), at_least(kLeast, theta) + m)),
        y(above_one(x)),
        r((y - m) * inverse),
        u((y + at_least(kLeast, theta)) * inverse),
        deviance(log1p_minus(r, u)) {}

  VAE_FAST_FN T zero_nll() const { return theta * (deviance - r); }
  VAE_FAST_FN T zero_slope() const { return u; }  // of x = 0

  // x != 0: its nll less log(spread)/2, and the gradients by m and t
  VAE_FAST_FN T nll(T x, T& spread, T& by_m, T& by_theta) const {
    const T inverse_y = quotient(T(1), y), inverse_theta = quotient(T(1), theta), sum = y + theta;
    const T inverse_sum = quotient(T(1), sum), share = m * inverse_y;
    const Stirling<T> of_y = stirling_from_one(y, inverse_y), of_sum = stirling_from_one(sum, inverse_sum);
    const Stirling<T> of_theta = stirling_and_slope(theta, inverse_theta);
    const bool fraction = x < T(1);  // p(x) = p(x + 1) (x + 1)(t + m) / ((x + t) m)
    const T shift = fraction ? (x + theta) * share * inverse : T(1);
    spread = T(kTwoPi) * y * (sum * inverse_theta) * (shift * shift);
    by_m = (m - x) * quotient(theta * inverse, m);
    by_theta = deviance + (fraction ? (m - x) * inverse * quotient(T(1), x + theta) : T(0)) -
               (T(0.5) * y * inverse_theta * inverse_sum + (of_theta.slope - of_sum.slope));
    return theta * deviance + y * log1p_minus(-r * theta * inverse_y, share * (sum * inverse)) +
           ((of_theta.value - of_sum.value) + of_y.value);
  }
};

// options log_mu, log_theta: the parameters are logarithms. The library is one number a row.
template <class T, int LANES>
struct NegativeBinomial : Counts<T, LANES> {
  static constexpr int kParameters = 3, kOptions = 2, kOfColumns = 0b10;
  static constexpr bool kPlain = true;
  bool log_mu, log_theta;
  T library;

  VAE_FAST_FN NegativeBinomial(const T* options, T library)
      : log_mu(options[0] != T(0)), log_theta(options[1] != T(0)), library(library) {}

  VAE_FAST_FN Dispersed<T> observe(T mu, T theta, T x) const {
    return {exp_if(log_mu, mu), exp_if(log_theta, theta), library, x};
  }
  // The gradients by mu, theta and the library, from those by m and t
  VAE_FAST_FN void spread(T mu, T theta, T by_m, T by_theta, T& of_mu, T& of_theta, T& of_library) const {
    of_mu = by_m * (library * choose(log_mu, mu, T(1)));
    of_theta = by_theta * choose(log_theta, theta, T(1));
    of_library = by_m * mu;
  }

  VAE_FAST_FN void step(int lane, const T (&parameters)[3], T x, T scale, T (&gradients)[3]) {
    const Dispersed<T> d = observe(parameters[0], parameters[1], T(0));
    this->total[lane] += choose(x == T(0), d.zero_nll(), T(0));
    spread(d.mu, d.theta, scale * d.zero_slope(), scale * d.deviance, gradients[0], gradients[1], gradients[2]);
  }
  VAE_FAST_FN void rest(int lane, const T (&parameters)[3], T x, T scale, T (&gradients)[3]) {
    x = counted(x);
    const Dispersed<T> d = observe(parameters[0], parameters[1], x);
    T by_m, by_theta, squared;
    const T nll = d.nll(x, squared, by_m, by_theta);
    this->add_other(lane, x, nll, squared);
    spread(d.mu, d.theta, scale * by_m, scale * by_theta, gradients[0], gradients[1], gradients[2]);
  }
  VAE_FAST_FN void whole(int lane, const T (&parameters)[3], T x, T scale, T (&gradients)[3]) {
    x = counted(x);
    const Dispersed<T> d = observe(parameters[0], parameters[1], x);
    T nll = d.zero_nll(), by_m = d.zero_slope(), by_theta = d.deviance, squared;
    if (x != T(0)) nll = d.nll(x, squared, by_m, by_theta), nll += T(0.5) * rough_log(squared);
    this->total[lane] += nll;
    spread(d.mu, d.theta, scale * by_m, scale * by_theta, gradients[0], gradients[1], gradients[2]);
  }
};

}  // namespace vae_fast
