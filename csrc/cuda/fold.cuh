// The second stage of sums that several blocks share: partial sums [count, width] are added over the first dimension, in
// fixed order.
#pragma once

#include "launch.h"
#include "memory.cuh"

namespace vae_fast {

// Threads of a block take kThreads / side partial sums of `side` neighbours at a time
static __global__ void __launch_bounds__(kThreads)
    fold(float* partial, int64_t count, int64_t width, int side, char* out, ScalarType type) {
  __shared__ float sums[kThreads];
  const int column = threadIdx.x % side, first = threadIdx.x / side, together = kThreads / side;
  for (int64_t begin = int64_t{blockIdx.x} * side; begin < width; begin += int64_t{gridDim.x} * side) {
    const int64_t place = begin + column;
    float four[4] = {};
    if (place < width)
      for (int64_t row = first; row < count; row += 4 * together)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (row + k * together < count) four[k] += __ldg(partial + (row + k * together) * width + place);
    __syncthreads();
    sums[threadIdx.x] = (four[0] + four[1]) + (four[2] + four[3]);
    for (int half = together / 2; half > 0; half /= 2) {
      __syncthreads();
      if (first < half) sums[threadIdx.x] += sums[threadIdx.x + half * side];
    }
    if (first == 0 && place < width) store<Any>(out, type, place, sums[threadIdx.x]);
  }
}

// An output, and what the blocks write of it: itself, or float partial sums
struct Folded {
  Tensor out;
  std::optional<Tensor> partial;
  int64_t count = 0, width = 0;

  // `count` partial sums of each of the output's elements; one alone is the output itself, if that is float
  Folded(const Tensor& out, int64_t count, const Place& place) : out(out), count(count), width(out.numel()) {
    if (count != 1 || out.scalar_type() != ScalarType::Float) partial = empty({count, width}, ScalarType::Float, place);
  }
  float* floats() const { return static_cast<float*>((partial ? *partial : out).data_ptr()); }

  const Tensor& finish(const Device& device) const {
    if (!partial || width == 0) return out;
    int side = 1;
    while (side < 8 && side < width)  // whole sectors
      side *= 2;
    device.launch("fold", fold, cdiv(width, side), 1, floats(), count, width, side, static_cast<char*>(out.data_ptr()),
                  out.scalar_type());
    return out;
  }
};

}  // namespace vae_fast
