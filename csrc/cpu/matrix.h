// An operand's way to and from blocks of T in the first-level cache.
#pragma once

#include "../matrix.h"

#include <cstring>
#include <type_traits>

// Targets are features: into a function for another processor than the command line's GCC inlines no intrinsic. Before
// GCC 12 there are no clones for x86-64-v4.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#define VAE_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#define VAE_FAST_TARGET(name) __attribute__((target(name), flatten))
#else
#define VAE_FAST_CLONES __attribute__((flatten))
#endif

namespace vae_fast {

template <class T>
constexpr ScalarType scalar_type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

struct Intensity {  // of a byte
  uint8_t stored;
};
struct Truth {  // of a byte that may be another than 0 and 1
  uint8_t stored;
};

template <class T, class S>
inline __attribute__((always_inline)) T widen(S value) {
  if constexpr (std::is_same_v<S, Intensity>) return T(value.stored) * T(1. / 255.);
  else if constexpr (std::is_same_v<S, Truth>) return T(value.stored != 0);
  else return static_cast<T>(value);
}

template <class T, class S>
inline __attribute__((always_inline)) void widen_all(const S* source, int64_t stride, int64_t n, T* to) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) to[i] = widen<T>(source[i]);
  } else if (stride == 0) {
    const T value = n > 0 ? widen<T>(source[0]) : T(0);
    for (int64_t i = 0; i < n; ++i) to[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = widen<T>(source[i * stride]);
  }
}

// n elements from (row, column) on, copied to `buffer` as T
template <class T>
VAE_FAST_CLONES __attribute__((noinline)) void stage(const Matrix& m, int64_t row, int64_t column, int64_t n,
                                                     T* buffer) {
  switch (m.type) {
    case ScalarType::Float: return widen_all(m.at<float>(row, column), m.column_stride, n, buffer);
    case ScalarType::Double: return widen_all(m.at<double>(row, column), m.column_stride, n, buffer);
    case ScalarType::BFloat16: return widen_all(m.at<BFloat16>(row, column), m.column_stride, n, buffer);
    case ScalarType::Half: return widen_all(m.at<Half>(row, column), m.column_stride, n, buffer);
    case ScalarType::Byte:
      if (!m.counts) return widen_all(m.at<Intensity>(row, column), m.column_stride, n, buffer);
      return widen_all(m.at<uint8_t>(row, column), m.column_stride, n, buffer);
    case ScalarType::UInt16: return widen_all(m.at<uint16_t>(row, column), m.column_stride, n, buffer);
    case ScalarType::Int: return widen_all(m.at<int32_t>(row, column), m.column_stride, n, buffer);
    case ScalarType::Long: return widen_all(m.at<int64_t>(row, column), m.column_stride, n, buffer);
    default: return widen_all(m.at<Truth>(row, column), m.column_stride, n, buffer);
  }
}

// the same, in place where they lie so
template <class T>
inline const T* load(const Matrix& m, int64_t row, int64_t column, int64_t n, T* buffer) {
  if (m.type == scalar_type<T> && m.column_stride == 1) return m.at<T>(row, column);
  stage(m, row, column, n, buffer);
  return buffer;
}

// where n elements from (row, column) on may be written as T: in place, or `buffer`, for `store` to round
template <class T>
inline T* destination(const Matrix& m, int64_t row, int64_t column, T* buffer) {
  return m.type == scalar_type<T> && m.column_stride == 1 ? m.at<T>(row, column) : buffer;
}

template <class S, class T>
inline __attribute__((always_inline)) S round_to(T value) {
  using Via = std::conditional_t<sizeof(S) < 4, float, S>;
  return static_cast<S>(static_cast<Via>(value));
}

template <class S, class T>
inline __attribute__((always_inline)) void narrow_all(const T* from, S* to, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i * stride] = round_to<S>(from[i]);
}

// The same to bfloat16 side by side, by an instruction where there is one: a third of the time. Subnormal numbers become
// 0, and NaN keeps its sign.
#if defined(VAE_FAST_TARGET)
VAE_FAST_TARGET("avx512bf16,avx512bw,avx512vl")
inline __attribute__((noinline)) void round_all(const float* from, BFloat16* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 some = n - i < 16 ? (1u << (n - i)) - 1u : 0xffffu;
    const auto rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, from + i));
    __m256i halves;
    memcpy(&halves, &rounded, sizeof(halves));
    _mm256_mask_storeu_epi16(to + i, some, halves);
  }
}
inline const bool kHasAvx512 = __builtin_cpu_supports("x86-64-v4"), kHasAvx2 = __builtin_cpu_supports("x86-64-v3"),
                  kRoundsToBFloat16 = kHasAvx512 && __builtin_cpu_supports("avx512bf16");
#endif

// n results, rounded to the operand's dtype
template <class T>
VAE_FAST_CLONES __attribute__((noinline)) void store(const T* from, const Matrix& m, int64_t row, int64_t column,
                                                     int64_t n) {
#if defined(VAE_FAST_TARGET)
  if constexpr (std::is_same_v<T, float>)
    if (kRoundsToBFloat16 && m.type == ScalarType::BFloat16 && m.column_stride == 1)
      return round_all(from, m.at<BFloat16>(row, column), n);
#endif
  switch (m.type) {
    case ScalarType::Float: return narrow_all(from, m.at<float>(row, column), m.column_stride, n);
    case ScalarType::Double: return narrow_all(from, m.at<double>(row, column), m.column_stride, n);
    case ScalarType::BFloat16: return narrow_all(from, m.at<BFloat16>(row, column), m.column_stride, n);
    default: return narrow_all(from, m.at<Half>(row, column), m.column_stride, n);
  }
}

}  // namespace vae_fast
