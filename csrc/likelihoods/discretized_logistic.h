// Discretised logistic: the probability that a logistic variable of mean m and scale e^s falls into x's bin. The levels
// lie evenly on [-1, 1], 2 w apart, w = 1 / (levels - 1); the outer bins reach to infinity.
//
// A bin's edges lie at n = t - h and f = t + h from the mean, in units of the scale: h = w e^-s, t = |c - m| e^-s, c the
// bin's centre. P = sigmoid(-n) - sigmoid(-f), and with E = e^-|n|, F = e^-f, V = e^-2h, T = e^-2t, S = sigmoid:
//   -log P  = max(n, 0) + log((1 + E) (1 + F) / (1 - V))
//   d/dm    = -+ e^-s (1 - T) S(n) S(f), up where m > c
//   d/ds    = -n S(n) + f S(-f) + 2h / (e^2h - 1)
// Nothing cancels: V and T are EF and e^(-2 min(t, h)), and 1 - V, 1 - T are series where they would. For an outer bin
// n is its one edge's distance, t's sign is the side's, and the factors of F, V and T fall away.
#pragma once

#include "../accumulator.h"

namespace vae_fast {

// From the options (levels, x_low, x_high), the ends of x
template <class T>
struct Levels {
  T steps, width, log_half_steps, factor, offset;  // steps: levels - 1; x's place is nearest(factor x + offset)

  VAE_FAST_FN explicit Levels(const T* options)
      : steps(options[0] - T(1)),
        width(T(1) / steps),
        log_half_steps(log(T(0.5) * steps)),
        factor(steps / (options[2] - options[1])),
        offset(-options[1] * factor) {}

  // Of the level nearest to x: its centre in units of w, an integer from -steps to steps
  VAE_FAST_FN T centre(T x) const {
    const T level = nearest(factor * x + offset);
    const T low = level < T(0) ? T(0) : level;
    return T(2) * (low > steps ? steps : low) - steps;
  }
};

// difference: centre - steps m. -log P = linear + log1p(q), both >= 0 (so P = e^-linear / (1 + q)), and its derivatives
template <class T>
struct LogisticBin {
  T linear, q, by_mean, by_log_scale;
};

// inverse: e^-s
template <class T>
struct LogisticBinEdges {
  T h, side, place, n;  // place: t / h
  bool outer;

  VAE_FAST_FN LogisticBinEdges(const Levels<T>& levels, T centre, T difference, T inverse)
      : h(inverse * levels.width), outer(magnitude(centre) >= levels.steps) {
    side = outer ? centre : difference;
    place = turned(difference, side);
    n = multiply_add(place, h, -h);
  }
  VAE_FAST_FN T exp_n() const { return exp_minus_magnitude(n); }  // E
  // The lesser of V and T
  VAE_FAST_FN T exp_minor(T difference) const {
    return exp_minus_magnitude(T(2) * h * smaller(magnitude(difference), T(1)));
  }
};

// Given E and the lesser of V and T
template <class T>
VAE_FAST_FN LogisticBin<T> logistic_bin(const Levels<T>& levels, T centre, T difference, T log_scale, T inverse, T e,
                                        T minor) {
  const LogisticBinEdges<T> edges(levels, centre, difference, inverse);
  const T h = edges.h, width = T(2) * h, side = edges.side, place = edges.place, n = edges.n;
  const bool outer = edges.outer;
  const T f = multiply_add(place, h, h);
  const T g = outer ? T(0) : minor, far = e * g, product = e * far;
  const bool beyond = n >= T(0);
  const T v = beyond ? g : product, t = beyond ? product : g;

  const bool narrow = (outer ? T(1) : width) < T(0.5);  // in one comparison: compilers do not vectorise "and"
  const T lost = narrow ? decay_deficit(width) : v, below_v = T(1) - lost;  // 1 - V, of 2h where that is small
  const T twice = outer ? T(1) : place * width;
  const T below_t = twice < T(0.5) ? twice - twice * decay_deficit(twice) : T(1) - t;
  const T one_e = T(1) + e, one_far = T(1) + far, both = one_e * one_far;
  const T inverse_all = quotient(T(1), both * below_v);
  const T inverse_v = both * inverse_all, inverse_both = below_v * inverse_all;
  const T s_n = (beyond ? T(1) : e) * (one_far * inverse_both), s_f = one_e * inverse_both;

  LogisticBin<T> bin;
  const T known = log_scale + levels.log_half_steps;
  bin.linear = larger(T(0), n) + (narrow ? known : T(0));
  bin.q = (e + far + product + lost) * inverse_v;
  bin.by_mean = turned(inverse * s_n * (below_t * s_f), -side);
  bin.by_log_scale = f * (far * s_f) - n * s_n + (narrow ? v : width * v) * inverse_v;
  return bin;
}

template <class T>
VAE_FAST_FN LogisticBin<T> logistic_bin(const Levels<T>& levels, T centre, T difference, T log_scale) {
  const T inverse = exp_bounded(-log_scale);
  const LogisticBinEdges<T> edges(levels, centre, difference, inverse);
  return logistic_bin(levels, centre, difference, log_scale, inverse, edges.exp_n(), edges.exp_minor(difference));
}

// The logarithm is shared as Bernoulli's is: 1 + q is at most 8.2.
template <class T, int LANES>
struct DiscretizedLogistic : Defaults {
  static constexpr int kParameters = 2, kOptions = 3, kJoined = 40, kParts = 3, kCarried[] = {3, 2};
  static constexpr bool kHeavy = true, kCounts = true, kPixels = true, kLosesNaN = true, kStored = true;
  Levels<T> levels;
  T linear[LANES] = {}, q[LANES] = {};

  VAE_FAST_FN explicit DiscretizedLogistic(const T* options) : levels(options) {}
  VAE_FAST_FN T away(T mean, T centre) const { return multiply_add(-levels.steps, mean, centre); }

  // The bin's centre, its distance, the scale; then the edges' exponentials
  VAE_FAST_FN void prepare(const T (&parameters)[2], T x, T (&carried)[3]) const {
    carried[0] = levels.centre(x);
    carried[1] = away(parameters[0], carried[0]);
    carried[2] = exp_bounded(-parameters[1]);
  }
  VAE_FAST_FN void prepare(const T (&seen)[5], T, T (&carried)[2]) const {
    const LogisticBinEdges<T> edges(levels, seen[2], seen[3], seen[4]);
    carried[0] = edges.exp_n(), carried[1] = edges.exp_minor(seen[3]);
  }
  VAE_FAST_FN void complete(int lane, const T (&seen)[7], T, T scale, T (&gradients)[2]) {
    add(lane, logistic_bin(levels, seen[2], seen[3], seen[1], seen[4], seen[5], seen[6]), scale, gradients);
  }
  VAE_FAST_FN void step(int lane, const T (&parameters)[2], T x, T scale, T (&gradients)[2]) {
    const T centre = levels.centre(x);
    add(lane, logistic_bin(levels, centre, away(parameters[0], centre), parameters[1]), scale, gradients);
  }
  VAE_FAST_FN void add(int lane, const LogisticBin<T>& bin, T scale, T (&gradients)[2]) {
    linear[lane] += bin.linear;
    q[lane] = q[lane] * bin.q + (q[lane] + bin.q);
    gradients[0] = scale * bin.by_mean;
    gradients[1] = scale * bin.by_log_scale;
  }
  VAE_FAST_FN void join(int lane, int other) {
    linear[lane] += linear[other];
    q[lane] = q[lane] * q[other] + (q[lane] + q[other]);
  }
  VAE_FAST_FN T sum(int lane) const { return linear[lane] + log1p(q[lane]); }
  VAE_FAST_FN T finish(T total, T) const { return total; }
};

}  // namespace vae_fast
