#include "../../likelihoods/categorical.h"

#include "../joint.cuh"

namespace vae_fast {

VAE_FAST_JOINT(categorical, Categorical, Categorical)

}  // namespace vae_fast
