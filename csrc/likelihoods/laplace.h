// Laplace: -log p(x | m, s) = |x - m| e^-s + s + log 2, m the mean, e^s the scale, with gradients
// d/dm = sign(m - x) e^-s, 0 where x = m, and d/ds = 1 - |x - m| e^-s.
#pragma once

#include "../accumulator.h"

namespace vae_fast {

template <class T, int LANES>
struct Laplace : Sum<T, LANES> {
  static constexpr int kParameters = 2, kOfColumns = 0b10;
  static constexpr bool kLight = true, kStored = true;

  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T scale, T (&gradients)[2]) {
    const T s = parameters[1], factor = exp_finite(-s), difference = parameters[0] - x;
    const T h = magnitude(difference) * factor;
    this->total[lane] += h + s;
    gradients[0] = times_sign(factor * scale, difference);
    gradients[1] = scale - h * scale;
  }
  VAE_FAST_FN T finish(T total, T count) const { return total + count * T(kLogTwo); }
};

// The same for one s in the whole row: no exponential per observation, and s is added at the end.
template <class T, int LANES>
struct LaplaceShared : Sum<T, LANES> {
  static constexpr int kParameters = 2;
  static constexpr bool kLight = true, kStored = true;
  T s, factor;

  VAE_FAST_FN explicit LaplaceShared(T log_scale) : Sum<T, LANES>{}, s(log_scale), factor(exp_finite(-log_scale)) {}
  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T scale, T (&gradients)[2]) {
    const T difference = parameters[0] - x, h = magnitude(difference) * factor;
    this->total[lane] += h;
    gradients[0] = times_sign(factor * scale, difference);
    gradients[1] = scale - h * scale;
  }
  VAE_FAST_FN T finish(T total, T count) const { return total + count * (T(kLogTwo) + s); }
};

}  // namespace vae_fast
