// Observations that count, by a mask: their numbers moved together, and back. Eight at a time, by a table of where the bits
// of a byte are.
#pragma once

#include "matrix.h"

namespace vae_fast {

constexpr int kEight = 8;

struct Bits {
  uint8_t places[256][kEight] = {};  // of a byte's bits, and behind those 0
  uint8_t ranks[256][kEight] = {};   // how many bits are below each place

  constexpr Bits() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, count = 0; bit < kEight; ++bit) {
        ranks[byte][bit] = static_cast<uint8_t>(count);
        if (byte >> bit & 1) places[byte][count++] = static_cast<uint8_t>(bit);
      }
  }
};
inline constexpr Bits kBits;

// Eight bytes, each 0 or 1, as the bits of one
inline __attribute__((always_inline)) uint8_t bits_of(const uint8_t* bytes) {
  uint64_t eight;
  memcpy(&eight, bytes, sizeof(eight));
  return static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);
}

// Which of up to N observations count, and how many
template <int N>
struct Selection {
  uint8_t bits[N / kEight];
  int count = 0;

  // By the mask and the row's weight; if none is left out the bits are not set
  Selection(const Matrix& mask, double weight, int64_t row, int64_t column, int n) {
    if (weight == 0) {
      memset(bits, 0, sizeof(bits));
    } else if (!mask.data) {
      count = n;
    } else {
      uint8_t counts[N] = {};
      widen_all(mask.at<Truth>(row, column), mask.column_stride, n, counts);
      for (int i = 0; i < n; i += kEight) {
        bits[i / kEight] = bits_of(counts + i);
        count += __builtin_popcount(bits[i / kEight]);
      }
    }
  }
};

#if defined(VAE_FAST_TARGET)
// Eight numbers in the order that a row of the table gives
VAE_FAST_TARGET("avx2,popcnt")
inline __attribute__((always_inline)) __m256 permuted(const float* numbers, const uint8_t* order) {
  const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(order)));
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(numbers), places);
}

// What counts of n numbers, a multiple of eight, side by side; how many that is
VAE_FAST_TARGET("avx2,popcnt")
inline __attribute__((noinline)) int permute_together(const uint8_t* bits, const float* from, int n, float* to) {
  int count = 0;
  for (int i = 0; i < n; i += kEight) {
    const uint8_t byte = bits[i / kEight];
    _mm256_storeu_ps(to + count, permuted(from + i, kBits.places[byte]));
    count += __builtin_popcount(byte);
  }
  return count;
}

// and back to their places, among zeros
VAE_FAST_TARGET("avx2,popcnt")
inline __attribute__((noinline)) int permute_back(const uint8_t* bits, const float* from, int n, float* to) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  int count = 0;
  for (int i = 0; i < n; i += kEight) {
    const uint8_t byte = bits[i / kEight];
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), each), each);
    _mm256_storeu_ps(to + i, _mm256_and_ps(permuted(from + count, kBits.ranks[byte]), _mm256_castsi256_ps(kept)));
    count += __builtin_popcount(byte);
  }
  return count;
}

inline const bool kPermutes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
#endif

// What counts of n numbers, side by side; up to the next multiple of eight of n anything follows
template <class T>
inline void pack(const uint8_t* bits, const T* from, int n, T* to) {
  int i = 0;
#if defined(VAE_FAST_TARGET)
  if constexpr (std::is_same_v<T, float>)
    if (kPermutes) i = n - n % kEight, to += permute_together(bits, from, i, to);
#endif
  for (; i < n; i += kEight) {
    const uint8_t byte = bits[i / kEight];
    for (int k = 0; k < kEight; ++k) to[k] = from[i + kBits.places[byte][k]];
    to += __builtin_popcount(byte);
  }
}

// and back to their places, among zeros; what follows is read as far
template <class T>
inline void unpack(const uint8_t* bits, const T* from, int n, T* to) {
  int i = 0;
#if defined(VAE_FAST_TARGET)
  if constexpr (std::is_same_v<T, float>)
    if (kPermutes) i = n - n % kEight, from += permute_back(bits, from, i, to);
#endif
  for (; i < n; ++i) to[i] = bits[i / kEight] >> i % kEight & 1 ? *from++ : T(0);
}

}  // namespace vae_fast
