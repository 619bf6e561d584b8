#include "../../likelihoods/discretized_logistic.h"

#include "../elbo.h"

namespace vae_fast {

VAE_FAST_LIKELIHOOD(discretized_logistic, DiscretizedLogistic, DiscretizedLogistic)

}  // namespace vae_fast
