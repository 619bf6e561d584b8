// Every likelihood: the operators' name, its accumulator, and the one for a last parameter that is one number a row.
#pragma once

#include "bernoulli.h"
#include "gaussian.h"

#define VAE_FAST_LIKELIHOODS(X)                      \
  X(bernoulli, Bernoulli, Bernoulli)                 \
  X(bernoulli_probs, BernoulliProbs, BernoulliProbs) \
  X(gaussian, Gaussian, GaussianShared)
