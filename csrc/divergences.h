// Divergences between diagonal Gaussians, as accumulators over the latent dimensions; the target x is unused.
#pragma once

#include "accumulator.h"

namespace vae_fast {

// KL(N(m, e^v) || N(0, 1)) = 1/2 [m^2 + e^v - 1 - v], with d/dm = m, d/dv = 1/2 (e^v - 1).
template <class T, int LANES>
struct StandardKl : Sum<T, LANES> {
  static constexpr int kParameters = 2;

  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T, T scale, T (&gradients)[2]) {
    const T excess = observe(lane, parameters, exp(parameters[1]));
    gradients[0] = scale * parameters[0];
    gradients[1] = T(0.5) * scale * (excess + parameters[1]);
  }
  // The value alone, for a known variance e^v
  VAE_FAST_FN T observe(int lane, const T (&parameters)[2], T variance) {
    const T m = parameters[0], excess = expm1_minus(parameters[1], variance);
    this->total[lane] += m * m + excess;
    return excess;
  }
  // The value of one observation, before `finish`, and e^(v/2)
  VAE_FAST_FN static T term(const T (&parameters)[2], T& sigma) {
    T excess;
    sigma = sigma_and_excess(parameters[1], excess);
    return parameters[0] * parameters[0] + excess;
  }
  // The gradients alone, for a known e^(v/2) / 2
  VAE_FAST_FN static void differentiate(const T (&parameters)[2], T half, T scale, T& dm, T& dv) {
    dm = scale * parameters[0];
    dv = (T(2) * scale) * (half * half) - T(0.5) * scale;
  }
  VAE_FAST_FN T finish(T total, T) const { return T(0.5) * total; }
};

// KL(N(m, e^v) || N(m', e^v')) = 1/2 [e^r - 1 - r + h^2], r = v - v', h = (m - m') e^(-v'/2), with
// d/dm = -d/dm' = (m - m') e^-v', d/dv = 1/2 (e^r - 1), d/dv' = -1/2 (e^r - 1 + h^2).
template <class T, int LANES>
struct GaussianKl : Sum<T, LANES> {
  static constexpr int kParameters = 4;

  VAE_FAST_FN void step(int lane, const T (&parameters)[4], T, T scale, T (&gradients)[4]) {
    const T r = parameters[1] - parameters[3], factor = inverse_sigma(parameters[3]);
    const T h = (parameters[0] - parameters[2]) * factor;
    const T excess = expm1_minus(r, exp(r));
    this->total[lane] += excess + h * h;
    gradients[0] = h * factor * scale;
    gradients[1] = T(0.5) * scale * (excess + r);
    gradients[2] = -gradients[0];
    gradients[3] = T(-0.5) * scale * (excess + r + h * h);
  }
  // As StandardKl's, but that the variance could overflow where its ratio to the prior's doesn't
  VAE_FAST_FN void observe(int lane, const T (&parameters)[4], T) {
    T unused[4];
    step(lane, parameters, T(0), T(1), unused);
  }
  VAE_FAST_FN static T term(const T (&parameters)[4], T& sigma) {
    const T h = (parameters[0] - parameters[2]) * inverse_sigma(parameters[3]);
    T excess;
    sigma = sigma_and_excess(parameters[1], excess);
    sigma_and_excess(parameters[1] - parameters[3], excess);
    return excess + h * h;
  }
  VAE_FAST_FN static void differentiate(const T (&parameters)[4], T, T scale, T& dm, T& dv) {
    const T factor = inverse_sigma(parameters[3]);
    dm = (parameters[0] - parameters[2]) * factor * factor * scale;
    dv = (T(0.5) * scale) * exp(parameters[1] - parameters[3]) - T(0.5) * scale;
  }
  VAE_FAST_FN T finish(T total, T) const { return T(0.5) * total; }
};

// log q(z) - log p(z) = 1/2 [v' - v + h'^2 - h^2], h = (z - m) e^(-v/2), h' = (z - m') e^(-v'/2): the Monte-Carlo form
// of the KL, for one sample z ~ q. Parameters z, m, v, m', v'.
template <class T, int LANES>
struct LogRatio : Sum<T, LANES> {
  static constexpr int kParameters = 5;

  VAE_FAST_FN void step(int lane, const T (&parameters)[5], T, T scale, T (&gradients)[5]) {
    const T z = parameters[0], v = parameters[2], prior_v = parameters[4];
    const T factor = inverse_sigma(v), prior_factor = inverse_sigma(prior_v);
    const T h = (z - parameters[1]) * factor, prior_h = (z - parameters[3]) * prior_factor;
    this->total[lane] += (prior_v - v) + (prior_h - h) * (prior_h + h);
    gradients[1] = h * factor * scale;
    gradients[3] = -prior_h * prior_factor * scale;
    gradients[0] = -gradients[1] - gradients[3];
    gradients[2] = (h * h - T(1)) * (T(0.5) * scale);
    gradients[4] = (T(1) - prior_h * prior_h) * (T(0.5) * scale);
  }
  VAE_FAST_FN T finish(T total, T) const { return T(0.5) * total; }
};

}  // namespace vae_fast
