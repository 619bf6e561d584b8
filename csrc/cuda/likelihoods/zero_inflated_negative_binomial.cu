#include "../../likelihoods/zero_inflated_negative_binomial.h"

#include "../elbo.cuh"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(zero_inflated_negative_binomial, ZeroInflatedNegativeBinomial, ZeroInflatedNegativeBinomial)

}  // namespace vae_fast
