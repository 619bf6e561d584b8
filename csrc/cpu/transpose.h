// Rows of consecutive elements into planes and back, eight by eight: what lies channels-last, and lanes that want planes.
#pragma once

#include "matrix.h"

namespace vae_fast {

constexpr int kSquare = 8;

namespace detail {

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

// An 8 x 8 square, row k at from(k), to to(k): in two rounds, of pairs and of pairs of pairs, over halves of rows that are
// loaded side by side, four rows apart
template <class From, class To>
inline __attribute__((always_inline)) void transpose_square(const From& from, const To& to) {
  for (int half = 0; half < kSquare; half += kSquare / 2) {
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

}  // namespace detail

// eight rows of n elements to [n][stride], or back
inline __attribute__((always_inline)) void to_planes(const float* const (&rows)[kSquare], int64_t n, float* planes,
                                                     int64_t stride) {
  int64_t c = 0;
  for (; c + kSquare <= n; c += kSquare)
    detail::transpose_square([&](int k) { return rows[k] + c; }, [&](int k) { return planes + (c + k) * stride; });
  for (; c < n; ++c)
    for (int k = 0; k < kSquare; ++k) planes[c * stride + k] = rows[k][c];
}

inline __attribute__((always_inline)) void from_planes(const float* planes, int64_t stride, int64_t n,
                                                       float* const (&rows)[kSquare]) {
  int64_t c = 0;
  for (; c + kSquare <= n; c += kSquare)
    detail::transpose_square([&](int k) { return planes + (c + k) * stride; }, [&](int k) { return rows[k] + c; });
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
