"""Every likelihood: its accumulator, and the one for a last parameter that is one number a row."""

from vae_fast.kernels.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS
from vae_fast.kernels.likelihoods.gaussian import GAUSSIAN, GAUSSIAN_SHARED
from vae_fast.kernels.likelihoods.negative_binomial import NEGATIVE_BINOMIAL
from vae_fast.kernels.likelihoods.poisson import POISSON
from vae_fast.kernels.likelihoods.zero_inflated_negative_binomial import ZERO_INFLATED_NEGATIVE_BINOMIAL

LIKELIHOODS = {
    "bernoulli": (BERNOULLI, BERNOULLI),
    "bernoulli_probs": (BERNOULLI_PROBS, BERNOULLI_PROBS),
    "gaussian": (GAUSSIAN, GAUSSIAN_SHARED),
    "poisson": (POISSON, POISSON),
    "negative_binomial": (NEGATIVE_BINOMIAL, NEGATIVE_BINOMIAL),
    "zero_inflated_negative_binomial": (ZERO_INFLATED_NEGATIVE_BINOMIAL, ZERO_INFLATED_NEGATIVE_BINOMIAL),
}
