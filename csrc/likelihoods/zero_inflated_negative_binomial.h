// Zero-inflated negative binomial: x is 0 with probability sigmoid(l), l = pi the logit of dropout, else negative
// binomial (negative_binomial.h), whose own zeros have probability e^-n:
//
//   x >= 1:  softplus(l) + NB(x)        x = 0:  -log(1 - a) = -log(sigmoid(l) + sigmoid(-l) e^-n)
//
// with a = sigmoid(-l)(1 - e^-n): whichever says it without loss is used. At x = 0, with 1 - rho the probability that the
// zero is the negative binomial's: d/dl = -sigmoid(l) a/(1 - a), and NB's gradients times 1 - rho.
#pragma once

#include "negative_binomial.h"

namespace vae_fast {

// 1 + e = 2^k (1 + f) for 0 <= e, 0 <= f < 1: returns f, and adds k ln 2 to `sum`
VAE_FAST_FN float below_two(float e, float& sum) {
  const float u = 1.f + e;
  const uint32_t power = (bits<uint32_t>(u) & 0x7f800000u) - 0x3f800000u;
  sum += detail::number(power) * detail::kLn2;
  return power == 0u ? e : u * bits<float>(0x3f800000u - power) - 1.f;
}
VAE_FAST_FN double below_two(double e, double& sum) {
  sum += log1p(e);
  return 0.;
}

// A zero: -log(1 - a) = lift + log1p(e), e = a/(1 - a). e^lift brings causes of which both are rarer than e^-20 (double:
// e^-60) there, before their powers underflow; what they are beside 1 vanishes either way.
template <class T>
VAE_FAST_FN T lift_of(T l, T n) {
  constexpr T kDeep = sizeof(T) == 4 ? 20 : 60;
  return at_least(T(0), smaller(-l, n) - kDeep);
}

// Times e^lift: side = e^-|l|, power = e^-n, rest = 1 - power
template <class T>
struct Causes {
  T side, power, rest;
};
template <class T>
VAE_FAST_FN Causes<T> causes_of(T l, T n, T lift) {
  Causes<T> c;
  c.side = exp_nonpositive(lift - magnitude(l));
  c.rest = -expm1_nonpositive(lift - n, c.power);
  return c;
}

template <class T>
struct InflatedZero {
  T e, less_by_logit, not_dropped;  // less_by_logit: -d/dl; not_dropped: 1 - rho

  VAE_FAST_FN InflatedZero(T l, const Causes<T>& c) {
    const T dropped = l < T(0) ? c.side : T(1),
            kept = l < T(0) ? T(1) : c.side;  // sigmoid(l), sigmoid(-l) times `both`
    const T both = T(1) + c.side, mixed = dropped + kept * c.power;
    const T inverse = quotient(T(1), both * mixed), inverse_mixed = both * inverse;
    e = kept * c.rest * inverse_mixed;
    less_by_logit = dropped * (mixed * inverse) * e;
    not_dropped = kept * c.power * inverse_mixed;
  }
};

// The logarithm is shared: with Q <- Q + e + Q e, log1p(Q) is the sum of the log1p(e); Q at most doubles with each e < 1.
// On a CPU e goes up to e^20, of which Q holds four, and then is settled.
template <class T, int LANES>
struct ZeroInflatedNegativeBinomial : NegativeBinomial<T, LANES> {
  static constexpr int kParameters = 4, kJoined = 120, kParts = 3, kCarried[] = {3, 3};
  T q[LANES], settled_q[LANES];

  VAE_FAST_FN ZeroInflatedNegativeBinomial(const T* options, T library)
      : NegativeBinomial<T, LANES>(options, library), q{}, settled_q{} {}

  // Of zeros: the negative binomial's, then the powers of its causes
  VAE_FAST_FN void prepare(const T (&parameters)[4], T, T (&carried)[3]) const {
    const Dispersed<T> d = this->observe(parameters[0], parameters[1], T(0));
    carried[0] = d.zero_nll();
    carried[1] = d.zero_slope() * choose(this->log_mu, d.mu, T(1));
    carried[2] = d.deviance * choose(this->log_theta, d.theta, T(1));
  }
  VAE_FAST_FN void prepare(const T (&seen)[7], T, T (&carried)[3]) const {
    const T l = seen[2], nll = seen[4];
    const Causes<T> causes = causes_of(l, nll, lift_of(l, nll));
    carried[0] = causes.side, carried[1] = causes.power, carried[2] = causes.rest;
  }
  VAE_FAST_FN void complete(int lane, const T (&seen)[10], T x, T scale, T (&gradients)[4]) {
    const T mu = seen[0], l = seen[2], nll = seen[4], slope = seen[5], by_theta = seen[6];
    const InflatedZero<T> zero(l, {seen[7], seen[8], seen[9]});
    this->total[lane] += choose(x == T(0), lift_of(l, nll), T(0));
    const T e = choose(x == T(0), zero.e, T(0));
    q[lane] += q[lane] * e + e;
    const T kept = scale * zero.not_dropped;
    const T by_mu = kept * slope;
    gradients[0] = by_mu * this->library, gradients[1] = kept * by_theta;
    gradients[2] = -scale * zero.less_by_logit, gradients[3] = by_mu * choose(this->log_mu, T(1), mu);
  }
  VAE_FAST_FN void settle(int lane) {
    settled_q[lane] = below_two(of_all(lane), this->total[lane]);
    q[lane] = T(0);
    Counts<T, LANES>::settle(lane);
  }
  VAE_FAST_FN void rest(int lane, const T (&parameters)[4], T x, T scale, T (&gradients)[4]) {
    x = counted(x);
    const Dispersed<T> d = this->observe(parameters[0], parameters[1], x);
    T by_m, by_theta, squared;
    const T l = parameters[2], e = exp_nonpositive(-magnitude(l)), nll = d.nll(x, squared, by_m, by_theta);
    this->add_other(lane, x, nll + larger(T(0), l), squared * ((T(1) + e) * (T(1) + e)));
    this->spread(d.mu, d.theta, scale * by_m, scale * by_theta, gradients[0], gradients[1], gradients[3]);
    gradients[2] = scale * quotient(l < T(0) ? e : T(1), T(1) + e);
  }
  VAE_FAST_FN void whole(int lane, const T (&parameters)[4], T x, T scale, T (&gradients)[4]) {
    x = counted(x);
    const Dispersed<T> d = this->observe(parameters[0], parameters[1], x);
    const T l = parameters[2];
    T by_m, by_theta, squared, e;
    if (x == T(0)) {
      const T n = d.zero_nll();
      T sum = lift_of(l, n);
      const InflatedZero<T> zero(l, causes_of(l, n, sum));
      e = below_two(zero.e, sum);
      this->total[lane] += sum;
      by_m = zero.not_dropped * d.zero_slope(), by_theta = zero.not_dropped * d.deviance;
      gradients[2] = -scale * zero.less_by_logit;
    } else {  // NB's, and softplus(l) = max(l, 0) + log1p(e^-|l|)
      const T nll = d.nll(x, squared, by_m, by_theta);
      e = exp_nonpositive(-magnitude(l));
      this->total[lane] += nll + T(0.5) * rough_log(squared) + larger(l, T(0));
      gradients[2] = scale * quotient(l < T(0) ? e : T(1), T(1) + e);
    }
    q[lane] += q[lane] * e + e;
    this->spread(d.mu, d.theta, scale * by_m, scale * by_theta, gradients[0], gradients[1], gradients[3]);
  }
  VAE_FAST_FN void join(int lane, int other) {
    this->total[lane] += this->total[other];
    q[lane] = q[lane] * q[other] + (q[lane] + q[other]);
  }
  VAE_FAST_FN T sum(int lane) const { return Counts<T, LANES>::sum(lane) + log1p(of_all(lane)); }
  VAE_FAST_FN T of_all(int lane) const { return q[lane] * settled_q[lane] + (q[lane] + settled_q[lane]); }
};

}  // namespace vae_fast
