"""Bad input: each error names the function, the argument, what came and what was expected."""

import functools
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

import vae_fast
from vae_fast import VAE, ELBOLoss, checks
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.operands import _plain, check_posterior, observations

B, D, Z = 4, 6, 2
L, X, M = torch.zeros(B, D), torch.full((B, D), 0.5), torch.zeros(B, Z)


def elbo(recon=L, x=X, mu=M, logvar=M, likelihood="bernoulli", **options):
    keywords = {k: options.pop(k) for k in ("weight", "mask", "z") if k in options}
    return ELBOLoss(likelihood, **options)(recon, x, mu, logvar, **keywords)


MIXTURE = "discretized_logistic_mixture"
PUBLIC = ", ".join(entry.name for entry in LIKELIHOODS.values() if entry.public)
CASES = {
    "shapes of mu and logvar": (
        lambda: elbo(mu=torch.zeros(64, 32), logvar=torch.zeros(64, 16)),
        ValueError,
        "ELBOLoss: mu and logvar differ in shape: [64, 32] and [64, 16]",
    ),
    "shape of x": (
        lambda: elbo(x=torch.zeros(B, 3, 3)),
        ValueError,
        "ELBOLoss: recon and x differ in shape: [4, 6] and [4, 3, 3]",
    ),
    "axes of x in another order": (
        lambda: elbo(recon=torch.zeros(B, 2, 3), x=torch.zeros(B, 3, 2)),
        ValueError,
        "ELBOLoss: recon and x differ in shape: [4, 2, 3] and [4, 3, 2]",
    ),
    "sparse library": (
        lambda: vae_fast.negative_binomial_nll(X, 2.0, L, library=torch.ones(B).to_sparse()),
        TypeError,
        "negative_binomial_nll: library must be a dense tensor, got torch.sparse_coo; pass library.to_dense()",
    ),
    "complex library": (
        lambda: vae_fast.negative_binomial_nll(X, 2.0, L, library=torch.ones(B) + 1j),
        TypeError,
        "negative_binomial_nll: library must be float32, bfloat16, float16 or float64, got complex64",
    ),
    "batch of mu": (
        lambda: elbo(mu=torch.zeros(3, Z), logvar=torch.zeros(3, Z)),
        ValueError,
        "ELBOLoss: recon and mu differ in batch size: 4 and 3",
    ),
    "shape in a function": (
        lambda: vae_fast.bernoulli_nll(L, X[:2]),
        ValueError,
        "bernoulli_nll: logits and x differ in shape: [4, 6] and [2, 6]",
    ),
    "no batch": (
        lambda: vae_fast.bernoulli_nll(torch.zeros(()), torch.zeros(())),
        ValueError,
        "bernoulli_nll: logits must have a batch dimension, [B, ...], got a 0-dim tensor",
    ),
    "dtype of logits": (
        lambda: vae_fast.bernoulli_nll(L.long(), X),
        TypeError,
        "bernoulli_nll: logits must be float32, bfloat16, float16 or float64, got int64",
    ),
    "dtype of x": (
        lambda: elbo(x=torch.ones(B, D, dtype=torch.int64)),
        TypeError,
        "ELBOLoss: x must be floating point, bool or uint8 (an intensity, x/255), got int64",
    ),
    "x no tensor": (lambda: elbo(x=[1.0]), TypeError, "ELBOLoss: x must be a tensor, got list"),
    "logits no tensor": (
        lambda: vae_fast.gaussian_nll(1.0, X),
        TypeError,
        "gaussian_nll: mean must be a tensor, got float",
    ),
    "device": (
        lambda: elbo(x=X.to("meta")),
        ValueError,
        f"ELBOLoss: recon and x are on different devices: {L.device} and meta",
    ),
    "device of mu": (
        lambda: elbo(mu=M.to("meta"), logvar=M.to("meta")),
        ValueError,
        f"ELBOLoss: recon and mu are on different devices: {L.device} and meta",
    ),
    "target with grad": (
        lambda: elbo(x=X.clone().requires_grad_()),
        ValueError,
        "ELBOLoss: x requires grad, but no gradient is defined for it; pass x.detach()",
    ),
    "weight with grad": (
        lambda: elbo(weight=torch.ones(B, requires_grad=True)),
        ValueError,
        "ELBOLoss: weight requires grad, but no gradient is defined for it; pass weight.detach()",
    ),
    "shape of weight": (
        lambda: elbo(weight=torch.ones(B, 1)),
        ValueError,
        "ELBOLoss: weight must be a tensor of shape [4], one number a row, got [4, 1]",
    ),
    "negative weight": (
        lambda: elbo(weight=torch.tensor([1.0, -0.5, 1, 1]), validate_args=not L.is_cpu),
        ValueError,
        "ELBOLoss: weight must not be negative, got -0.5",
    ),
    "weight and monte carlo": (
        lambda: elbo(kl="monte_carlo", weight=torch.ones(3)),
        ValueError,
        "ELBOLoss: weight must be a tensor of shape [4], one number a row, got [3]",
    ),
    "dtype of mask": (
        lambda: elbo(mask=torch.ones(B, D)),
        TypeError,
        "ELBOLoss: mask must be a bool tensor, True where x counts, got float32",
    ),
    "shape of mask": (
        lambda: elbo(mask=torch.ones(B, 5, dtype=torch.bool)),
        ValueError,
        "ELBOLoss: mask must broadcast to the shape of x, [4, 6], got [4, 5]",
    ),
    "reduction": (
        lambda: ELBOLoss(reduction="avg"),
        ValueError,
        "ELBOLoss: reduction must be one of mean, sum, none, mean_all, got 'avg'",
    ),
    "likelihood": (
        lambda: ELBOLoss("normal"),
        ValueError,
        f"ELBOLoss: likelihood must be one of {PUBLIC}, got 'normal'",
    ),
    "kl": (lambda: ELBOLoss(kl="mc"), ValueError, "ELBOLoss: kl must be one of analytic, monte_carlo, got 'mc'"),
    "kl, assigned": (
        lambda: setattr(ELBOLoss(), "kl", "mc"),
        ValueError,
        "ELBOLoss: kl must be one of analytic, monte_carlo, got 'mc'",
    ),
    "reduction, assigned": (
        lambda: setattr(ELBOLoss(), "reduction", "batchmean"),
        ValueError,
        "ELBOLoss: reduction must be one of mean, sum, none, mean_all, got 'batchmean'",
    ),
    "from_logits, assigned": (
        lambda: setattr(ELBOLoss(), "from_logits", False),
        AttributeError,
        "ELBOLoss: from_logits is fixed when the loss is made; make another ELBOLoss",
    ),
    "likelihood, assigned": (
        lambda: setattr(ELBOLoss(), "likelihood", "gaussian"),
        AttributeError,
        "ELBOLoss: likelihood is fixed when the loss is made; make another ELBOLoss",
    ),
    "beta": (
        lambda: ELBOLoss(beta=torch.ones(3)),
        ValueError,
        "ELBOLoss: beta must be a number or a 0-dim floating point tensor without grad, got float32 [3]",
    ),
    "assigned beta": (
        lambda: setattr(ELBOLoss(), "beta", torch.ones((), requires_grad=True)),
        ValueError,
        "ELBOLoss: beta must be a number or a 0-dim floating point tensor without grad, "
        "got float32 [] that requires grad",
    ),
    "beta as a parameter": (
        lambda: setattr(ELBOLoss(), "beta", torch.nn.Parameter(torch.ones(()), requires_grad=False)),
        TypeError,
        "ELBOLoss: beta must be a number or a plain tensor, got a Parameter; pass beta.detach()",
    ),
    "integer beta": (
        lambda: setattr(ELBOLoss(), "beta", torch.tensor(1)),
        ValueError,
        "ELBOLoss: beta must be a number or a 0-dim floating point tensor without grad, got int64 []",
    ),
    "batch in monte carlo": (
        lambda: elbo(kl="monte_carlo", mu=torch.zeros(1, Z), logvar=torch.zeros(1, Z)),
        ValueError,
        "ELBOLoss: recon and mu differ in batch size: 4 and 1",
    ),
    "z of the loss": (
        lambda: elbo(kl="monte_carlo", z=torch.zeros(B, 5)),
        ValueError,
        "ELBOLoss: z and mu differ in shape: [4, 5] and [4, 2]",
    ),
    "negative beta": (lambda: ELBOLoss(beta=-1.0), ValueError, "ELBOLoss: beta must not be negative, got -1"),
    "from_logits of a gaussian": (
        lambda: ELBOLoss("gaussian", from_logits=False),
        ValueError,
        "ELBOLoss: from_logits=False is for likelihood 'bernoulli', got 'gaussian'",
    ),
    "recon of bernoulli": (
        lambda: elbo(recon=(L, L)),
        TypeError,
        "ELBOLoss: recon must be a tensor for likelihood 'bernoulli', got 2 values",
    ),
    "recon of gaussian": (
        lambda: elbo(recon=(L, L, L), likelihood="gaussian"),
        TypeError,
        "ELBOLoss: recon must be a tensor or a tuple (mean, logvar=0) for likelihood 'gaussian', got 3 values",
    ),
    "shape of logvar": (
        lambda: vae_fast.gaussian_nll(L, X, logvar=torch.zeros(5)),
        ValueError,
        "gaussian_nll: logvar must broadcast to the shape of x, [4, 6], got [5]",
    ),
    "prior": (
        lambda: vae_fast.gaussian_kl(M, M, prior=torch.zeros(2)),
        TypeError,
        "gaussian_kl: prior must be None or a pair of tensors (mu, logvar), got Tensor",
    ),
    "prior of numbers": (
        lambda: ELBOLoss(prior=(0.0, 1.0)),
        TypeError,
        "ELBOLoss: prior must be None or a pair of tensors (mu, logvar), got (float, float)",
    ),
    "shape of the prior": (
        lambda: vae_fast.sample_kl(M, M, prior=(torch.zeros(3), torch.zeros(2))),
        ValueError,
        "sample_kl: prior mu must broadcast to the shape of mu, [4, 2], got [3]",
    ),
    "seed": (
        lambda: vae_fast.reparameterize(M, M, seed=0.5),
        TypeError,
        f"reparameterize: seed must be an int or a 0-dim int64 tensor on {L.device}, got float",
    ),
    "seed tensor": (
        lambda: vae_fast.reparameterize(M, M, seed=torch.zeros(2)),
        TypeError,
        f"reparameterize: seed must be an int or a 0-dim int64 tensor on {L.device}, "
        f"got torch.float32 [2] on {L.device}",
    ),
    "seed and generator": (
        lambda: vae_fast.sample_kl(M, M, seed=1, generator=torch.Generator()),
        ValueError,
        "sample_kl: pass seed or generator, not both",
    ),
    "z": (
        lambda: vae_fast.monte_carlo_kl(torch.zeros(B, 3), M, M),
        ValueError,
        "monte_carlo_kl: z and mu differ in shape: [4, 3] and [4, 2]",
    ),
    "log_evidence": (
        lambda: vae_fast.log_evidence(torch.zeros(B), torch.zeros(B), torch.zeros(B)),
        ValueError,
        "log_evidence: the log-densities must have shape [K, B] with K > 0, got [4]",
    ),
    "support": (
        lambda: elbo(x=X * 3, validate_args=True),
        ValueError,
        "ELBOLoss: x must lie in [0, 1], got values from 1.5 to 1.5",
    ),
    "nan in the support": (
        lambda: elbo(x=X * torch.nan, validate_args=True),
        ValueError,
        "ELBOLoss: x must lie in [0, 1], got values from nan to nan",
    ),
    "infinite counts": (
        lambda: elbo(x=X * torch.inf, likelihood="poisson", validate_args=True),
        ValueError,
        "ELBOLoss: x must be finite whole numbers, got inf among them",
    ),
    "fractions of counts": (
        lambda: elbo(x=X, recon=(L, L), likelihood="negative_binomial", validate_args=True),
        ValueError,
        "ELBOLoss: x must be finite whole numbers, got 0.5 among them",
    ),
    "fractions of classes": (
        lambda: elbo(x=X[:, :2], recon=L.reshape(B, 3, 2), likelihood="categorical", validate_args=True),
        ValueError,
        "ELBOLoss: x must be finite whole numbers, got 0.5 among them",
    ),
    "a class too high": (
        lambda: elbo(
            x=torch.full((B, 2), 3).to(torch.uint16),
            recon=L.reshape(B, 3, 2),
            likelihood="categorical",
            validate_args=True,
        ),
        ValueError,
        "ELBOLoss: x must lie in [0, 2], got values from 3 to 3",
    ),
    "levels of integers": (
        lambda: elbo(
            x=torch.full((B, D), 300).to(torch.uint16),
            recon=(L, L),
            likelihood="discretized_logistic",
            validate_args=True,
        ),
        ValueError,
        "ELBOLoss: x must lie in [0, 255], got values from 300 to 300",
    ),
    "dtype of levels": (
        lambda: vae_fast.discretized_logistic_nll(L, 0.0, X.to(torch.int16)),
        TypeError,
        "discretized_logistic_nll: x must be a level: floating point, int32, int64, uint16, uint8 or bool, got int16",
    ),
    "dtype of classes": (
        lambda: vae_fast.categorical_nll(L, X[:, 0].to(torch.uint32)),
        TypeError,
        "categorical_nll: x must be a class: floating point, int8, int16, int32, int64, uint16, uint8 or bool, "
        "got uint32",
    ),
    "a list of thetas": (
        lambda: vae_fast.negative_binomial_nll(L, [1.0, 2.0, 3.0], X),
        TypeError,
        "negative_binomial_nll: theta must be a number or a tensor, got list",
    ),
    "no theta": (
        lambda: vae_fast.negative_binomial_nll(L, None, X),
        TypeError,
        "negative_binomial_nll: theta must be a number or a tensor, got NoneType",
    ),
    "no scale": (
        lambda: vae_fast.laplace_nll(L, X, log_scale=None),
        TypeError,
        "laplace_nll: log_scale must be a number or a tensor, got NoneType",
    ),
    "a word for a scale": (
        lambda: vae_fast.discretized_logistic_nll(L, "a", X),
        TypeError,
        "discretized_logistic_nll: log_scale must be a number or a tensor, got str",
    ),
    "a list of totals": (
        lambda: vae_fast.negative_binomial_nll(L, 1.0, X, library=[5, 3]),
        TypeError,
        "negative_binomial_nll: library must be a number or a tensor, got list",
    ),
    "a word for a total": (
        lambda: vae_fast.zero_inflated_negative_binomial_nll(L, 1.0, L, X, library="5"),
        TypeError,
        "zero_inflated_negative_binomial_nll: library must be a number or a tensor, got str",
    ),
    "recon with nothing": (
        lambda: elbo(recon=(L, None), likelihood="gaussian"),
        TypeError,
        "ELBOLoss: logvar must be a number or a tensor, got NoneType",
    ),
    "x_range": (
        lambda: vae_fast.discretized_logistic_nll(L, 0.0, X, x_range=255),
        ValueError,
        "discretized_logistic_nll: x_range must be (low, high), finite numbers, low below high, got 255",
    ),
    "x_range of three": (
        lambda: vae_fast.discretized_logistic_nll(L, 0.0, X, x_range=(0, 1, 3)),
        ValueError,
        "discretized_logistic_nll: x_range must be (low, high), finite numbers, low below high, got (0, 1, 3)",
    ),
    "infinite x_range": (
        lambda: ELBOLoss("discretized_logistic", x_range=(-torch.inf, torch.inf)),
        ValueError,
        "ELBOLoss: x_range must be (low, high), finite numbers, low below high, got (-inf, inf)",
    ),
    "levels as a word": (
        lambda: vae_fast.discretized_logistic_nll(L, 0.0, X, levels="256"),
        ValueError,
        "discretized_logistic_nll: levels must be an integer, at least 2, got '256'",
    ),
    "infinite levels": (
        lambda: vae_fast.discretized_logistic_mixture_nll(L[..., None], X, levels=torch.inf),
        ValueError,
        "discretized_logistic_mixture_nll: levels must be an integer, at least 2, got inf",
    ),
    "no levels": (
        lambda: ELBOLoss("discretized_logistic", levels=None),
        ValueError,
        "ELBOLoss: levels must be an integer, at least 2, got None",
    ),
    "one level": (
        lambda: ELBOLoss("discretized_logistic_mixture", levels=1),
        ValueError,
        "ELBOLoss: levels must be an integer, at least 2, got 1",
    ),
    "fractions of levels": (
        lambda: ELBOLoss("discretized_logistic_mixture", levels=2.5),
        ValueError,
        "ELBOLoss: levels must be an integer, at least 2, got 2.5",
    ),
    "two channels": (
        lambda: ELBOLoss("discretized_logistic_mixture", channels=2),
        ValueError,
        "ELBOLoss: channels must be one of 1, 3, got 2",
    ),
    "compat": (
        lambda: ELBOLoss("discretized_logistic_mixture", compat="foo"),
        ValueError,
        "ELBOLoss: compat must be one of pixelcnn++, nvae, got 'foo'",
    ),
    "a word for a flag": (
        lambda: ELBOLoss("negative_binomial", log_mu="yes"),
        TypeError,
        "ELBOLoss: log_mu must be True or False, got 'yes'",
    ),
    "a flag of a function": (
        lambda: vae_fast.poisson_nll(L, X, log_rate=None),
        TypeError,
        "poisson_nll: log_rate must be True or False, got None",
    ),
    "option of another": (
        lambda: ELBOLoss("discretized_logistic", x_low=0.0),
        TypeError,
        "ELBOLoss: likelihood 'discretized_logistic' has the options levels, x_range, compat, got 'x_low'",
    ),
    "option of none": (
        lambda: ELBOLoss("bernoulli", levels=2),
        TypeError,
        "ELBOLoss: likelihood 'bernoulli' has no options, got 'levels'",
    ),
    "a word for beta": (
        lambda: ELBOLoss("poisson", beta="a"),
        TypeError,
        "ELBOLoss: beta must be a number or a 0-dim floating point tensor without grad, got str",
    ),
    "no classes": (
        lambda: vae_fast.categorical_nll(torch.zeros(2, 0, 3), torch.zeros(2, 3)),
        ValueError,
        "categorical_nll: logits must have a class at least, got shape [2, 0, 3], [B, C, ...]",
    ),
    "x without channels": (
        lambda: vae_fast.discretized_logistic_mixture_nll(torch.zeros(2, 30), torch.zeros(2), channels_last=True),
        ValueError,
        "discretized_logistic_mixture_nll: x must have shape [B, ..., channels], got [2]",
    ),
    "grey images of a mixture": (
        lambda: elbo(x=torch.zeros(B, 1, 4, 4), recon=torch.zeros(B, 30, 4, 4), likelihood=MIXTURE),
        ValueError,
        "ELBOLoss: x must have shape [4, 3, 4, 4] beside recon of shape [4, 30, 4, 4], got [4, 1, 4, 4]; "
        "for images of 1 channel pass channels=1",
    ),
    "backend": (
        lambda: vae_fast.backend("gpu").__enter__(),
        ValueError,
        "backend: unknown backend 'gpu', expected one of reference, cpp, triton, cuda",
    ),
    "latent dimension": (
        lambda: VAE(torch.nn.Linear(D, 4), torch.nn.Linear(2, D)).sample(3),
        ValueError,
        "VAE.sample: the latent dimension is unknown; pass VAE(..., latent_dim=) or encode a batch first",
    ),
    "number of samples": (
        lambda: VAE(torch.nn.Linear(D, 4), torch.nn.Linear(2, D)).log_evidence(X, 0),
        ValueError,
        "VAE.log_evidence: num_samples must be positive, got 0",
    ),
    "chunk": (
        lambda: VAE(torch.nn.Linear(D, 4), torch.nn.Linear(2, D)).log_evidence(X, 5, chunk=0),
        ValueError,
        "VAE.log_evidence: chunk must be positive, got 0",
    ),
    "shape of the latent": (
        lambda: VAE(torch.nn.Conv2d(1, 4, 1), torch.nn.Linear(2, D)).loss(torch.zeros(B, 1, 2, 3)),
        ValueError,
        "VAE: mu must have shape [B, Z], got [4, 2, 2, 3]",
    ),
    "encoder": (
        lambda: VAE(torch.nn.Linear(D, 5), torch.nn.Linear(2, D)).loss(X),
        ValueError,
        "VAE: the encoder must return (mu, logvar) or one tensor [B, 2 Z], got shape [4, 5]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


SPARSE = {  # the argument that is named, and the call
    "x": lambda: elbo(x=torch.zeros(B, D).to_sparse()),
    "x, images": lambda: elbo(x=torch.zeros(B, 2, 3).to_sparse()),
    "recon": lambda: elbo(recon=L.to_sparse()),
    "mu": lambda: elbo(mu=M.to_sparse()),
    "logvar, of the likelihood": lambda: elbo(recon=(L, L.to_sparse()), likelihood="gaussian"),
    "weight": lambda: elbo(weight=torch.ones(B).to_sparse()),
    "mask": lambda: elbo(mask=torch.ones(B, D, dtype=torch.bool).to_sparse()),
}


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_operands_are_refused_by_name(case):
    name = case.partition(",")[0]
    with pytest.raises(TypeError) as caught:
        SPARSE[case]()
    expected = f"ELBOLoss: {name} must be a dense tensor, got torch.sparse_coo; pass {name}.to_dense()"
    assert str(caught.value) == expected


def test_numbers_may_be_numpys():
    for log_rate in (np.True_, np.int64(1), np.float32(1)):
        assert torch.equal(vae_fast.poisson_nll(L, X, log_rate=log_rate), vae_fast.poisson_nll(L, X))
    assert torch.equal(vae_fast.gaussian_nll(L, X, logvar=Fraction(1, 2)), vae_fast.gaussian_nll(L, X, logvar=0.5))
    ELBOLoss("discretized_logistic_mixture", channels=np.int64(3), levels=np.int64(16))


def test_validation_is_off_by_default_and_accepts_the_support():
    elbo(x=X * 3)
    for x in (X, (X * 255).to(torch.uint8), X > 0, torch.zeros(B, D), torch.ones(B, D)):
        elbo(x=x, validate_args=True)
    elbo(x=X * 1e6, likelihood="gaussian", validate_args=True)
    for dtype in (torch.uint16, torch.int32, torch.uint8, torch.float32, torch.bfloat16):
        elbo(x=(X * 6).to(dtype), likelihood="poisson", validate_args=True)
        elbo(x=(X * 6).to(dtype), recon=(L, L), likelihood="discretized_logistic", x_range=(0, 3), validate_args=True)
    fractions = torch.linspace(-1, 1, D).expand(B, D)
    elbo(x=fractions, recon=(L, L), likelihood="discretized_logistic", validate_args=True)


def test_validation_looks_only_at_what_counts():
    x, mask, weight = X.clone(), torch.ones(B, D, dtype=torch.bool), torch.ones(B)
    x[0, 1], mask[0, 1] = torch.nan, False
    x[2], weight[2] = 7.0, 0.0
    elbo(x=x, mask=mask, weight=weight, validate_args=True)
    with pytest.raises(ValueError, match="got values from"):
        elbo(x=x, mask=mask, validate_args=True)


def test_errors_in_kernels_release_what_they_were_given():
    x, mask = torch.zeros(B, D), torch.ones(64, dtype=torch.bool)
    for argument in (x, mask):
        before = argument._use_count()
        with pytest.raises(RuntimeError, match="mask"):
            torch.ops.vae_fast.bernoulli_nll(L, x, None, mask, 0)
        assert argument._use_count() == before


@pytest.mark.parametrize(
    "arguments",
    [
        (L, X[:2], None, None, 0),
        (L[0], X, None, None, 0),
        (L, X, torch.ones(3), None, 0),
        (L, X, None, torch.ones(B, D), 0),
        (L, X, None, torch.ones(B, 5, dtype=torch.bool), 0),
        (L.long(), X, None, None, 0),
        (L, X.long(), None, None, 0),
    ],
)
def test_raw_operators_check_what_keeps_memory_safe(arguments):
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.vae_fast.bernoulli_nll(*arguments)


def test_a_backend_for_another_device(monkeypatch):
    name, device = ("triton", "cuda") if L.is_cpu else ("cpp", "cpu")
    monkeypatch.setattr("vae_fast.ops.backend._forced", name)
    with pytest.raises(RuntimeError, match=f"'{name}' serves {device} tensors, got tensors on {L.device}"):
        elbo()


def of(*shape, **options):
    return torch.zeros(shape, **options)


FORMS = [
    of(B, D),
    *[of(B, D).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32)],
    *[of(B, D).byte(), of(B, D).bool(), of(D, B).t(), of(B, 2 * D)[:, ::2]],
    *[of(B, 1), of(1, D), of(D), of(B), of(), of(B, D, 1, 1), of(0, D)],
    *[torch.nn.Parameter(of(B, D)), of(B, D, requires_grad=True), of(B, D, device="meta")],
    *[0.0, 1.0, 2.5, 0, True, np.float32(0), None, "1"],
]


@pytest.mark.parametrize("name", [name for name, entry in LIKELIHOODS.items() if not entry.joint])
def test_plain_operands_are_what_the_checks_make_of_them(name, monkeypatch):
    """Operands that pass without the single checks would have passed them, and are what they would have become."""
    entry = LIKELIHOODS[name]
    count, passed = len(entry.parameters), 0
    operands = [FORMS[0], *[1.0] * (count - 1), FORMS[0]]

    def outcome(given):
        try:
            found = observations(entry, ("f", *entry.parameters), given[:count], given[count], None, None, {})
        except (TypeError, ValueError, AttributeError) as error:
            return type(error), str(error)
        tensors = (*found[0], found[1])
        return [(t.shape, t.dtype, t.device, t.data_ptr() if t.numel() > 1 else str(t)) for t in tensors]

    for i, j in itertools.product(range(count + 1), repeat=2):
        for a, b in itertools.product(FORMS, repeat=2):
            given = list(operands)
            given[i], given[j] = a, b
            quick = outcome(given)
            passed += _plain(entry, given[:count], given[count]) is not None
            with monkeypatch.context() as patch:
                patch.setattr("vae_fast.operands._plain", lambda *_: None)
                assert outcome(given) == quick
    assert passed > 20


def test_plain_posteriors_are_what_the_checks_let_pass():
    def outcome(check, mu, logvar):
        try:
            return check(mu, logvar)
        except (TypeError, ValueError, AttributeError) as error:
            return type(error), str(error)

    def checked(mu, logvar):
        checks.floating("f", "mu", mu)
        checks.floating("f", "logvar", logvar)
        checks.same_shape("f", "mu", mu, "logvar", logvar)
        checks.same_device("f", "mu", mu, "logvar", logvar)

    for mu, logvar in itertools.product(FORMS, repeat=2):
        assert outcome(functools.partial(check_posterior, "f"), mu, logvar) == outcome(checked, mu, logvar)
