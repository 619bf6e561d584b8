// Element functions for host and device: exponentials and logarithms, from arithmetic that compilers vectorise.
//
// float: minimax polynomials, within 5 ulp, most within 2, or as their comment says; no branches, no library calls; on a
// GPU one instruction where it has one that is accurate enough. double: the C library.
// Each passes NaN through and has the right limits at +-inf unless its comment says otherwise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define VAE_FAST_FN __host__ __device__ __forceinline__
#else
#define VAE_FAST_FN inline __attribute__((always_inline))
#endif

namespace vae_fast {

constexpr double kLogTwoPi = 1.8378770664093454836, kTwoPi = 6.2831853071795864769;
constexpr double kLogTwo = 0.69314718055994530942;
constexpr float kLargestExponent = 88.7228317f;  // e^it is the largest float
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLeastDouble = std::numeric_limits<double>::min();

// NVIDIA's instructions, within 2 ulp or (lg2 near 1, sine, cosine) 2^-20.9 absolutely. Subnormal numbers count as 0.
#if defined(__CUDA_ARCH__)
namespace gpu {
#define VAE_FAST_INSTRUCTION(name)                           \
  __device__ __forceinline__ float name(float v) {           \
    float r;                                                 \
    asm(#name ".approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); \
    return r;                                                \
  }
VAE_FAST_INSTRUCTION(ex2)
VAE_FAST_INSTRUCTION(lg2)
VAE_FAST_INSTRUCTION(rcp)
VAE_FAST_INSTRUCTION(sqrt)
VAE_FAST_INSTRUCTION(sin)
VAE_FAST_INSTRUCTION(cos)
#undef VAE_FAST_INSTRUCTION

constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596303e-8f, kLn2 = 0.693147182f, kPi = 3.14159274f;

}  // namespace gpu
#endif

template <class To, class From>
VAE_FAST_FN To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits: the types differ in size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

VAE_FAST_FN float magnitude(float v) {
#if defined(__CUDA_ARCH__)
  return fabsf(v);
#else
  return bits<float>(bits<uint32_t>(v) & 0x7fffffffu);
#endif
}
VAE_FAST_FN double magnitude(double v) { return std::fabs(v); }

// The larger one; either, if one is NaN
VAE_FAST_FN float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}
VAE_FAST_FN double larger(double a, double b) { return a > b ? a : b; }

// first ? a : b, both computed: a branch around either, which GCC might make of it, wouldn't vectorise
VAE_FAST_FN float choose(bool first, float a, float b) {
#if defined(__CUDA_ARCH__)
  return first ? a : b;
#else
  const uint32_t mask = first ? ~0u : 0u;
  return bits<float>((bits<uint32_t>(a) & mask) | (bits<uint32_t>(b) & ~mask));
#endif
}
VAE_FAST_FN double choose(bool first, double a, double b) { return first ? a : b; }

// v, or -v where the sign of `of` is -
VAE_FAST_FN float turned(float v, float of) {
  return bits<float>(bits<uint32_t>(v) ^ (bits<uint32_t>(of) & 0x80000000u));
}
VAE_FAST_FN double turned(double v, double of) { return v * std::copysign(1., of); }

// The side that v is on: 0 where its sign is -, else 1. That of zero and NaN is either; `to_side` agrees with it
VAE_FAST_FN float side_of(float v) {
#if defined(__CUDA_ARCH__)
  return v < 0.f ? 0.f : 1.f;
#else
  return bits<float>(~static_cast<uint32_t>(bits<int32_t>(v) >> 31) & bits<uint32_t>(1.f));
#endif
}
VAE_FAST_FN double side_of(double v) { return 0.5 + std::copysign(0.5, v); }

// m where v is on side 1, -m where it is on side 0: on a CPU by v's sign, on a GPU, where one comparison gives the side,
// by that
VAE_FAST_FN float to_side(float m, [[maybe_unused]] float side, [[maybe_unused]] float v) {
#if defined(__CUDA_ARCH__)
  return fmaf(2.f, side, -1.f) * m;
#else
  return turned(m, v);
#endif
}
VAE_FAST_FN double to_side(double m, double side, double) { return (2. * side - 1.) * m; }

// The larger one of v and least >= 0; either, if v is NaN: as integers they compare alike, and GCC needs one step
VAE_FAST_FN float at_least(float least, float v) {
#if defined(__CUDA_ARCH__)
  return fmaxf(least, v);
#else
  const auto a = bits<int32_t>(least), b = bits<int32_t>(v);
  return bits<float>(a > b ? a : b);
#endif
}
VAE_FAST_FN double at_least(double least, double v) { return least > v ? least : v; }

// The smaller one; either, if one is NaN
template <class T>
VAE_FAST_FN T smaller(T a, T b) {
#if defined(__CUDA_ARCH__)
  return -larger(-a, -b);
#else
  return a < b ? a : b;
#endif
}

VAE_FAST_FN float square_root(float v) {
#if defined(__CUDA_ARCH__)
  return gpu::sqrt(v);
#else
  return __builtin_sqrtf(v);
#endif
}
VAE_FAST_FN double square_root(double v) { return std::sqrt(v); }

// a / b for normal b
VAE_FAST_FN float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return a * gpu::rcp(b);
#else
  return a / b;
#endif
}
VAE_FAST_FN double quotient(double a, double b) { return a / b; }

// a b + c, rounded once where the machine can
VAE_FAST_FN float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
VAE_FAST_FN double multiply_add(double a, double b, double c) { return a * b + c; }

// c[0] + c[1] v + ... by Horner's rule
template <class T, int N>
VAE_FAST_FN T polynomial(T v, const T (&c)[N]) {
  T sum = c[N - 1];
  for (int k = N - 2; k >= 0; --k) sum = sum * v + c[k];
  return sum;
}

// The same in less time from the first operation to the last, by Horner's rule in v^2
template <class T, int N>
VAE_FAST_FN T polynomial_by_pairs(T v, const T (&c)[N]) {
  T pairs[(N + 1) / 2];
  for (int k = 0; k < N / 2; ++k) pairs[k] = c[2 * k + 1] * v + c[2 * k];
  if constexpr (N % 2) pairs[N / 2] = c[N - 1];
  return polynomial(v * v, pairs);
}

namespace detail {

// The integer n nearest to v / ln 2, and 2^(n + BIAS - 127) as `scale`.
// 1.5 2^23 + BIAS is so large that a sum with it holds n + BIAS in its low bits, one shift away from the exponent field.
template <int BIAS>
VAE_FAST_FN float exponent_of(float v, float& scale) {
  constexpr float kRound = 12582912.f + BIAS;
  const float shifted = v * 1.44269504f + kRound;
  scale = bits<float>(bits<uint32_t>(shifted) << 23);
  return shifted - kRound;
}

// v = n ln 2 + f, |f| <= ln(2)/2: returns f, and 2^(n + BIAS - 127) as `scale`
template <int BIAS>
VAE_FAST_FN float exp_reduced(float v, float& scale) {
  const float n = exponent_of<BIAS>(v, scale);
  return (v - n * 0.693145752f) - n * 1.42860677e-6f;
}

// The same for v from -87 to 0, ln 2 in one part: an operation less. f is off by 3e-9 |v|, or by 6e-8 |v| where no
// multiply-add is fused, which is little beside what else e^v, then small, is added to.
VAE_FAST_FN float decay_reduced(float v, float& scale) { return v - exponent_of<127>(v, scale) * 0.693147182f; }

// v, at least low < 0 and at most high >= 0; NaN as either. Minima of bits: for limits of floats GCC goes a way of its
// own through all that follows
VAE_FAST_FN float limited(float v, float low, float high) {
  const uint32_t least = bits<uint32_t>(low);
  const auto from = static_cast<int32_t>(bits<uint32_t>(v) < least ? bits<uint32_t>(v) : least);
  return bits<float>(from < bits<int32_t>(high) ? from : bits<int32_t>(high));
}

// `decay_reduced` for v = -min(|u|, 87)
VAE_FAST_FN float magnitude_reduced(float u, float& scale) {
  const uint32_t magnitude = bits<uint32_t>(u) & 0x7fffffffu, most = bits<uint32_t>(87.f);
  return decay_reduced(-bits<float>(magnitude < most ? magnitude : most), scale);
}

// e^f - 1 for |f| <= ln(2)/2, within 3e-9 of e^f before rounding
VAE_FAST_FN float expm1_near(float f) {
  constexpr float kCoefficients[] = {5.0000000952e-1f, 1.6666518853e-1f, 4.1666205882e-2f, 8.3688877e-3f,
                                     1.3950486702e-3f};
  return polynomial_by_pairs(f, kCoefficients) * (f * f) + f;
}

// The same within 1.1e-7, an operation less
VAE_FAST_FN float rough_expm1_near(float f) {
  constexpr float kCoefficients[] = {4.9999230e-1f, 1.6667116e-1f, 4.1890400e-2f, 8.3124900e-3f};
  return polynomial_by_pairs(f, kCoefficients) * (f * f) + f;
}

}  // namespace detail

// e^v for v <= 0, within 1e-7 + 3e-9 |v| of itself; where no multiply-add is fused, and on a GPU, 1e-7 + 6e-8 |v|. Below
// -87 the result stays at e^-87, about 1e-38 (GPU: 0)
VAE_FAST_FN float exp_nonpositive(float v) {
#if defined(__CUDA_ARCH__)
  return gpu::ex2(v * gpu::kLog2E);
#else
  float scale;
  const float f = detail::decay_reduced(-87.f > v ? -87.f : v, scale);
  return detail::expm1_near(f) * scale + scale;
#endif
}
VAE_FAST_FN double exp_nonpositive(double v) { return std::exp(v); }

// e^-|v|, as `exp_nonpositive`; but on a CPU NaN counts as infinity: a minimum of bits is one operation, of floats that
// may be NaN three
VAE_FAST_FN float exp_minus_magnitude(float v) {
#if defined(__CUDA_ARCH__)
  return exp_nonpositive(-magnitude(v));
#else
  float scale;
  return detail::expm1_near(detail::magnitude_reduced(v, scale)) * scale + scale;
#endif
}
VAE_FAST_FN double exp_minus_magnitude(double v) { return std::exp(-std::fabs(v)); }

// The same, 1e-7 further off
VAE_FAST_FN float rough_exp_minus_magnitude(float v) {
#if defined(__CUDA_ARCH__)
  return exp_nonpositive(-magnitude(v));
#else
  float scale;
  return detail::rough_expm1_near(detail::magnitude_reduced(v, scale)) * scale + scale;
#endif
}
VAE_FAST_FN double rough_exp_minus_magnitude(double v) { return exp_minus_magnitude(v); }

// e^v - 1 for v <= 0, relative error 2e-7, and e^v as `exp_nonpositive`
VAE_FAST_FN float expm1_nonpositive(float v, float& exp_v) {
#if defined(__CUDA_ARCH__)
  constexpr float kCoefficients[] = {
      1.f, 0.5f, 1.666669548e-1f, 4.166651517e-2f, 8.330930956e-3f, 1.389133628e-3f, 2.032547782e-4f, 2.496072193e-5f};
  exp_v = exp_nonpositive(v);
  return v > -1.f ? polynomial(v, kCoefficients) * v : exp_v - 1.f;
#else
  float scale;
  const float less = detail::expm1_near(detail::decay_reduced(-87.f > v ? -87.f : v, scale));
  exp_v = less * scale + scale;
  return less * scale + (scale - 1.f);
#endif
}
VAE_FAST_FN double expm1_nonpositive(double v, double& exp_v) {
  exp_v = std::exp(v);
  return std::expm1(v);
}

// e^v where float32 can hold it, else the nearest it can: e^-86 (GPU: 0) or the largest float; a GPU errs by 6e-8 |v|
VAE_FAST_FN float exp_finite(float v) {
#if defined(__CUDA_ARCH__)
  const float exponent = v * gpu::kLog2E;
  return gpu::ex2(exponent > 127.99999f ? 127.99999f : exponent);
#else
  float scale;
  const float f = detail::exp_reduced<126>(detail::limited(v, -86.f, kLargestExponent), scale);
  return v == v ? 2.f * (detail::expm1_near(f) * scale + scale) : v;
#endif
}
VAE_FAST_FN double exp_finite(double v) { return std::exp(v > 709. ? 709. : v); }

// e^v; below -86 the result stays at e^-86 (GPU: 0 from -87 on)
VAE_FAST_FN float exp(float v) {
#if defined(__CUDA_ARCH__)  // what rounding v log2(e) lost is put back, which matters from |v| = 4 on
  const float exponent = v * gpu::kLog2E, power = gpu::ex2(exponent);
  const float lost = fmaf(v, gpu::kLog2E, -exponent) + v * gpu::kLog2ELow;
  return magnitude(exponent) < 128.f ? fmaf(power, lost * gpu::kLn2, power) : power;
#else
  return v > kLargestExponent ? kInfinity : exp_finite(v);
#endif
}
VAE_FAST_FN double exp(double v) { return std::exp(v); }

// e^(v/2), sigma of the log-variance v; a GPU errs by 3e-8 |v|
VAE_FAST_FN float sigma_of(float v) {
#if defined(__CUDA_ARCH__)
  return gpu::ex2(v * (0.5f * gpu::kLog2E));
#else
  return exp(0.5f * v);
#endif
}
VAE_FAST_FN double sigma_of(double v) { return exp(0.5 * v); }

namespace detail {

// v/2 = n ln 2 + f/2 with integer n, which is 0 if v is `near` 0, else |f| <= ln 2: returns f, and 2^(n-1) as `scale`.
// v counts as -172 below that and as 179, of infinite scale, above; NaN as either.
VAE_FAST_FN float halves_reduced(float v, bool near, float& scale) {
  constexpr float kRound = 12582912.f + 126;  // as in exponent_of
  const float number = limited(v, -172.f, 179.f);
  const float shifted = near ? kRound : number * 0.72134752f + kRound, n = shifted - kRound;
  scale = bits<float>(bits<uint32_t>(shifted) << 23);
  return (number - n * 1.386291504f) - n * 2.85721354e-6f;
}

}  // namespace detail

// sigma / 2
VAE_FAST_FN float half_sigma(float v) {
#if defined(__CUDA_ARCH__)
  return gpu::ex2(fmaf(v, 0.5f * gpu::kLog2E, -1.f));
#else
  constexpr float kCoefficients[] = {
      1.f, 5.000000251e-1f, 1.250000110e-1f, 2.083295363e-2f, 2.604047585e-3f, 2.618500873e-4f, 2.197182442e-5f};
  float scale;
  const float f = detail::halves_reduced(v, false, scale), half = polynomial(f, kCoefficients) * scale;
  return v == v ? half : v;
#endif
}
VAE_FAST_FN double half_sigma(double v) { return 0.5 * exp(0.5 * v); }

// e^(-v/2), 1 / sigma of the log-variance v, as `exp_finite`
VAE_FAST_FN float inverse_sigma(float v) {
#if defined(__CUDA_ARCH__)
  float exponent = v * (-0.5f * gpu::kLog2E);
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(exponent) : "f"(127.99999f));
  return gpu::ex2(exponent);
#else
  return exp_finite(-0.5f * v);
#endif
}
VAE_FAST_FN double inverse_sigma(double v) { return exp_finite(-0.5 * v); }

namespace detail {

// v = 2^n (1 + f) for normal v > 0, 1 + f from sqrt(1/2) to sqrt(2): returns f, and n 2^23 as `power`
VAE_FAST_FN float log_reduced(float v, uint32_t& power) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  power = (bits<uint32_t>(v) - kSqrtHalf) & 0xff800000u;
  return bits<float>(bits<uint32_t>(v) - power) - 1.f;
}
VAE_FAST_FN float number(uint32_t power) { return static_cast<float>(static_cast<int32_t>(power)); }
// ln 2 a power; high: to as many digits that its products with powers are exact, low: the rest
constexpr float kLn2 = 0.693147181f * 0x1p-23f, kLn2High = 0.693145752f * 0x1p-23f, kLn2Low = 1.42860677e-6f * 0x1p-23f;

// ln(1 + f) - f, f as above
VAE_FAST_FN float log1p_beyond(float f) {
  constexpr float kCoefficients[] = {3.3333316727e-1f, -2.5000810398e-1f, 2.0002286198e-1f, -1.6624554062e-1f,
                                     1.4181193285e-1f, -1.3128756635e-1f, 1.2881640924e-1f, -7.8595989158e-2f};
  return (polynomial_by_pairs(f, kCoefficients) * f - 0.5f) * (f * f);
}

}  // namespace detail

// e^v, or v itself: a choice that is the same for all observations
VAE_FAST_FN float exp_if(bool logarithm, float v) {
#if defined(__CUDA_ARCH__)
  if (logarithm) v = exp(v);
  return v;
#else
  return choose(logarithm, exp(v), v);
#endif
}
VAE_FAST_FN double exp_if(bool logarithm, double v) { return logarithm ? exp(v) : v; }

// ln v for normal v > 0; at v = 0 about -88 instead of -inf
VAE_FAST_FN float log(float v) {
  uint32_t power;
  const float f = detail::log_reduced(v, power), n = detail::number(power);
  const float p = detail::log1p_beyond(f) + n * detail::kLn2Low;
  const float r = n * detail::kLn2High + (p + f);
  return v < kInfinity ? r : v;
}
VAE_FAST_FN double log(double v) { return std::log(v); }

// ln v for normal v > 0: on a GPU by one instruction, whose error is absolute, 2^-22, where v is near 1
VAE_FAST_FN float rough_log(float v) {
#if defined(__CUDA_ARCH__)
  return gpu::lg2(v) * gpu::kLn2;
#else
  return log(v);
#endif
}
VAE_FAST_FN double rough_log(double v) { return log(v); }

// ln(1 + v) for v > -1: what rounding 1 + v lost is put back to first order
VAE_FAST_FN float log1p(float v) {
  const float u = 1.f + v;
  const float lost = v - (u - 1.f);
  return log(u) + (u < kInfinity ? quotient(lost, u) : 0.f);
}
VAE_FAST_FN double log1p(double v) { return std::log1p(v); }

// v - ln(1 + v) >= 0 for finite v > -1, relative error 6e-7. u = 1 + v, which v alone says too roughly where v is near -1
VAE_FAST_FN float log1p_minus(float v, float u) {
  uint32_t power;
  detail::log_reduced(u, power);
  const float n = detail::number(power), part = bits<float>(0x3f800000u - power);
  const bool near = v > -0.5f;
  const float f = multiply_add(part, near ? v : u, near ? part - 1.f : -1.f);  // n = 0: v itself
#if !defined(__CUDA_ARCH__)
  v += 0.f * u;  // NaN where u is not finite
#endif
  return ((v - n * detail::kLn2High) - f) - (n * detail::kLn2Low + detail::log1p_beyond(f));
}
VAE_FAST_FN double log1p_minus(double v, double u) {
  constexpr double kCoefficients[] = {1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11, 1. / 13,
                                      1. / 15, 1. / 17, 1. / 19, 1. / 21, 1. / 23, 1. / 25};
  const double z = v / (2. + v);  // ln(1 + v) = 2 artanh z
  const double near = z * (v - 2. * (z * z) * polynomial(z * z, kCoefficients));
  return magnitude(v) < 0.4 ? near : v - std::log(v >= 0. ? 1. + v : larger(u, kLeastDouble));
}

// e^v - 1 - v for finite v, given e^v: the series where |v| < 1 would cancel, v^2/2 to full relative accuracy as v -> 0
VAE_FAST_FN float expm1_minus(float v, float exp_v) {
  constexpr float kCoefficients[] = {
      0.5f, 1.666669548e-1f, 4.166651517e-2f, 8.330930956e-3f, 1.389133628e-3f, 2.032547782e-4f, 2.496072193e-5f};
  const float near = polynomial(v, kCoefficients) * (v * v);
  return magnitude(v) < 1.f ? near : (exp_v - 1.f) - v;
}
VAE_FAST_FN double expm1_minus(double v, double) {
  constexpr double kCoefficients[] = {
      1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,        1. / 5040,        1. / 40320,
      1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800, 1. / 87178291200, 1. / 1307674368000};
  const double near = polynomial(v, kCoefficients) * (v * v);
  return magnitude(v) < 0.5 ? near : std::expm1(v) - v;
}

// e^(v/2), as sigma_of, and e^v - 1 - v, within 7 ulp, from one polynomial: both from e^(v/2) - 1 where |v| < 1
VAE_FAST_FN float sigma_and_excess(float v, float& excess) {
  constexpr float kCoefficients[] = {2.50000006e-1f,  4.166666364e-2f, 5.208224493e-3f,
                                     5.208407605e-4f, 4.369374184e-5f, 3.105567320e-6f};
  const bool near = magnitude(v) < 1.f;
  float scale;
  const float f = detail::halves_reduced(v, near, scale);
  const float beyond = polynomial_by_pairs(f, kCoefficients) * (f * f), twice = beyond + f;  // 2 (e^(f/2) - 1)
  const float sigma = v == v ? (twice + 2.f) * scale : v;
  excess = near ? (0.25f * twice) * twice + beyond : (sigma * sigma - 1.f) - v;
  return sigma;
}
VAE_FAST_FN double sigma_and_excess(double v, double& excess) {
  excess = expm1_minus(v, 0.);
  return sigma_of(v);
}

// e^v, at most e^69, so that products with it stay finite, and at least e^-87 (GPU: 0); a GPU errs by 6e-8 |v|
VAE_FAST_FN float exp_bounded(float v) {
#if defined(__CUDA_ARCH__)
  const float exponent = v * gpu::kLog2E;
  return gpu::ex2(exponent > 99.5459578f ? 99.5459578f : exponent);
#else
  float scale;
  const float f = detail::exp_reduced<127>(detail::limited(v, -87.f, 69.f), scale);
  return v == v ? detail::expm1_near(f) * scale + scale : v;
#endif
}
VAE_FAST_FN double exp_bounded(double v) { return std::exp(v > 69. ? 69. : v); }

// 1 - (1 - e^-a) / a for 0 <= a <= 1/2, what the mean of e^-v, v from 0 to a, lacks of 1
VAE_FAST_FN float decay_deficit(float a) {
  constexpr float kCoefficients[] = {4.999950082e-1f, -1.665681191e-1f, 4.10579251e-2f, -6.823575794e-3f};
  return a * polynomial(a, kCoefficients);
}
VAE_FAST_FN double decay_deficit(double a) { return a > 0. ? expm1_minus(-a, 0.) / a : a; }

// The nearest integer, of two the even one, for |v| < 2^22
VAE_FAST_FN float nearest(float v) {
  constexpr float kRound = 12582912.f;
  return (v + kRound) - kRound;
}
VAE_FAST_FN double nearest(double v) { return std::nearbyint(v); }

// sum + ln(product) grows by ln v, v normal and > 0. On a CPU it is multiplied in, and its exponent, by which the product
// stays in [1, 2), added to the sum: a quarter of a logarithm's operations.
VAE_FAST_FN void add_log(float v, float& sum, float& product) {
#if defined(__CUDA_ARCH__)
  sum += gpu::lg2(v) * gpu::kLn2;
#else
  const float grown = product * v;
  const uint32_t power = (bits<uint32_t>(grown) & 0x7f800000u) - 0x3f800000u;
  sum += detail::number(power) * detail::kLn2;
  product = bits<float>(bits<uint32_t>(grown) - power);
#endif
}
VAE_FAST_FN void add_log(double v, double& sum, double&) { sum += log(v); }

// The same by log((1 - e^-a) / a) for a >= 0, given e^-a: by its series where a < 1
VAE_FAST_FN void add_log_decay_ratio(float a, float exp_minus_a, float& sum, float& product) {
  constexpr float kCoefficients[] = {4.166665583e-2f, -3.471350022e-4f, 5.33532848e-6f};
  const float near = a * (a * polynomial(a * a, kCoefficients) - 0.5f);
  const float rest = 1.f - exp_minus_a, ratio = rest * rest * quotient(1.f, a * rest);
#if defined(__CUDA_ARCH__)  // ratio is not near 1 then
  sum += a < 1.f ? near : gpu::lg2(ratio) * gpu::kLn2;
#else
  sum += choose(a >= 1.f, 0.f, near);
  add_log(choose(a >= 1.f, ratio, 1.f), sum, product);
#endif
}
VAE_FAST_FN void add_log_decay_ratio(double a, double, double& sum, double&) {
  constexpr double kCoefficients[] = {
      1. / 24, -1. / 2880, 1. / 181440, -1. / 9676800, 1. / 479001600, -691. / 15692092416000., 1. / 1046139494400.};
  const double near = a * (a * polynomial(a * a, kCoefficients) - 0.5);
  sum += a < 0.5 ? near : std::log(-std::expm1(-a) / a);
}

// 1/a - 1 / (e^a - 1) for a >= 0, given e^-a: by its series where a < 1; from 1/2 at a = 0 down to 0
VAE_FAST_FN float decay_mean(float a, float exp_minus_a) {
  constexpr float kCoefficients[] = {8.333324755e-2f, -1.388197354e-3f, 3.166888848e-5f};
  const float near = 0.5f - a * polynomial(a * a, kCoefficients);
  const float rest = 1.f - exp_minus_a, both = quotient(1.f, a * rest);
  return a < 1.f ? near : rest * both - exp_minus_a * (a * both);
}
VAE_FAST_FN double decay_mean(double a, double) {
  constexpr double kCoefficients[] = {
      1. / 12, -1. / 720, 1. / 30240, -1. / 1209600, 1. / 47900160, -691. / 1307674368000., 1. / 74724249600.};
  const double near = 0.5 - a * polynomial(a * a, kCoefficients);
  return a < 0.5 ? near : 1. / a - 1. / std::expm1(a);
}

// v sign(of): 0 where `of` is 0, NaN where it is NaN
template <class T>
VAE_FAST_FN T times_sign(T v, T of) {
  return magnitude(of) > T(0) ? turned(v, of) : of;
}

}  // namespace vae_fast
