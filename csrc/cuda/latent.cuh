// The latent variable on a GPU: z = mu + e^(logvar/2) eps with the KL in the same pass, and the backward pass, in which
// the noise is made again. Rows are cut among threads as in rows.cuh.
#pragma once

#include "../philox.h"
#include "rows.cuh"

namespace vae_fast {

template <int K>
struct Sampling {
  Matrix parameters[K];  // mu, logvar and, for K = 4, the prior's
  const int64_t* seed = nullptr;
  int64_t rows = 0;
  int columns = 0;
  bool vectors = false;  // all operands lie in aligned rows, in the kernel's dtype
  Tiling tiling;
  Matrix z;             // forward, contiguous
  float* kl = nullptr;  // [splits, rows], or absent
  Matrix dz, dkl;       // backward: incoming [rows, columns] and [rows], each may be absent
  Matrix gradients[2];  // of mu and logvar, contiguous
};

// The four normals of elements 4 counter to 4 counter + 3
__device__ __forceinline__ void normals_of_four(uint64_t counter, const PhiloxKeys<uint32_t>& keys, float* normals) {
  uint32_t words[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  philox(words, keys);
  box_muller(words[0], words[1], normals[0], normals[1]);
  box_muller(words[2], words[3], normals[2], normals[3]);
}

// What a thread does to a part of a row
template <class Kl, class P, bool BACKWARD, bool DIVERGENCE>
struct Sampler {
  static constexpr int K = Kl::kParameters, V = vector_of<P, None>;
  const Sampling<K>& s;
  int64_t row;
  float dkl;
  Kl state{};
  float total = 0;  // of the KL's terms

  __device__ __forceinline__ void sample(const float (&p)[K], float eps, float& z) {
    const float sigma = sigma_of(p[1]);
    z = sigma * eps + p[0];
    if (DIVERGENCE) state.observe(0, p, sigma * sigma);
  }
  // dmu = dz + dkl dKL/dmu, dlogvar = dz e^(logvar/2) eps / 2 + dkl dKL/dlogvar
  __device__ __forceinline__ void differentiate(const float (&p)[K], float eps, float dz, float& dmu, float& dlogvar) {
    const float half = half_sigma(p[1]);
    float dm = 0, dv = 0;
    if (DIVERGENCE) Kl::differentiate(p, half, dkl, dm, dv);
    dmu = dz + dm;
    dlogvar = dz * (half * eps) + dv;
  }
  __device__ __forceinline__ void fold() {
    if (DIVERGENCE && !BACKWARD) total += state.sum(0), state = Kl{};
  }

  __device__ __forceinline__ void vectors(const Part& part, const PhiloxKeys<uint32_t>& keys) {
    constexpr int kFirst = BACKWARD && !DIVERGENCE ? 1 : 0;  // mu isn't needed
    const P* in[K];
#pragma unroll
    for (int k = kFirst; k < K; ++k) in[k] = kept(s.parameters[k].template at<P>(row, 0));
    P* out[1 + BACKWARD];
#pragma unroll
    for (int k = 0; k < 1 + BACKWARD; ++k)
      out[k] = kept((BACKWARD ? s.gradients[k] : s.z).template at<P>(0, 0) + row * s.columns);
    const P* dz = out[0];  // of no use, but a pointer, where dz is absent
    if (BACKWARD && s.dz.data) dz = kept(s.dz.template at<P>(row, 0));
    const uint64_t counter = row * s.columns / 4;
#pragma unroll 1
    for (int column = part.first + part.place * V; column < part.last; column += part.team * V) {
      float parameters[K][V] = {}, incoming[V] = {}, eps[V] = {}, results[2][V];
#pragma unroll
      for (int k = kFirst; k < K; ++k) load_vector(in[k] + column, 1.f, parameters[k]);
      if (BACKWARD && s.dz.data) load_vector(dz + column, 1.f, incoming);
#pragma unroll
      for (int four = 0; four < V; four += 4)  // V / 4 divides the first of them
        normals_of_four((counter + static_cast<uint32_t>(column) / 4) | (four / 4), keys, eps + four);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        float p[K];
#pragma unroll
        for (int k = 0; k < K; ++k) p[k] = parameters[k][lane];
        if (BACKWARD) differentiate(p, eps[lane], incoming[lane], results[0][lane], results[1][lane]);
        else sample(p, eps[lane], results[0][lane]);
      }
      fold();
      store_vector(out[0] + column, results[0]);
      if (BACKWARD) store_vector(out[BACKWARD] + column, results[1]);
    }
  }

  // Any strides and widths, four by four as the noise is made; a row's first and last four may lie in others too
  __device__ __forceinline__ void elements(const Part& part, const PhiloxKeys<uint32_t>& keys) {
    const int64_t begin = row * s.columns + part.first, end = row * s.columns + part.last;
#pragma unroll 1
    for (int64_t counter = begin / 4 + part.place; 4 * counter < end; counter += part.team) {
      float eps[4];
      normals_of_four(counter, keys, eps);
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t place = 4 * counter + lane, column = place - row * s.columns;
        if (place < begin || place >= end) continue;
        float p[K], results[2];
#pragma unroll
        for (int k = 0; k < K; ++k)  // a prior may have a dtype of its own
          p[k] = k < 2 ? at<P>(s.parameters[k], column) : at<Any>(s.parameters[k], column);
        if (BACKWARD) {
          differentiate(p, eps[lane], s.dz.data ? at<P>(s.dz, column) : 0.f, results[0], results[1]);
          store<P>(s.gradients[0].data, s.gradients[0].type, place, results[0]);
          store<P>(s.gradients[1].data, s.gradients[1].type, place, results[1]);
        } else {
          sample(p, eps[lane], results[0]);
          store<P>(s.z.data, s.z.type, place, results[0]);
        }
      }
      fold();
    }
  }

  template <class S>
  __device__ __forceinline__ float at(const Matrix& m, int64_t column) const {
    return load<S>(m.data, m.type, row * m.row_stride + column * m.column_stride, 1.f);
  }
};

// A block takes tiles of rows; blockIdx.y is the split
template <template <class, int> class Kl, class P, bool BACKWARD, bool DIVERGENCE>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    sample(const __grid_constant__ Sampling<Kl<float, 1>::kParameters> s) {
  __shared__ float warps[kThreads / 32];
  const int split = blockIdx.y;
  const PhiloxKeys<uint32_t> keys(static_cast<uint64_t>(__ldg(s.seed)));
  for (int64_t tile = blockIdx.x; tile < s.tiling.tiles; tile += gridDim.x) {
    const Part part(s.tiling, tile, s.rows, s.columns, split);
    Sampler<Kl<float, 1>, P, BACKWARD, DIVERGENCE> sampler{s, part.row, 0.f};
    if (BACKWARD && DIVERGENCE) sampler.dkl = load<Any>(s.dkl.data, s.dkl.type, part.row * s.dkl.row_stride, 1.f);
    bool elements = true;
    if constexpr (vector_of<P, None> > 0) elements = !s.vectors;
    if (elements) sampler.elements(part, keys);
    else if constexpr (vector_of<P, None> > 0) sampler.vectors(part, keys);
    if (BACKWARD || !DIVERGENCE) continue;
    const float total = team_sum(sampler.total, part.team, warps);
    if (part.writes()) s.kl[split * s.rows + part.row] = sampler.state.finish(total, 0.f);
  }
}

}  // namespace vae_fast
