"""Every likelihood: its accumulator, and the one for a last parameter that is one number a row; and the joint ones."""

from vae_fast.kernels.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS
from vae_fast.kernels.likelihoods.categorical import CATEGORICAL
from vae_fast.kernels.likelihoods.continuous_bernoulli import CONTINUOUS_BERNOULLI
from vae_fast.kernels.likelihoods.discretized_logistic import DISCRETIZED_LOGISTIC
from vae_fast.kernels.likelihoods.discretized_logistic_mixture import DISCRETIZED_LOGISTIC_MIXTURE
from vae_fast.kernels.likelihoods.gaussian import GAUSSIAN, GAUSSIAN_SHARED
from vae_fast.kernels.likelihoods.laplace import LAPLACE, LAPLACE_SHARED
from vae_fast.kernels.likelihoods.negative_binomial import NEGATIVE_BINOMIAL
from vae_fast.kernels.likelihoods.poisson import POISSON
from vae_fast.kernels.likelihoods.zero_inflated_negative_binomial import ZERO_INFLATED_NEGATIVE_BINOMIAL

LIKELIHOODS = {
    "bernoulli": (BERNOULLI, BERNOULLI),
    "bernoulli_probs": (BERNOULLI_PROBS, BERNOULLI_PROBS),
    "gaussian": (GAUSSIAN, GAUSSIAN_SHARED),
    "laplace": (LAPLACE, LAPLACE_SHARED),
    "continuous_bernoulli": (CONTINUOUS_BERNOULLI, CONTINUOUS_BERNOULLI),
    "discretized_logistic": (DISCRETIZED_LOGISTIC, DISCRETIZED_LOGISTIC),
    "poisson": (POISSON, POISSON),
    "negative_binomial": (NEGATIVE_BINOMIAL, NEGATIVE_BINOMIAL),
    "zero_inflated_negative_binomial": (ZERO_INFLATED_NEGATIVE_BINOMIAL, ZERO_INFLATED_NEGATIVE_BINOMIAL),
}
JOINT = {
    "categorical": CATEGORICAL,
    "discretized_logistic_mixture": DISCRETIZED_LOGISTIC_MIXTURE,
}
