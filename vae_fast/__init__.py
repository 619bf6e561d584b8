"""vae_fast: the ELBO and its gradients at the speed of memory.

log p(x) - KL(q(z|x) || p(z|x))  =  E_q[log p(x|z)] - KL(q(z|x) || p(z))
"""

import gc

_collects = gc.isenabled()
gc.disable()  # what an import makes stays: a collection now would go through all of torch's objects for nothing
try:
    from vae_fast import functional, reference
    from vae_fast.functional import (
        bernoulli_nll,
        categorical_nll,
        continuous_bernoulli_nll,
        discretized_logistic_mixture_nll,
        discretized_logistic_nll,
        gaussian_kl,
        gaussian_nll,
        laplace_nll,
        log_evidence,
        monte_carlo_kl,
        negative_binomial_nll,
        poisson_nll,
        reparameterize,
        sample_kl,
        zero_inflated_negative_binomial_nll,
    )
    from vae_fast.losses import ELBOLoss, ELBOTerms
    from vae_fast.models import VAE, VAEOutput
    from vae_fast.ops.backend import backend, report
    from vae_fast.ops.library import ReferenceWarning, empty_cache
finally:
    if _collects:
        gc.enable()

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "ELBOLoss",
    "ELBOTerms",
    "ReferenceWarning",
    "VAEOutput",
    "backend",
    "bernoulli_nll",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "empty_cache",
    "functional",
    "gaussian_kl",
    "gaussian_nll",
    "laplace_nll",
    "log_evidence",
    "monte_carlo_kl",
    "negative_binomial_nll",
    "poisson_nll",
    "reference",
    "reparameterize",
    "report",
    "sample_kl",
    "zero_inflated_negative_binomial_nll",
]
