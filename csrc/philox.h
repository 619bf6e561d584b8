// The counter-based normal generator: Philox4x32-10 and Box-Muller, the noise of element i from (seed, i) alone.
//
// Key = the 64-bit seed; counter = (i / 4 as 64 bits, stream as 64 bits); word = i % 4.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "math.h"

namespace vae_fast {

// W holds a 32-bit word: uint32_t, or uint64_t where that lets a compiler vectorise the 32 x 32 -> 64 bit products.
template <class W>
VAE_FAST_FN void philox_round(W (&c)[4], W key0, W key1) {
  const uint64_t product0 = uint64_t{0xD2511F53u} * c[0], product1 = uint64_t{0xCD9E8D57u} * c[2];
  c[0] = static_cast<W>(product1 >> 32) ^ c[1] ^ key0;
  c[1] = static_cast<uint32_t>(product1);
  c[2] = static_cast<W>(product0 >> 32) ^ c[3] ^ key1;
  c[3] = static_cast<uint32_t>(product0);
}

// The rounds' keys, which depend on the seed alone
template <class W>
struct PhiloxKeys {
  W low[10], high[10];

  VAE_FAST_FN explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      low[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
      high[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
#if defined(__CUDA_ARCH__)  // in registers: ptxas would rather add again for each counter
      if constexpr (sizeof(W) == 4) asm("" : "+r"(low[round]), "+r"(high[round]));
#endif
    }
  }
};

// c: the counter on entry, four random words on return
template <class W>
VAE_FAST_FN void philox(W (&c)[4], const PhiloxKeys<W>& keys) {
  for (int round = 0; round < 10; ++round) philox_round(c, keys.low[round], keys.high[round]);
}

// sin and cos of pi v / 2 for |v| <= 1/2
VAE_FAST_FN void sine_and_cosine(float v, float& sine, float& cosine) {
  constexpr float kSine[] = {1.5707963217f, -0.64596346023f, 0.079680032770f, -0.0046016578912f};
  constexpr float kCosine[] = {1.f, -1.2336977064f, 0.25360321112f, -0.020417283008f};
  sine = polynomial(v * v, kSine) * v;
  cosine = polynomial(v * v, kCosine);
}

VAE_FAST_FN double sin_pi(double v) { return std::sin(3.14159265358979323846 * v); }

// sqrt(-2 ln u), u = (word | 1) / 2^32 rounded to float: 32 bits reach 6.66
template <class T>
VAE_FAST_FN T radius_of(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return gpu::sqrt(magnitude(gpu::lg2(static_cast<float>(word | 1u) * 0x1p-32f) * (-2.f * gpu::kLn2)));
#else
  if constexpr (sizeof(T) == sizeof(double)) {
    const T u = static_cast<float>(word | 1u) * 0x1p-32f;
    return square_root(T(-2) * log(u));
  } else {
    constexpr float kCoefficients[] = {-1.9999999484f,  0.99999975929f,  -0.66668371249f,
                                       0.50004148123f,  -0.39913667159f, 0.33124786349f,
                                       -0.29904533060f, 0.28733685435f,  -0.17444711465f};
    constexpr uint32_t kSqrtHalf = 0x4f3504f3u;  // times 2^32
    const uint32_t v = bits<uint32_t>(static_cast<float>(word | 1u)), power = (v - kSqrtHalf) & 0xff800000u;
    const float f = bits<float>(v - power) * 0x1p-32f - 1.f;  // u = 2^n (1 + f), power = 2^23 n
    const float n = static_cast<float>(static_cast<int32_t>(power));
    return square_root(polynomial(f, kCoefficients) * f + n * (-1.38629436f * 0x1p-23f));
  }
#endif
}

// radius times the cosine and sine of pi s, s in [-1, 1) from the upper 23 bits of the word, exact in float
template <class T>
VAE_FAST_FN void normals_at(T radius, uint32_t word, T& normal0, T& normal1) {
#if defined(__CUDA_ARCH__)
  const float angle = (bits<float>(__funnelshift_r(word, 0x7fu, 9)) - 1.5f) * (2.f * gpu::kPi);
  normal0 = radius * gpu::cos(angle);
  normal1 = radius * gpu::sin(angle);
#else
  if constexpr (sizeof(T) == sizeof(double)) {
    const T s = 2.f * bits<float>((word >> 9) | 0x3f800000u) - 3.f;
    const T a = magnitude(s), sine = sin_pi(a > T(0.5) ? T(1) - a : a);
    normal0 = radius * sin_pi(T(0.5) - a);
    normal1 = radius * (s < T(0) ? -sine : sine);
  } else {
    const uint32_t turned = word + 0x20000000u;  // by half a quarter: 2 bits for the quarter, 21 for v in it
    const float v = bits<float>(((turned >> 7) & 0x007ffffcu) | 0x3f800000u) - 1.5f;
    float sine, cosine;
    sine_and_cosine(v, sine, cosine);
    const uint32_t odd = turned << 1, sign = 0x80000000u;
    const bool swapped = odd >= sign;
    const uint32_t signed_radius = bits<uint32_t>(radius) ^ (~turned & sign);
    normal0 = bits<float>(signed_radius ^ (odd & sign)) * choose(swapped, sine, cosine);
    normal1 = bits<float>(signed_radius) * choose(swapped, cosine, sine);
  }
#endif
}

// Two independent N(0, 1) from two words
template <class T>
VAE_FAST_FN void box_muller(uint32_t word0, uint32_t word1, T& normal0, T& normal1) {
  normals_at(radius_of<T>(word0), word1, normal0, normal1);
}

}  // namespace vae_fast
