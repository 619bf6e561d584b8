// What the loops over planes need of a likelihood in which many parameters belong to one observation: the planes of
// [C, N], C known at run time. An accumulator over the components of one observation (its classes, or its mixture's),
// with a state of its own for each of LANES vector lanes, each of which takes an observation.
//
//   kTargets                      how many numbers of x belong to one observation
//   kOptions                      as in accumulator.h
//   kPlanes                       planes of a component
//   kScratch                      planes of its own that a component needs, behind those of the parameters
//   fits(planes)                  whether C may be that
//   A(options, planes)            for C planes
//   components                    how many components those are
//   observe(lane, x)              the observation
//   look<GRADIENTS>(lane, k, p)   component k: its term, and, in place of its parameters, its own gradients
//   not kSingle: prepare(lane, k, p), prepare_bins(lane, k, p), complete<GRADIENTS>(lane, k, p): the same as three loops,
//                                 whose chains of operations are shorter
//   weigh(lane, k, p)             its share, in proportion, once all were looked at
//   close(lane)                   -log p(x), in nats, once all were weighed
//   share(lane, k, p, scale)      its gradients, times its share and scale, once closed
//   kSingle                       each component is one plane; then lanes, of which each sees some, may share one:
//   join_looks(exchange), join_weights(exchange)    every lane's state becomes that of all 32; exchange(value, distance)
//                                 is that of the lane whose number differs in that bit
#pragma once

#include "math.h"

namespace vae_fast {

// A lane's planes
template <class T>
struct Planes {
  T* first;
  int stride;

  VAE_FAST_FN T& operator()(int plane) const { return first[plane * stride]; }
};

// How many planes are staged where a likelihood has so many
template <class A>
constexpr int64_t planes_staged(int64_t planes) {
  return planes + (A::kScratch > 0 ? A::kScratch * (planes / A::kPlanes) : 0);
}

// A gradient times what it is scaled by, which selects where it is 0
template <class T>
VAE_FAST_FN T scaled(T gradient, T scale) {
  return scale == T(0) ? T(0) : gradient * scale;
}

}  // namespace vae_fast
