#include "../../likelihoods/discretized_logistic_mixture.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_JOINT(discretized_logistic_mixture, LogisticMixtureOfColours, LogisticMixtureOfGreys)

}  // namespace vae_fast
