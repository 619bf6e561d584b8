// scale_rows_: the incoming gradient, applied to gradients that the forward pass has computed.
#include "operands.h"

namespace vae_fast {
namespace {

// gradient *= factor, in place, each element read once before it is written. Where the factor is 1 nothing moves; 0
// selects. S: the gradient's dtype; V: elements in one access, which V divides the columns for.
template <class S, int V>
__global__ void __launch_bounds__(kThreads)
    scale_rows(S* gradient, int64_t count, int64_t columns, const __grid_constant__ Matrix factors, bool one_factor) {
  float factor = one_factor ? load<Any>(factors.data, factors.type, 0, 1.f) : 0.f;
  if (one_factor && factor == 1.f) return;
  const int64_t stride = int64_t{gridDim.x} * kThreads * V;
  for (int64_t place = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V; place < count; place += stride) {
    if (!one_factor) factor = load<Any>(factors.data, factors.type, place / columns * factors.row_stride, 1.f);
    if (factor == 1.f) continue;
    float values[V];
    if constexpr (V > 1) load_vector<S, V, false>(gradient + place, 1.f, values);
    else values[0] = Dtype<S>::of(*reinterpret_cast<const typename Dtype<S>::Stored*>(gradient + place), 1.f);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) values[lane] = factor == 0.f ? 0.f : values[lane] * factor;
    if constexpr (V > 1) store_vector(gradient + place, values);
    else store<S>(reinterpret_cast<char*>(gradient), Dtype<S>::type, place, values[0]);
  }
}

template <class S>
void scale_on(const Device& device, const Tensor& gradient, const Matrix& factors, bool one_factor) {
  constexpr int V = 16 / sizeof(S);
  const int64_t count = gradient.numel(), columns = std::max<int64_t>(1, gradient.size(1));
  S* data = static_cast<S*>(gradient.data_ptr());
  const bool vectors = (one_factor ? count : columns) % V == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const auto kernel = vectors ? scale_rows<S, V> : scale_rows<S, 1>;
  device.launch("scale_rows_", kernel, cdiv(count, kThreads * (vectors ? V : 1)), 1, data, count, columns, factors,
                one_factor);
}

// (gradient [B, D], factor [] or [B])
void scale_rows_(StableIValue* stack, uint64_t, uint64_t) {
  if (left_to_reference("scale_rows_", stack, 0, 2)) return;
  Arguments in(stack);
  const Tensor gradient = in.tensor(), factor = in.tensor();
  const Device device(in.place());
  STD_TORCH_CHECK(gradient.dim() == 2 && gradient.is_contiguous(), "gradient must be contiguous of shape [B, D]");
  const int64_t rows = gradient.size(0);
  const bool scalar = factor.dim() == 0;
  STD_TORCH_CHECK(is_floating(factor.scalar_type()) && (scalar || (factor.dim() == 1 && factor.size(0) == rows)),
                  "factor must be floating point of shape [] or [", rows, "]");
  const Matrix factors{static_cast<char*>(factor.data_ptr()), factor.scalar_type(), scalar ? 0 : factor.stride(0), 0};
  const bool one_factor = factors.row_stride == 0;  // of a sum or a mean over rows, too
  switch (gradient.scalar_type()) {
    case ScalarType::Float: return scale_on<float>(device, gradient, factors, one_factor);
    case ScalarType::BFloat16: return scale_on<BFloat16>(device, gradient, factors, one_factor);
    case ScalarType::Half: return scale_on<Half>(device, gradient, factors, one_factor);
    default: STD_TORCH_CHECK(false, "gradient must be floating point");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) { m.impl("scale_rows_", &scale_rows_); }

}  // namespace vae_fast
