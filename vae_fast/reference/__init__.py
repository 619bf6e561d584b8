"""The operators' contract in plain PyTorch: any device, any dtype, float64 for tests. Nothing here imports a kernel.

Every function reads like its formula and is differentiable, twice too. Tests and benchmarks compare with it.
"""

from vae_fast.reference.bernoulli import bernoulli, bernoulli_probs
from vae_fast.reference.categorical import categorical, categorical_mean, categorical_sample
from vae_fast.reference.continuous_bernoulli import (
    continuous_bernoulli,
    continuous_bernoulli_mean,
    continuous_bernoulli_sample,
)
from vae_fast.reference.discretized_logistic import (
    COMPATIBLE,
    discretized_logistic,
    discretized_logistic_mean,
    discretized_logistic_sample,
)
from vae_fast.reference.discretized_logistic_mixture import (
    discretized_logistic_mixture,
    discretized_logistic_mixture_mean,
    discretized_logistic_mixture_sample,
)
from vae_fast.reference.gaussian import gaussian
from vae_fast.reference.laplace import laplace
from vae_fast.reference.latent import (
    Prior,
    gaussian_kl,
    log_evidence,
    monte_carlo_kl,
    reparameterize,
    sample_kl,
    sum_dtype,
)
from vae_fast.reference.negative_binomial import (
    negative_binomial,
    negative_binomial_mean,
    negative_binomial_sample,
)
from vae_fast.reference.objective import elbo, nll, select_rows, weighted
from vae_fast.reference.philox import normals, philox
from vae_fast.reference.poisson import poisson, poisson_mean, poisson_sample
from vae_fast.reference.zero_inflated_negative_binomial import (
    zero_inflated_negative_binomial,
    zero_inflated_negative_binomial_mean,
    zero_inflated_negative_binomial_sample,
)

__all__ = [
    "COMPATIBLE",
    "Prior",
    "bernoulli",
    "bernoulli_probs",
    "categorical",
    "categorical_mean",
    "categorical_sample",
    "continuous_bernoulli",
    "continuous_bernoulli_mean",
    "continuous_bernoulli_sample",
    "discretized_logistic",
    "discretized_logistic_mean",
    "discretized_logistic_mixture",
    "discretized_logistic_mixture_mean",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_sample",
    "elbo",
    "gaussian",
    "gaussian_kl",
    "laplace",
    "log_evidence",
    "monte_carlo_kl",
    "negative_binomial",
    "negative_binomial_mean",
    "negative_binomial_sample",
    "nll",
    "normals",
    "philox",
    "poisson",
    "poisson_mean",
    "poisson_sample",
    "reparameterize",
    "sample_kl",
    "select_rows",
    "sum_dtype",
    "weighted",
    "zero_inflated_negative_binomial",
    "zero_inflated_negative_binomial_mean",
    "zero_inflated_negative_binomial_sample",
]
