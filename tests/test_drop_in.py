"""docs/likelihoods.md: what stands there in place of other libraries' code gives what their formulas give, in float64.

The formulas are written here as their papers and documentation have them, elementwise, with no thought of rounding.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Categorical,
    ContinuousBernoulli,
    Laplace,
    NegativeBinomial,
    Normal,
    Poisson,
    kl_divergence,
)

import vae_fast

TEXT = (Path(__file__).parents[1] / "docs/likelihoods.md").read_text()
BLOCKS = re.findall(r"```python\n(.+?)```", TEXT, flags=re.DOTALL)
B, G, M, H, W = 7, 11, 4, 5, 6
EXACT = {"rtol": 1e-10, "atol": 1e-10}
BY_EPS = {"rtol": 1e-6, "atol": 1e-6}  # scvi-tools adds 1e-8 in logarithms


def given(**tensors: Tensor) -> dict[str, Any]:
    return {"vae_fast": vae_fast, "torch": torch, "math": math, **tensors}


def run(block: str, space: dict[str, Any], name: str) -> Tensor:
    """The block is in the document, and `name` is what it computes."""
    (code,) = (code for code in BLOCKS if block in code)
    exec(code, space)
    return space[name]


def counts() -> dict[str, Tensor]:
    mu = torch.distributions.LogNormal(0.5, 1.5).sample((B, G)).double()
    theta = torch.distributions.LogNormal(0.0, 1.0).sample((G,)).double()
    return {"x": torch.poisson(mu), "mu": mu, "theta": theta, "pi": 2 * torch.randn(B, G).double()}


def log_nb(x: Tensor, mu: Tensor, theta: Tensor, eps: float = 1e-8) -> Tensor:
    """NB(x | mu, theta) by Gamma functions, eps in every logarithm as scvi-tools has it."""
    coefficient = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    total = torch.log(theta + mu + eps)
    return coefficient + theta * (torch.log(theta + eps) - total) + x * (torch.log(mu + eps) - total)


def log_zinb(x: Tensor, mu: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
    dropped, kept = torch.sigmoid(pi), torch.sigmoid(-pi)
    return torch.log(dropped * (x == 0) + kept * log_nb(x, mu, theta).exp())


@pytest.mark.parametrize("theta_of", ["gene", "cell and gene"])
def test_scvi(theta_of: str) -> None:
    c = counts()
    if theta_of != "gene":
        c["theta"] = c["theta"] * torch.rand(B, G).double()
    log_px = run("log_px = -vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x)", given(**c), "log_px")
    torch.testing.assert_close(log_px, log_zinb(**c).sum(-1), **BY_EPS)
    log_px = run("log_px = -vae_fast.negative_binomial_nll(mu, theta, x)", given(**c), "log_px")
    torch.testing.assert_close(log_px, log_nb(c["x"], c["mu"], c["theta"]).sum(-1), **BY_EPS)


def test_scvi_with_its_library() -> None:
    c = counts()
    library = c["x"].sum(1, keepdim=True).log()
    scale = torch.softmax(torch.randn(B, G).double(), 1)
    space = given(px_scale=scale, px_r=c["theta"].log(), px_dropout=c["pi"], x=c["x"], library=library)
    log_px = run("px_scale", space, "log_px")
    expected = log_zinb(c["x"], library.exp() * scale, c["theta"], c["pi"]).sum(-1)
    torch.testing.assert_close(log_px, expected, **BY_EPS)


def mixture_of_bins(parameters: Tensor, x: Tensor, log_bin: Callable[..., Tensor]) -> Tensor:
    """log p of each pixel, [B, H, W], from parameters [B, H, W, 10 M] and x [B, H, W, 3] in [-1, 1]."""
    logits, rest = parameters[..., :M], parameters[..., M:].reshape(B, H, W, 3, 3, M)
    means, log_scales, k = rest[..., 0, :], rest[..., 1, :], torch.tanh(rest[..., 2, :])
    red, green = x[..., 0, None], x[..., 1, None]
    shift = [torch.zeros_like(k[..., 0, :]), k[..., 0, :] * red, k[..., 1, :] * red + k[..., 2, :] * green]
    bins = log_bin(x[..., None], means + torch.stack(shift, -2), log_scales)
    return torch.logsumexp(torch.log_softmax(logits, -1) + bins.sum(-2), -1)


def exact_bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    upper = torch.where(x > 0.999, math.inf, (x - mean + 1 / 255) * torch.exp(-log_scale))
    lower = torch.where(x < -0.999, -math.inf, (x - mean - 1 / 255) * torch.exp(-log_scale))
    return torch.log(torch.sigmoid(upper) - torch.sigmoid(lower))


def floored_bin(last: float) -> Callable[..., Tensor]:
    """Log-scales from -7 up; above `last` all belongs to the highest level; below 1e-5 the density in the middle."""

    def log_bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.clamp(min=-7).exp()
        upper, lower, middle = ((x - mean + w) / scale for w in (1 / 255, -1 / 255, 0.0))
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        density = torch.log(2 / 255 * torch.sigmoid(middle) * torch.sigmoid(-middle) / scale)
        inside = torch.where(mass > 1e-5, mass.log(), density)
        return torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > last, F.logsigmoid(-lower), inside))

    return log_bin


def pixels(spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Parameters [B, H, W, 10 M] and x [B, H, W, 3] on the levels of [-1, 1], both ends among them."""
    level = torch.randint(0, 256, (B, H, W, 3))
    level[0, 0, 0], level[0, 0, 1], level[0, 0, 2] = 0, 255, 254
    return spread * torch.randn(B, H, W, 10 * M).double(), level.double() * (2 / 255) - 1


def test_vdvae() -> None:
    """Where no bin is below 1e-5 the exact probabilities are VDVAE's too; its formula elsewhere is compat's."""
    parameters, x = pixels(0.3)
    loss = run("channels_last=True) / x[0]", given(l=parameters, x=x), "loss")
    for log_bin in (exact_bin, floored_bin(0.999)):
        expected = -mixture_of_bins(parameters, x, log_bin).sum((1, 2)) / (H * W * 3)
        torch.testing.assert_close(loss, expected, **EXACT)


def test_models_of_pixelcnn() -> None:
    parameters, x = pixels(4.0)
    loss = run('compat="pixelcnn++"', given(l=parameters, x=x), "loss")
    expected = -mixture_of_bins(parameters, x, floored_bin(0.999)).sum((1, 2)) / (H * W * 3)
    torch.testing.assert_close(loss, expected, **EXACT)


def test_nvae() -> None:
    parameters, x = pixels(4.0)
    param, unit = parameters.movedim(-1, 1).contiguous(), (x.movedim(-1, 1) + 1) / 2
    nll = run('compat="nvae"', given(param=param, x=unit), "nll")
    expected = -mixture_of_bins(parameters, x, floored_bin(0.99)).sum((1, 2))
    torch.testing.assert_close(nll, expected, rtol=1e-7, atol=1e-7)


def negative_binomial() -> tuple[dict[str, Tensor], Any]:
    total_count, logits = torch.rand(B, G).double() * 9, torch.randn(B, G).double()
    d = NegativeBinomial(total_count, logits=logits)
    return {"total_count": total_count, "logits": logits, "x": d.sample()}, d


def poisson() -> tuple[dict[str, Tensor], Any]:
    rate = torch.rand(B, G).double() * 30
    return {"rate": rate, "x": torch.poisson(rate)}, Poisson(rate)


def laplace() -> tuple[dict[str, Tensor], Any]:
    loc, scale = torch.randn(B, G).double(), torch.rand(B, G).double() + 0.1
    d = Laplace(loc, scale)
    return {"loc": loc, "scale": scale, "x": d.sample()}, d


def continuous_bernoulli() -> tuple[dict[str, Tensor], Any]:
    logits = 3 * torch.randn(B, G).double()
    return {"logits": logits, "x": torch.rand(B, G).double()}, ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))


def categorical() -> tuple[dict[str, Tensor], Any]:
    logits = torch.randn(B, G, 5).double()
    return {"logits": logits, "x": torch.randint(0, 5, (B, G))}, Categorical(logits=logits)


@pytest.mark.parametrize("make", [negative_binomial, poisson, laplace, continuous_bernoulli, categorical])
def test_torch_distributions(make: Callable[[], tuple[dict[str, Tensor], Any]]) -> None:
    operands, d = make()
    nll = run(f"  # {type(d).__name__}", given(**operands), "nll")
    torch.testing.assert_close(nll, -d.log_prob(operands["x"]).sum(1), rtol=1e-8, atol=1e-8)


def test_latent_diffusion() -> None:
    x, reconstruction = torch.randn(2, B, 3, H, W).double()
    logvar = torch.tensor(0.7).double()
    nll = run("reconstruction", given(x=x, reconstruction=reconstruction, logvar=logvar), "nll")
    expected = ((x - reconstruction).abs() / logvar.exp() + logvar).sum((1, 2, 3))
    torch.testing.assert_close(nll, expected, **EXACT)
    moments = 3 * torch.randn(B, 8, H, W).double()
    moments[0, 4:] = 40.0
    kl = run("moments", given(moments=moments), "kl")
    mean, logvar = moments[:, :4], moments[:, 4:].clamp(-30, 20)
    posterior = Normal(mean, torch.exp(logvar / 2))
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum((1, 2, 3))
    torch.testing.assert_close(kl, expected, **EXACT)


def test_links() -> None:
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", TEXT, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert not path or (Path(__file__).parents[1] / "docs" / path).exists(), target
        assert path or anchor in headings, target
