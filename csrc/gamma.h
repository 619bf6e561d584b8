// The gamma function's family, for v > 0, by the remainders of Stirling's formula:
//
//   stirling(v)           S(v) = ln Gamma(v + 1) - [(v + 1/2) ln v - v + 1/2 ln 2 pi], from 1/2 ln(1/v) - 0.92 down to 0
//   digamma_remainder(v)  -S'(v) = ln v - 1/(2 v) - psi(v), from 1/(2 v) down to 0
//
// They are what is left of a difference of logarithms of gamma functions once its large terms are gone.
#pragma once

#include "math.h"

namespace vae_fast {

// S and -S' together: one logarithm serves both
template <class T>
struct Stirling {
  T value, slope;
};

namespace detail {

// S(1/u) and -S'(1/u) for u in [0, 1], absolute errors 2e-8 and 4e-8 (relative 5e-7)
VAE_FAST_FN float stirling_value(float u) {
  constexpr float kCoefficients[] = {8.3332250149e-2f, 2.1158793293e-5f, -2.9122367118e-3f,
                                     3.6644283515e-4f, 4.1255050943e-4f, -1.5871604159e-4f};
  return polynomial_by_pairs(u, kCoefficients) * u;
}
VAE_FAST_FN float stirling_slope(float u) {
  constexpr float kCoefficients[] = {8.3333294492e-2f, 2.4253997927e-6f,  -8.3516494681e-3f, -5.8861043466e-5f,
                                     4.9285248549e-3f, -3.4979590643e-3f, 8.5992572165e-4f};
  return polynomial_by_pairs(u, kCoefficients) * (u * u);
}

// The same for u <= 1/10 by Stirling's series
VAE_FAST_FN double stirling_value(double u) {
  constexpr double kCoefficients[] = {1. / 12,   -1. / 360,       1. / 1260, -1. / 1680,
                                      1. / 1188, -691. / 360360., 1. / 156,  -3617. / 122400.};
  return polynomial(u * u, kCoefficients) * u;
}
VAE_FAST_FN double stirling_slope(double u) {
  constexpr double kCoefficients[] = {1. / 12,  -1. / 120,      1. / 252, -1. / 240,
                                      1. / 132, -691. / 32760., 1. / 12,  -3617. / 8160.};
  return polynomial(u * u, kCoefficients) * (u * u);
}

}  // namespace detail

// For v >= 1, given 1/v
VAE_FAST_FN Stirling<float> stirling_from_one(float, float inverse) {
  return {detail::stirling_value(inverse), detail::stirling_slope(inverse)};
}

// S(v) = S(v + 1) + (v + 1/2) ln((v + 1)/v) - 1, by which v < 1 is shifted
VAE_FAST_FN Stirling<float> stirling_and_slope(float v, float inverse) {
  const float shift = v < 1.f ? 1.f : 0.f;
  const float u = quotient(1.f, v + shift), step = shift * rough_log(1.f + inverse);
  return {detail::stirling_value(u) + ((v + 0.5f) * step - shift),
          detail::stirling_slope(u) + (shift * (0.5f * (inverse + u)) - step)};
}
VAE_FAST_FN Stirling<double> stirling_and_slope(double v, double inverse) {
  Stirling<double> sum = {0., 0.};
  while (v < 10.) {
    const double step = log1p(inverse), next = 1. / (v + 1.);
    sum.value += (v + 0.5) * step - 1.;
    sum.slope += 0.5 * (inverse + next) - step;
    v += 1., inverse = next;
  }
  return {sum.value + detail::stirling_value(inverse), sum.slope + detail::stirling_slope(inverse)};
}
VAE_FAST_FN Stirling<double> stirling_from_one(double v, double inverse) { return stirling_and_slope(v, inverse); }

// Absolute error 1e-7, for v < 1e-3 relative
template <class T>
VAE_FAST_FN T stirling(T v) {
  return stirling_and_slope(v, quotient(T(1), v)).value;
}

// Absolute error 1e-7, for v > 1 relative 5e-7
template <class T>
VAE_FAST_FN T digamma_remainder(T v) {
  return stirling_and_slope(v, quotient(T(1), v)).slope;
}

// ln Gamma(v) and psi(v): relative error 1e-6, absolute near their zeros
template <class T>
VAE_FAST_FN T lgamma(T v) {
  const T shift = v < T(1) ? T(1) : T(0), w = v + shift;
  const T from_one = (w - T(0.5)) * (log(w) - T(1)) + (T(0.5 * kLogTwoPi - 0.5) + stirling(w));
  return from_one - shift * log(v);
}
template <class T>
VAE_FAST_FN T digamma(T v) {
  const T shift = v < T(1) ? T(1) : T(0), w = v + shift, inverse = quotient(T(1), w);
  const T from_one = log(w) - (T(0.5) * inverse + stirling_from_one(w, inverse).slope);
  return from_one - shift * quotient(T(1), v);
}

}  // namespace vae_fast
