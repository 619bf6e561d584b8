// Rows of consecutive elements into planes and back, eight by eight: what lies channels-last, and lanes that want planes.
#pragma once

#include "matrix.h"

namespace vae_fast {

constexpr int kSquare = 8;

namespace detail {

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

// In three rounds: pairs, pairs of pairs, halves
inline __attribute__((always_inline)) void transpose_square(Eight (&r)[kSquare]) {
  Eight s[kSquare];
  for (int k = 0; k < kSquare; k += 2) {
    s[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    s[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int k = 0; k < kSquare; k += 4) {
    r[k] = __builtin_shufflevector(s[k], s[k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    r[k + 1] = __builtin_shufflevector(s[k], s[k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    r[k + 2] = __builtin_shufflevector(s[k + 1], s[k + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    r[k + 3] = __builtin_shufflevector(s[k + 1], s[k + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int k = 0; k < 4; ++k) {
    const Eight low = r[k], high = r[k + 4];
    s[k] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
    s[k + 4] = __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int k = 0; k < kSquare; ++k) r[k] = s[k];
}

}  // namespace detail

// eight rows of n elements to [n][stride], or back
inline __attribute__((always_inline)) void to_planes(const float* const (&rows)[kSquare], int64_t n, float* planes,
                                                     int64_t stride) {
  int64_t c = 0;
  for (; c + kSquare <= n; c += kSquare) {
    detail::Eight r[kSquare];
    for (int k = 0; k < kSquare; ++k) r[k] = *reinterpret_cast<const detail::Eight*>(rows[k] + c);
    detail::transpose_square(r);
    for (int k = 0; k < kSquare; ++k) *reinterpret_cast<detail::Eight*>(planes + (c + k) * stride) = r[k];
  }
  for (; c < n; ++c)
    for (int k = 0; k < kSquare; ++k) planes[c * stride + k] = rows[k][c];
}

inline __attribute__((always_inline)) void from_planes(const float* planes, int64_t stride, int64_t n,
                                                       float* const (&rows)[kSquare]) {
  int64_t c = 0;
  for (; c + kSquare <= n; c += kSquare) {
    detail::Eight r[kSquare];
    for (int k = 0; k < kSquare; ++k) r[k] = *reinterpret_cast<const detail::Eight*>(planes + (c + k) * stride);
    detail::transpose_square(r);
    for (int k = 0; k < kSquare; ++k) *reinterpret_cast<detail::Eight*>(rows[k] + c) = r[k];
  }
  for (; c < n; ++c)
    for (int k = 0; k < kSquare; ++k) rows[k][c] = planes[c * stride + k];
}

inline void to_planes(const double* const (&rows)[kSquare], int64_t n, double* planes, int64_t stride) {
  for (int64_t c = 0; c < n; ++c)
    for (int k = 0; k < kSquare; ++k) planes[c * stride + k] = rows[k][c];
}

inline void from_planes(const double* planes, int64_t stride, int64_t n, double* const (&rows)[kSquare]) {
  for (int64_t c = 0; c < n; ++c)
    for (int k = 0; k < kSquare; ++k) rows[k][c] = planes[c * stride + k];
}

}  // namespace vae_fast
