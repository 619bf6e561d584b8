#include "../../likelihoods/bernoulli.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(bernoulli, Bernoulli, Bernoulli)
VAE_FAST_LIKELIHOOD(bernoulli_probs, BernoulliProbs, BernoulliProbs)

}  // namespace vae_fast
