// Gaussian: -log p(x | m, v) = 1/2 [log 2 pi + v + (x - m)^2 e^-v], m the mean, v the log-variance, with gradients
// d/dm = (m - x) e^-v and d/dv = 1/2 [1 - (x - m)^2 e^-v].
#pragma once

#include "../math.h"

namespace vae_fast {

// e^-v is applied as two factors e^(-v/2): finite wherever the result is, 0 where x = m.
template <class T, int LANES>
struct Gaussian {
  static constexpr int kParameters = 2;
  T total[LANES];

  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T (&gradients)[2]) {
    add(lane, parameters[0] - x, parameters[1], exp_finite(T(-0.5) * parameters[1]), gradients);
  }
  VAE_FAST_FN void add(int lane, T d, T v, T factor, T (&gradients)[2]) {
    const T h = d * factor;
    total[lane] += T(0.5) * (h * h + (v + T(kLogTwoPi)));
    gradients[0] = h * factor;
    gradients[1] = T(0.5) - T(0.5) * (h * h);
  }
  VAE_FAST_FN T finish(int lane) const { return total[lane]; }
};

// The same for one v in the whole row: no exponential per observation.
template <class T, int LANES>
struct GaussianShared : Gaussian<T, LANES> {
  T v, factor;

  VAE_FAST_FN explicit GaussianShared(T logvar)
      : Gaussian<T, LANES>{}, v(logvar), factor(exp_finite(T(-0.5) * logvar)) {}
  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T (&gradients)[2]) {
    this->add(lane, parameters[0] - x, v, factor, gradients);
  }
};

}  // namespace vae_fast
