#include "../../likelihoods/negative_binomial.h"

#include "../elbo.cuh"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(negative_binomial, NegativeBinomial, NegativeBinomial)

}  // namespace vae_fast
