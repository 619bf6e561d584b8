// Categorical: -log p(x | l) = log sum_k e^l_k - l_x, l the logits of C classes, with gradients softmax(l)_k - [k = x].
#pragma once

#include "../joint.h"

namespace vae_fast {

// -log p(x), and what the exponentials are multiplied by to be probabilities
template <class T>
struct CategoricalEnd {
  T value, inverse;
};

template <class T>
VAE_FAST_FN CategoricalEnd<T> close_categorical(T top, T picked, T others) {
  const T behind = top - picked, e = exp_nonpositive(-behind);
  const T inverse = behind == behind ? quotient(T(1), others + e) : behind;
  return {behind + log1p(others + (e - T(1))), inverse};
}

// others = sum of e^(l_k - top) over the classes but x, so that a value near 0 and the gradient of l_x don't cancel; what
// rounding took from it is in `lost` (Kahan), since there may be many. A class that isn't there gives NaN.
template <class T, int LANES>
struct Categorical {
  static constexpr int kTargets = 1, kOptions = 0, kScratch = 0;
  static constexpr int kPlanes = 1;
  static constexpr bool kSingle = true;
  int components;
  T x[LANES], picked[LANES], top[LANES], others[LANES], lost[LANES], inverse[LANES];

  static bool fits(int64_t planes) { return planes > 0 && planes <= (1 << 24); }  // classes that float32 can tell apart

  VAE_FAST_FN Categorical(const T*, int64_t planes) : components(static_cast<int>(planes)) {}
  VAE_FAST_FN void observe(int lane, const T (&observed)[1]) {
    x[lane] = observed[0] < T(components) ? observed[0] : T(-1);
    picked[lane] = std::numeric_limits<T>::quiet_NaN();
    top[lane] = -std::numeric_limits<T>::infinity(), others[lane] = lost[lane] = T(0);
  }
  template <bool GRADIENTS>
  VAE_FAST_FN void look(int lane, int k, Planes<T> p) {
    const T l = p(k);
    picked[lane] = x[lane] == T(k) ? l : picked[lane];
    top[lane] = l > top[lane] ? l : top[lane];
  }
  VAE_FAST_FN void weigh(int lane, int k, Planes<T> p) {
    const T e = exp_nonpositive(p(k) - top[lane]);
    const T more = x[lane] == T(k) ? T(0) : e, sum = others[lane] + more;
    lost[lane] += (sum - others[lane]) - more;
    others[lane] = sum;
    p(k) = e;
  }
  template <class Exchange>
  VAE_FAST_FN void join_looks(const Exchange& exchange) {
    for (int distance = 16; distance > 0; distance /= 2) {
      const T other = exchange(picked[0], distance);
      picked[0] = other == other ? other : picked[0];
      top[0] = larger(top[0], exchange(top[0], distance));
    }
  }
  template <class Exchange>
  VAE_FAST_FN void join_weights(const Exchange& exchange) {
    others[0] -= lost[0], lost[0] = T(0);
    for (int distance = 16; distance > 0; distance /= 2) others[0] += exchange(others[0], distance);
  }
  VAE_FAST_FN T close(int lane) {
    others[lane] -= lost[lane];
    const CategoricalEnd<T> end = close_categorical(top[lane], picked[lane], others[lane]);
    inverse[lane] = end.inverse;
    return end.value;
  }
  VAE_FAST_FN void share(int lane, int k, Planes<T> p, T scale) {
    const T weight = x[lane] == T(k) ? -others[lane] : p(k);
    p(k) = scale == T(0) ? T(0) : weight * (inverse[lane] * scale);
  }
};

}  // namespace vae_fast
