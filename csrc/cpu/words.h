// Random words on the CPU: Philox on vectors of counters.
//
// A round multiplies 32 x 32 -> 64 bits, for which processors have an instruction in 64-bit lanes. GCC uses it in no
// loop: it multiplies 64 x 64 bits there, by which words take up to 3.5 times as long.
#pragma once

#include "../philox.h"
#include "rows.h"

namespace vae_fast {
namespace {

template <int BYTES>
struct Lanes {
  typedef uint64_t type __attribute__((vector_size(BYTES)));
};
using Lanes2 = Lanes<16>::type;
using Lanes4 = Lanes<32>::type;
using Lanes8 = Lanes<64>::type;

constexpr int kCountersAtOnce = 16;
constexpr int kNoise = kBlock + 4 * kCountersAtOnce;  // normals of a block and of the counters' others

// Memory that is asked for during words or normals
using Fetched = Ahead<3>;

// [0]: words 0 and 2 of each counter, [1]: 1 and 3
using Words = uint32_t[2][kNoise / 2];

// The product of the lanes' lower halves; by reference, as not every processor can be passed such vectors
#if defined(VAE_FAST_TARGET)
VAE_FAST_TARGET("avx512f") inline void multiply(const Lanes8& a, const Lanes8& b, Lanes8& product) {
  product =
      reinterpret_cast<Lanes8>(_mm512_maskz_mul_epu32(255, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
VAE_FAST_TARGET("avx2") inline void multiply(const Lanes4& a, const Lanes4& b, Lanes4& product) {
  product = reinterpret_cast<Lanes4>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
VAE_FAST_TARGET("default") inline void multiply(const Lanes2& a, const Lanes2& b, Lanes2& product) {
  product = reinterpret_cast<Lanes2>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#else
inline void multiply(const Lanes2& a, const Lanes2& b, Lanes2& product) {
  product = (a & 0xffffffffu) * (b & 0xffffffffu);
}
#endif

// N vectors at once, whose rounds overlap. What products leave in the upper halves does no harm.
template <int N, class V>
inline __attribute__((always_inline)) void make_some_words(const PhiloxKeys<uint64_t>& keys, V& index, int from,
                                                           Words& words) {
  constexpr int kWidth = sizeof(V) / sizeof(uint64_t);
  const V factor0 = V{} + 0xD2511F53u, factor1 = V{} + 0xCD9E8D57u;
  V c[N][4], products[2];
  for (auto& d : c) {  // the first round: words 2 and 3 are 0
    multiply(index, factor0, products[0]);
    d[0] = (index >> 32) ^ keys.low[0], d[1] = V{};
    d[2] = (products[0] >> 32) ^ keys.high[0], d[3] = products[0];
    index += kWidth;
  }
#pragma GCC unroll 9
  for (int round = 1; round < 10; ++round)
    for (auto& d : c) {
      multiply(d[0], factor0, products[0]);
      multiply(d[2], factor1, products[1]);
      d[0] = (products[1] >> 32) ^ d[1] ^ keys.low[round];
      d[2] = (products[0] >> 32) ^ d[3] ^ keys.high[round];
      d[1] = products[1], d[3] = products[0];
    }
  for (int k = 0; k < N; ++k)
    for (int word = 0; word < 2; ++word) {
      const V pairs = (c[k][word] & 0xffffffffu) | c[k][word + 2] << 32;
      memcpy(words[word] + 2 * (from + k * kWidth), &pairs, sizeof(pairs));
    }
}

// As many at once as there are registers for
template <class V>
inline __attribute__((always_inline)) void make_words(const PhiloxKeys<uint64_t>& keys, uint64_t counter, int counters,
                                                      Words& words, const Fetched& fetched) {
  constexpr int kWidth = sizeof(V) / sizeof(uint64_t), kMost = sizeof(V) == sizeof(Lanes8) ? 4 : 2;
  V index;
  for (int lane = 0; lane < kWidth; ++lane) index[lane] = counter + static_cast<uint64_t>(lane);
  int from = 0;
  for (; from + kMost * kWidth <= counters; from += kMost * kWidth) {
    if (4 * from % kPiece == 0) fetched.fetch(4 * from);
    make_some_words<kMost>(keys, index, from, words);
  }
  if (kMost > 2 && from < counters) {
    fetched.fetch(4 * from);
    make_some_words<2>(keys, index, from, words);
  }
}

// The words of `counters` counters, a multiple of kCountersAtOnce
#if defined(VAE_FAST_TARGET)
VAE_FAST_TARGET("avx512f")
void random_words(const PhiloxKeys<uint64_t>& keys, uint64_t counter, int counters, Words& words,
                  const Fetched& fetched) {
  make_words<Lanes8>(keys, counter, counters, words, fetched);
}
VAE_FAST_TARGET("avx2")
void random_words(const PhiloxKeys<uint64_t>& keys, uint64_t counter, int counters, Words& words,
                  const Fetched& fetched) {
  make_words<Lanes4>(keys, counter, counters, words, fetched);
}
VAE_FAST_TARGET("default")
#endif
void random_words(const PhiloxKeys<uint64_t>& keys, uint64_t counter, int counters, Words& words,
                  const Fetched& fetched) {
  make_words<Lanes2>(keys, counter, counters, words, fetched);
}

}  // namespace
}  // namespace vae_fast
