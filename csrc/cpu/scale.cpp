// scale_rows_: the incoming gradient, applied to gradients that the forward pass has computed.
#include "lanes.h"
#include "operators.h"

namespace vae_fast {
namespace {

template <class T>
VAE_FAST_CLONES void scale_block(T* values, T factor, int64_t n) {
  if (factor == 0) std::fill(values, values + n, T(0));
  else
    for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

#if defined(VAE_FAST_TARGET)
// Of n numbers whole vectors
template <class PROCESSOR>
struct ScaleStored {
  static inline __attribute__((always_inline)) void run(Stored<PROCESSOR, BFloat16>* values, float factor, int64_t n) {
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) {
      float lanes[kLanes];
      widen_lanes(values + i, lanes);
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] *= factor;
      narrow_lanes(lanes, values + i);
    }
  }
};

// How many of n numbers from the row's first on are scaled
template <class PROCESSOR>
int64_t scale_stored(const Matrix& m, int64_t row, float factor, int64_t n) {
  if (m.type != ScalarType::BFloat16 || m.column_stride != 1 || factor == 0) return 0;
  using Number = Stored<PROCESSOR, BFloat16>;
  PROCESSOR::template run<ScaleStored<PROCESSOR>>(m.at<Number>(row, 0), factor, n);
  return n - n % kLanes;
}
#endif

template <class T>
void scale_row(const Matrix& m, int64_t row, int64_t columns, T factor) {
  T buffer[kBlock];
  int64_t column = 0;
#if defined(VAE_FAST_TARGET)
  if constexpr (std::is_same_v<T, float>)
    column =
        for_this_processor([&](auto processor) { return scale_stored<decltype(processor)>(m, row, factor, columns); });
#endif
  for (; column < columns; column += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, columns - column);
    T* values = const_cast<T*>(load(m, row, column, n, buffer));
    scale_block(values, factor, n);
    if (values == buffer) store(buffer, m, row, column, n);
  }
}

// (gradient [B, D], factor [] or [B]): gradient *= factor in place. Rows whose factor is 1 are not touched; 0 selects.
void scale_rows_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  const Tensor gradient = in.tensor(), factor = in.tensor();
  in.place();
  STD_TORCH_CHECK(gradient.dim() == 2, "gradient must have shape [B, D]");
  const int64_t rows = gradient.size(0), columns = gradient.size(1);
  const Matrix m = parameter(gradient, "gradient", rows, columns);
  const bool one = factor.dim() == 0;
  STD_TORCH_CHECK(is_floating(factor.scalar_type()) && (one || (factor.dim() == 1 && factor.size(0) == rows)),
                  "factor must be floating point of shape [] or [", rows, "]");
  const Matrix f{static_cast<char*>(factor.data_ptr()), factor.scalar_type(), one ? 0 : factor.stride(0), 1};
  const auto factor_of = [&](int64_t row) {
    double buffer;
    return *load(f, row, 0, 1, &buffer);
  };
  int64_t first = 0;
  while (first < rows && factor_of(first) == 1) first = f.row_stride == 0 ? rows : first + 1;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
  torch::stable::parallel_for(first, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double value = factor_of(row);
      if (value == 1) continue;
      if (m.type == ScalarType::Double) scale_row<double>(m, row, columns, value);
      else scale_row<float>(m, row, columns, static_cast<float>(value));
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CPU, m) { m.impl("scale_rows_", &scale_rows_); }

}  // namespace vae_fast
