#include "../../likelihoods/gaussian.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(gaussian, Gaussian, GaussianShared)

}  // namespace vae_fast
