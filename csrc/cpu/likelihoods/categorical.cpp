#include "../../likelihoods/categorical.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_JOINT(categorical, Categorical, Categorical)

}  // namespace vae_fast
