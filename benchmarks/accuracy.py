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
from torch.distributions import ContinuousBernoulli

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
    many = torch.full((1, 2**20), -16.0)
    summed = F.binary_cross_entropy_with_logits(many, torch.zeros_like(many), reduction="sum").item()
    mine = vae_fast.bernoulli_nll(many, torch.zeros_like(many)).item()
    yield "2^20 pixels with logit -16 and x = 0", summed, mine, 2**20 * softplus(mpf(-16))


def densities() -> Iterator[Row]:
    logit, x = column(30.0), column(0.7)
    usual = ContinuousBernoulli(logits=logit).log_prob(x).item()
    t = mpf(30)
    exact = t * mpf(x.item()) - mpmath.log(mpmath.expm1(t) / t)
    yield "continuous Bernoulli of logit 30, x = 0.7: log p", usual, -vae_fast.continuous_bernoulli_nll(logit, x), exact
    mean, log_scale, level = column(-5 / 255), column(-7.0), torch.tensor([[128]])
    fallback, ours = (
        -vae_fast.discretized_logistic_nll(mean, log_scale, level, compat=compat) for compat in ("pixelcnn++", None)
    )
    low, high = ((mpf(c) / 255 - mpf(mean.item())) * mpmath.exp(7) for c in (0, 2))
    exact = mpmath.log(1 / (1 + mpmath.exp(low)) - 1 / (1 + mpmath.exp(high)))
    yield "discretised logistic, log scale -7, three bins off: log P", fallback, ours, exact


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
    for source in (bernoulli, densities, divergences, masks, underflow):
        for name, usual, ours, true in source():
            print(f"| {name} | {float(usual):.8g} | {float(ours):.8g} | {mpmath.nstr(mpf(true), 8)} |")


if __name__ == "__main__":
    main()
