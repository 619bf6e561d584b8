"""`python benchmarks/accuracy.py` prints the table of docs/numerics.md: the usual formulas, ours, and the true values.

Inputs are exact in their dtype; true values are computed by mpmath with 50 digits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from mpmath import mpf
from torch import Tensor

import vae_fast

Row = tuple[str, Any, Any, Any]


def column(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def value_and_gradient(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[float, float]:
    t = t.clone().requires_grad_()
    value = function(t).sum()
    value.backward()
    return value.item(), t.grad.item() if t.grad is not None else 0.0


def softplus(v: Any) -> Any:
    return mpmath.log(1 + mpmath.exp(v))


def bernoulli() -> Iterator[Row]:
    logit, zero = column(17.0), column(0.0)
    usual = value_and_gradient(lambda t: F.binary_cross_entropy(torch.sigmoid(t), zero, reduction="sum"), logit)
    ours = value_and_gradient(lambda t: vae_fast.bernoulli_nll(t, zero), logit)
    yield "cross-entropy of sigmoid(17) with x = 0: value", usual[0], ours[0], softplus(mpf(17))
    yield "the same: its gradient in the logit", usual[1], ours[1], 1 / (1 + mpmath.exp(-17))
    logit, one = column(20.0), column(1.0)
    usual = value_and_gradient(lambda t: F.binary_cross_entropy_with_logits(t, one, reduction="sum"), logit)
    ours = value_and_gradient(lambda t: vae_fast.bernoulli_nll(t, one), logit)
    yield "cross-entropy of logit 20 with x = 1: gradient", usual[1], ours[1], -1 / (1 + mpmath.exp(20))
    many = torch.full((1, 2**20), -16.0)
    summed = F.binary_cross_entropy_with_logits(many, torch.zeros_like(many), reduction="sum").item()
    mine = vae_fast.bernoulli_nll(many, torch.zeros_like(many)).item()
    yield "2^20 pixels with logit -16 and x = 0", summed, mine, 2**20 * softplus(mpf(-16))


def usual_kl(mu: Tensor, logvar: Tensor) -> float:
    return (-0.5 * (1 + logvar - mu.pow(2) - logvar.exp())).sum().item()


def kl_between(mu1: Tensor, mu2: Tensor, log_sigma1: Tensor, log_sigma2: Tensor) -> float:
    """The elementwise form of hierarchical VAEs, by log sigma."""
    ratio = (log_sigma1.exp() ** 2 + (mu1 - mu2) ** 2) / log_sigma2.exp() ** 2
    return (-0.5 + log_sigma2 - log_sigma1 + 0.5 * ratio).sum().item()


def divergences() -> Iterator[Row]:
    zero, near = column(0.0), column(1e-4)
    v = mpf(near.item())
    exact = (mpmath.expm1(v) - v) / 2
    yield "KL to the prior at logvar = 1e-4", usual_kl(zero, near), vae_fast.gaussian_kl(zero, near).item(), exact
    half = column(12.0, dtype=torch.float16)
    exact = (mpmath.expm1(12) - 12) / 2
    yield "KL at logvar = 12 in float16", usual_kl(half * 0, half), vae_fast.gaussian_kl(half * 0, half).item(), exact
    for s in (-60.0, 50.0):
        sigma = column(s)
        ours = vae_fast.gaussian_kl(zero, 2 * sigma, (zero, 2 * sigma)).item()
        yield f"KL of two equal Gaussians, log sigma = {s:g}", kl_between(zero, zero, sigma, sigma), ours, 0


def usual_nb(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """-log NB(x | mu, theta) by Gamma functions, 1e-8 in every logarithm."""
    coefficient = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    total = torch.log(theta + mu + 1e-8)
    return -(coefficient + theta * (torch.log(theta + 1e-8) - total) + x * (torch.log(mu + 1e-8) - total))


def exact_nb(x: int, mu: int, theta: Any) -> Any:
    coefficient = mpmath.loggamma(theta) + mpmath.loggamma(x + 1) - mpmath.loggamma(x + theta)
    return coefficient + theta * mpmath.log(1 + mpf(mu) / theta) + x * mpmath.log(1 + mpf(theta) / mu)


def counts() -> Iterator[Row]:
    million = column(1e6)
    usual = (million - million * million.log() + torch.lgamma(million + 1)).item()
    ours = vae_fast.poisson_nll(million, million, log_rate=False).item()
    exact = mpf(10) ** 6 - 10**6 * mpmath.log(10**6) + mpmath.loggamma(10**6 + 1)
    yield "Poisson: a count of 1e6 of mean 1e6", usual, ours, exact
    mu, x = column(3.0), column(5.0)
    usual = usual_nb(x, mu, million).item()
    ours = vae_fast.negative_binomial_nll(mu, million, x).item()
    yield "negative binomial: 5 of mean 3, theta = 1e6", usual, ours, exact_nb(5, 3, 10**6)
    theta = column(1e4)
    _, usual = value_and_gradient(lambda t: usual_nb(x, mu, t), theta)
    _, ours = value_and_gradient(lambda t: vae_fast.negative_binomial_nll(mu, t, x), theta)
    yield "the same, theta = 1e4: gradient in theta", usual, ours, mpmath.diff(lambda t: exact_nb(5, 3, t), mpf(10**4))


def levels() -> Iterator[Row]:
    logit, x = column(30.0), column(0.7)
    usual = -torch.distributions.ContinuousBernoulli(logits=logit).log_prob(x).item()
    ours = vae_fast.continuous_bernoulli_nll(logit, x).item()
    exact = mpmath.log(mpmath.expm1(30) / 30) - mpf(x.item()) * 30
    yield "continuous Bernoulli: 0.7 of logit 30", usual, ours, exact
    mean, log_scale, level = column(0.0), column(-7.0), torch.tensor([[131]], dtype=torch.uint8)
    value = level.float() / 127.5 - 1
    usual = vae_fast.discretized_logistic_nll(mean, log_scale, value, compat="pixelcnn++").item()
    ours = vae_fast.discretized_logistic_nll(mean, log_scale, level).item()
    a, b = ((mpf(2 * 131 - 255 + shift) / 255) * mpmath.exp(7) for shift in (-1, 1))
    exact = -mpmath.log(1 / (1 + mpmath.exp(-b)) - 1 / (1 + mpmath.exp(-a)))
    yield "discretised logistic: level 131 of mean 127.5, log-scale -7", usual, ours, exact


def masks() -> Iterator[Row]:
    logits, x = torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 2)
    mask = torch.tensor([[True, False]])
    usual = (F.binary_cross_entropy_with_logits(logits, x, reduction="none") * mask).sum().item()
    yield (
        "one pixel of logit 0 beside a masked NaN",
        usual,
        vae_fast.bernoulli_nll(logits, x, mask=mask).item(),
        mpmath.log(2),
    )


def underflow() -> Iterator[Row]:
    """With loss scaling by 65536, the gradient of a mean over 20,000 rows, in float16."""
    logits = torch.full((20_000, 1), -9.0, dtype=torch.float16)
    x, latent, scaler = torch.zeros_like(logits), torch.zeros_like(logits), 65536.0
    usual, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    stored = (torch.sigmoid(usual.detach()) / 20_000) * scaler
    (vae_fast.ELBOLoss()(ours, x, latent, latent) * scaler).backward()
    exact = scaler / 20_000 / (1 + mpmath.exp(9))
    assert ours.grad is not None
    yield "float16 gradient stored with 1/B, then scaled by 65536", stored[0].item(), ours.grad[0].item(), exact


def main() -> None:
    mpmath.mp.dps = 50
    print("| quantity | the usual formula | vae_fast | true |\n| --- | --- | --- | --- |")
    for source in (bernoulli, levels, counts, divergences, masks, underflow):
        for name, usual, ours, true in source():
            print(f"| {name} | {float(usual):.8g} | {float(ours):.8g} | {mpmath.nstr(mpf(true), 8)} |")


if __name__ == "__main__":
    main()
