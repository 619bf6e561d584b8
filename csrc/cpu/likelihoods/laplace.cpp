#include "../../likelihoods/laplace.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(laplace, Laplace, LaplaceShared)

}  // namespace vae_fast
