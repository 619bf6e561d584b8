// Rows of consecutive elements into planes and back, eight at once, or sixteen where vectors are so long: what lies
// channels-last, and lanes that want planes.
#pragma once

#include "matrix.h"

namespace vae_fast {

constexpr int kStrip = 8, kWideStrip = 16;  // rows at once

// Of AMD's processors those from Zen 5 on, the first with this instruction; Zen 4 takes sixteen numbers in two steps. Of
// Intel's, Tiger Lake has it, on which nothing was measured.
#if defined(VAE_FAST_TARGET)
inline const bool kHasWideShuffles = kHasAvx512 && __builtin_cpu_supports("avx512vp2intersect");
#endif

namespace detail {

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));

// An 8 x 8 square, row k at from(k), to to(k): in two rounds, of pairs and of pairs of pairs, over halves of rows that are
// loaded side by side, four rows apart
template <class From, class To>
inline __attribute__((always_inline)) void transpose_square(const From& from, const To& to) {
  for (int half = 0; half < kStrip; half += kStrip / 2) {
    Eight r[4], s[4];
    for (int k = 0; k < 4; ++k) {
      const Four low = *reinterpret_cast<const Four*>(from(k) + half),
                 high = *reinterpret_cast<const Four*>(from(k + 4) + half);
      r[k] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
    for (int k = 0; k < 4; k += 2) {
      s[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      s[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int k = 0; k < 2; ++k) {
      *reinterpret_cast<Eight*>(to(half + 2 * k)) = __builtin_shufflevector(s[k], s[k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      *reinterpret_cast<Eight*>(to(half + 2 * k + 1)) =
          __builtin_shufflevector(s[k], s[k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
}

// Four squares of 4 x 4 side by side, in two rounds, of pairs and of pairs of pairs
inline __attribute__((always_inline)) void transpose_squares(Sixteen (&r)[4]) {
  Sixteen s[4];
  for (int k = 0; k < 4; k += 2) {
    s[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    s[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  for (int k = 0; k < 2; ++k) {
    r[2 * k] = __builtin_shufflevector(s[k], s[k + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    r[2 * k + 1] = __builtin_shufflevector(s[k], s[k + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
}

}  // namespace detail

// eight rows of n elements to [n][stride], or back
inline __attribute__((always_inline)) void to_planes(const float* const (&rows)[kStrip], int64_t n, float* planes,
                                                     int64_t stride) {
  int64_t c = 0;
  for (; c + kStrip <= n; c += kStrip)
    detail::transpose_square([&](int k) { return rows[k] + c; }, [&](int k) { return planes + (c + k) * stride; });
  for (; c < n; ++c)
    for (int k = 0; k < kStrip; ++k) planes[c * stride + k] = rows[k][c];
}

inline __attribute__((always_inline)) void from_planes(const float* planes, int64_t stride, int64_t n,
                                                       float* const (&rows)[kStrip]) {
  int64_t c = 0;
  for (; c + kStrip <= n; c += kStrip)
    detail::transpose_square([&](int k) { return planes + (c + k) * stride; }, [&](int k) { return rows[k] + c; });
  for (; c < n; ++c)
    for (int k = 0; k < kStrip; ++k) rows[k][c] = planes[c * stride + k];
}

// The same of sixteen rows, four elements of each at once: for processors that shuffle sixteen numbers as fast as eight.
// Where vectors are shorter GCC would take them through memory.
inline __attribute__((always_inline)) void to_planes(const float* const (&rows)[kWideStrip], int64_t n, float* planes,
                                                     int64_t stride) {
  int64_t c = 0;
  for (; c + 4 <= n; c += 4) {
    detail::Sixteen r[4];
    for (int k = 0; k < 4; ++k) {
      detail::Four part[4];
      for (int j = 0; j < 4; ++j) part[j] = *reinterpret_cast<const detail::Four*>(rows[k + 4 * j] + c);
      const detail::Eight low = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7),
                          high = __builtin_shufflevector(part[2], part[3], 0, 1, 2, 3, 4, 5, 6, 7);
      r[k] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    detail::transpose_squares(r);
    for (int k = 0; k < 4; ++k) *reinterpret_cast<detail::Sixteen*>(planes + (c + k) * stride) = r[k];
  }
  for (; c < n; ++c)
    for (int k = 0; k < kWideStrip; ++k) planes[c * stride + k] = rows[k][c];
}

inline __attribute__((always_inline)) void from_planes(const float* planes, int64_t stride, int64_t n,
                                                       float* const (&rows)[kWideStrip]) {
  int64_t c = 0;
  for (; c + 4 <= n; c += 4) {
    detail::Sixteen r[4];
    for (int k = 0; k < 4; ++k) r[k] = *reinterpret_cast<const detail::Sixteen*>(planes + (c + k) * stride);
    detail::transpose_squares(r);
    for (int k = 0; k < 4; ++k) {
      const detail::Four parts[4] = {
          __builtin_shufflevector(r[k], r[k], 0, 1, 2, 3), __builtin_shufflevector(r[k], r[k], 4, 5, 6, 7),
          __builtin_shufflevector(r[k], r[k], 8, 9, 10, 11), __builtin_shufflevector(r[k], r[k], 12, 13, 14, 15)};
      for (int j = 0; j < 4; ++j) *reinterpret_cast<detail::Four*>(rows[k + 4 * j] + c) = parts[j];
    }
  }
  for (; c < n; ++c)
    for (int k = 0; k < kWideStrip; ++k) rows[k][c] = planes[c * stride + k];
}

template <int ROWS>
inline void to_planes(const double* const (&rows)[ROWS], int64_t n, double* planes, int64_t stride) {
  for (int64_t c = 0; c < n; ++c)
    for (int k = 0; k < ROWS; ++k) planes[c * stride + k] = rows[k][c];
}

template <int ROWS>
inline void from_planes(const double* planes, int64_t stride, int64_t n, double* const (&rows)[ROWS]) {
  for (int64_t c = 0; c < n; ++c)
    for (int k = 0; k < ROWS; ++k) rows[k][c] = planes[c * stride + k];
}

}  // namespace vae_fast
