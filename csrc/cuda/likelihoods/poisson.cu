#include "../../likelihoods/poisson.h"

#include "../elbo.cuh"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(poisson, Poisson, Poisson)

}  // namespace vae_fast
