#include "../../likelihoods/continuous_bernoulli.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(continuous_bernoulli, ContinuousBernoulli, ContinuousBernoulli)

}  // namespace vae_fast
