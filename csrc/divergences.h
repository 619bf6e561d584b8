// Divergences between diagonal Gaussians, as accumulators over the latent dimensions; the target x is unused.
#pragma once

#include "math.h"

namespace vae_fast {

// KL(N(m, e^v) || N(0, 1)) = 1/2 [m^2 + e^v - 1 - v], with d/dm = m, d/dv = 1/2 (e^v - 1).
template <class T, int LANES>
struct StandardKl {
  static constexpr int kParameters = 2;
  T total[LANES];

  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T, T (&gradients)[2]) {
    const T m = parameters[0], v = parameters[1];
    const T excess = expm1_minus(v, exp(v));
    total[lane] += T(0.5) * (m * m + excess);
    gradients[0] = m;
    gradients[1] = T(0.5) * (excess + v);
  }
  VAE_FAST_FN T finish(int lane) const { return total[lane]; }
};

// KL(N(m, e^v) || N(m', e^v')) = 1/2 [e^r - 1 - r + h^2], r = v - v', h = (m - m') e^(-v'/2), with
// d/dm = -d/dm' = (m - m') e^-v', d/dv = 1/2 (e^r - 1), d/dv' = -1/2 (e^r - 1 + h^2).
template <class T, int LANES>
struct GaussianKl {
  static constexpr int kParameters = 4;
  T total[LANES];

  VAE_FAST_FN void step(int lane, const T (&parameters)[4], T, T (&gradients)[4]) {
    const T r = parameters[1] - parameters[3], factor = exp_finite(T(-0.5) * parameters[3]);
    const T h = (parameters[0] - parameters[2]) * factor;
    const T excess = expm1_minus(r, exp(r));
    total[lane] += T(0.5) * (excess + h * h);
    gradients[0] = h * factor;
    gradients[1] = T(0.5) * (excess + r);
    gradients[2] = -gradients[0];
    gradients[3] = T(-0.5) * (excess + r + h * h);
  }
  VAE_FAST_FN T finish(int lane) const { return total[lane]; }
};

// log q(z) - log p(z) = 1/2 [v' - v + h'^2 - h^2], h = (z - m) e^(-v/2), h' = (z - m') e^(-v'/2): the Monte-Carlo form
// of the KL, for one sample z ~ q. Parameters z, m, v, m', v'.
template <class T, int LANES>
struct LogRatio {
  static constexpr int kParameters = 5;
  T total[LANES];

  VAE_FAST_FN void step(int lane, const T (&parameters)[5], T, T (&gradients)[5]) {
    const T z = parameters[0], v = parameters[2], prior_v = parameters[4];
    const T factor = exp_finite(T(-0.5) * v), prior_factor = exp_finite(T(-0.5) * prior_v);
    const T h = (z - parameters[1]) * factor, prior_h = (z - parameters[3]) * prior_factor;
    total[lane] += T(0.5) * ((prior_v - v) + (prior_h - h) * (prior_h + h));
    gradients[1] = h * factor;
    gradients[3] = -prior_h * prior_factor;
    gradients[0] = -gradients[1] - gradients[3];
    gradients[2] = T(0.5) * (h * h) - T(0.5);
    gradients[4] = T(0.5) - T(0.5) * (prior_h * prior_h);
  }
  VAE_FAST_FN T finish(int lane) const { return total[lane]; }
};

}  // namespace vae_fast
