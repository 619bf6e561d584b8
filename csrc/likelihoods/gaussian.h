// Gaussian: -log p(x | m, v) = 1/2 [log 2 pi + v + (x - m)^2 e^-v], m the mean, v the log-variance, with gradients
// d/dm = (m - x) e^-v and d/dv = 1/2 [1 - (x - m)^2 e^-v].
#pragma once

#include "../accumulator.h"

namespace vae_fast {

// e^-v is applied as two factors e^(-v/2): finite wherever the result is, 0 where x = m.
template <class T, int LANES>
struct Gaussian : Sum<T, LANES> {
  static constexpr int kParameters = 2, kOfColumns = 0b10;
  static constexpr bool kLight = true, kStored = true;

  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T scale, T (&gradients)[2]) {
    const T v = parameters[1], factor = inverse_sigma(v), h = (parameters[0] - x) * factor;
    this->total[lane] += h * h + v;
    gradients[0] = h * scale * factor;
    gradients[1] = T(0.5) * scale - T(0.5) * h * (h * scale);
  }
  VAE_FAST_FN T finish(T total, T count) const { return T(0.5) * (total + count * T(kLogTwoPi)); }
};

// The same for one v in the whole row: no exponential per observation, and v is added at the end.
template <class T, int LANES>
struct GaussianShared : Sum<T, LANES> {
  static constexpr int kParameters = 2;
  static constexpr bool kLight = true, kStored = true;
  T v, factor;

  VAE_FAST_FN explicit GaussianShared(T logvar) : Sum<T, LANES>{}, v(logvar), factor(inverse_sigma(logvar)) {}
  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T scale, T (&gradients)[2]) {
    const T h = (parameters[0] - x) * factor;
    this->total[lane] += h * h;
    gradients[0] = h * (factor * scale);
    gradients[1] = T(0.5) * scale - (T(0.5) * scale) * (h * h);
  }
  VAE_FAST_FN T finish(T total, T count) const { return T(0.5) * (total + count * (T(kLogTwoPi) + v)); }
};

}  // namespace vae_fast
