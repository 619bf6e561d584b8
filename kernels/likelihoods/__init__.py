"""Every likelihood: its accumulator, and the one for a last parameter that is one number a row."""

from vae_fast.kernels.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS
from vae_fast.kernels.likelihoods.gaussian import GAUSSIAN, GAUSSIAN_SHARED

LIKELIHOODS = {
    "bernoulli": (BERNOULLI, BERNOULLI),
    "bernoulli_probs": (BERNOULLI_PROBS, BERNOULLI_PROBS),
    "gaussian": (GAUSSIAN, GAUSSIAN_SHARED),
}
