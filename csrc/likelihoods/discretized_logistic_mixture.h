// A mixture of discretised logistics (PixelCNN++): p(x) = sum_m pi_m prod_c P(x_c | mean_mc, log_scale_mc), where red
// shifts green's mean, and red and green blue's: by tanh(c0) r, and tanh(c1) r + tanh(c2) g, x in [-1, 1].
//
// Planes: M logits of pi, then for each channel M means, M log-scales and, of three channels, M coefficients.
// A component's share w_m is its part of the sum; d/dlogit_m = pi_m - w_m, and w_m times the gradients of its own -log P.
#pragma once

#include "../joint.h"
#include "discretized_logistic.h"

namespace vae_fast {

// tanh(c) and its derivative
template <class T>
struct Tanh {
  T value, slope;

  VAE_FAST_FN explicit Tanh(T c) {
    const T e = exp_nonpositive(T(-2) * magnitude(c)), inverse = quotient(T(1), T(1) + e),
            size = T(1) - T(2) * e * inverse;
    value = turned(size, c);
    slope = T(4) * e * (inverse * inverse);
  }
};

// A component is score, its logit less what its bins' -log P have in common with a line, and product, the rest:
// pi_m P_m is e^score / product, product of the 1 + q of its bins. The one logarithm is the sum's.
template <class T, int LANES, int CHANNELS>
struct LogisticMixture {
  static constexpr int kTargets = CHANNELS, kOptions = 4, kScratch = 2;
  static constexpr bool kSingle = false;
  static constexpr int kKinds = CHANNELS == 3 ? 3 : 2;   // of parameters of a channel
  static constexpr int kPlanes = 1 + kKinds * CHANNELS;  // of a component
  Levels<T> levels;
  int components;
  T inverse[CHANNELS][LANES], tanh[CHANNELS][LANES], slope[CHANNELS][LANES];
  T difference[CHANNELS][LANES], near[CHANNELS][LANES], minor[CHANNELS][LANES];
  T centre[CHANNELS][LANES], top[LANES], top_logit[LANES], sum[LANES], sum_logits[LANES];

  // options: channels, levels, x_low, x_high
  VAE_FAST_FN LogisticMixture(const T* options, int64_t planes)
      : levels(options + 1), components(static_cast<int>(planes / kPlanes)) {}
  static bool fits(int64_t planes) { return planes > 0 && planes % kPlanes == 0; }

  VAE_FAST_FN void observe(int lane, const T (&x)[CHANNELS]) {
    for (int c = 0; c < CHANNELS; ++c) centre[c][lane] = levels.centre(x[c]);
    top[lane] = top_logit[lane] = -std::numeric_limits<T>::infinity();
    sum[lane] = sum_logits[lane] = T(0);
  }

  VAE_FAST_FN int mean_plane(int c, int m) const { return (1 + c * kKinds) * components + m; }
  VAE_FAST_FN int scale_plane(int c, int m) const { return mean_plane(c, m) + components; }
  VAE_FAST_FN int coefficient_plane(int c, int m) const { return mean_plane(c, m) + 2 * components; }
  VAE_FAST_FN int score_plane(int m) const { return kPlanes * components + m; }
  VAE_FAST_FN int product_plane(int m) const { return score_plane(m) + components; }

  // Component m in three steps, so that no chain of operations is long: powers of scales and tanh of coefficients,
  VAE_FAST_FN void prepare(int lane, int m, Planes<T> p) {
    power(lane, 0, m, p);
    if constexpr (CHANNELS == 3) power(lane, 1, m, p), power(lane, 2, m, p);
  }
  // each bin's exponentials,
  VAE_FAST_FN void prepare_bins(int lane, int m, Planes<T> p) {
    edges(lane, 0, m, p, T(0));
    if constexpr (CHANNELS == 3) {
      const T red = centre[0][lane], green = centre[1][lane];
      edges(lane, 1, m, p, tanh[0][lane] * red);
      edges(lane, 2, m, p, tanh[1][lane] * red + tanh[2][lane] * green);
    }
  }
  // and the rest
  template <bool GRADIENTS>
  VAE_FAST_FN void complete(int lane, int m, Planes<T> p) {
    const T logit = p(m);
    T linear = T(0), product = T(1);
    bin<GRADIENTS>(lane, 0, m, p, linear, product);
    if constexpr (CHANNELS == 3) {
      const T red = centre[0][lane], green = centre[1][lane];
      const T by_green = bin<GRADIENTS>(lane, 1, m, p, linear, product) * levels.width;
      const T by_blue = bin<GRADIENTS>(lane, 2, m, p, linear, product) * levels.width;
      if (GRADIENTS) {
        p(coefficient_plane(0, m)) = by_green * red * slope[0][lane];
        p(coefficient_plane(1, m)) = by_blue * red * slope[1][lane];
        p(coefficient_plane(2, m)) = by_blue * green * slope[2][lane];
      }
    }
    const T score = logit - linear;
    p(score_plane(m)) = score, p(product_plane(m)) = product;
    top[lane] = score > top[lane] ? score : top[lane];
    top_logit[lane] = logit > top_logit[lane] ? logit : top_logit[lane];
  }

  template <bool GRADIENTS>
  VAE_FAST_FN void look(int lane, int m, Planes<T> p) {
    prepare(lane, m, p), prepare_bins(lane, m, p), complete<GRADIENTS>(lane, m, p);
  }

  VAE_FAST_FN void weigh(int lane, int m, Planes<T> p) {
    const T weight = quotient(exp_nonpositive(p(score_plane(m)) - top[lane]), p(product_plane(m)));
    const T prior = exp_nonpositive(p(m) - top_logit[lane]);
    sum[lane] += weight, sum_logits[lane] += prior;
    p(score_plane(m)) = weight, p(m) = prior;
  }

  VAE_FAST_FN T close(int lane) {
    const T value = (top_logit[lane] - top[lane]) + log(quotient(sum_logits[lane], sum[lane]));
    sum[lane] = quotient(T(1), sum[lane]), sum_logits[lane] = quotient(T(1), sum_logits[lane]);
    return value;
  }

  VAE_FAST_FN void share(int lane, int m, Planes<T> p, T scale) {
    const T weight = p(score_plane(m)) * sum[lane], factor = weight * scale;
    p(m) = scaled(p(m) * sum_logits[lane] - weight, scale);
    for (int c = 0; c < CHANNELS; ++c)
      for (int kind = 0; kind < kKinds; ++kind) {
        T& gradient = p(mean_plane(c, m) + kind * components);
        gradient = scale == T(0) ? T(0) : gradient * factor;
      }
  }

 private:
  VAE_FAST_FN void power(int lane, int c, int m, Planes<T> p) {
    inverse[c][lane] = exp_bounded(-p(scale_plane(c, m)));
    if constexpr (CHANNELS == 3) {
      const Tanh<T> of(p(coefficient_plane(c, m)));
      tanh[c][lane] = of.value, slope[c][lane] = of.slope;
    }
  }
  // shift: what the channels before add to steps times the mean
  VAE_FAST_FN void edges(int lane, int c, int m, Planes<T> p, T shift) {
    const T at = centre[c][lane], away = (at - levels.steps * p(mean_plane(c, m))) - shift;
    const LogisticBinEdges<T> edges(levels, at, away, inverse[c][lane]);
    difference[c][lane] = away, near[c][lane] = edges.exp_n(), minor[c][lane] = edges.exp_minor(away);
  }
  // The channel's bin: replaces its mean and log-scale
  template <bool GRADIENTS>
  VAE_FAST_FN T bin(int lane, int c, int m, Planes<T> p, T& linear, T& product) {
    const LogisticBin<T> bin = logistic_bin(levels, centre[c][lane], difference[c][lane], p(scale_plane(c, m)),
                                            inverse[c][lane], near[c][lane], minor[c][lane]);
    linear += bin.linear, product *= T(1) + bin.q;
    if (GRADIENTS) p(mean_plane(c, m)) = bin.by_mean, p(scale_plane(c, m)) = bin.by_log_scale;
    return bin.by_mean;
  }
};

template <class T, int LANES>
using LogisticMixtureOfColours = LogisticMixture<T, LANES, 3>;
template <class T, int LANES>
using LogisticMixtureOfGreys = LogisticMixture<T, LANES, 1>;

}  // namespace vae_fast
