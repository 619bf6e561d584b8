"""From a decoder's output to the parameters of each likelihood, and what the likelihood is told of the data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .networks import mlp

LOGVAR_FLOOR = -12.0
LOG_SCALE_FLOOR = -7.0  # of PixelCNN++: in units of [-1, 1] a quarter of a grey level
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
LEVELS = {"categorical": 16, "discretized_logistic": 256, "discretized_logistic_mixture": 256}

MakeDecoder = Callable[[tuple[int, ...]], nn.Module]  # (C, H, W) -> decoder z [B, Z] -> [B, C, H, W]


class GaussianDecoder(nn.Module):
    """Adds to a decoder of the mean one learned log-variance, shared by all pixels: z -> (mean, logvar)."""

    def __init__(self, mean: nn.Module) -> None:
        super().__init__()
        self.mean = mean
        self.logvar = nn.Parameter(torch.tensor(-3.0))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(z)
        return mean, self.logvar.clamp(min=LOGVAR_FLOOR).to(mean.dtype).expand_as(mean)


class LaplaceDecoder(nn.Module):
    """Adds to a decoder of the mean one learned log-scale, shared by all pixels: z -> (mean, log_scale)."""

    def __init__(self, mean: nn.Module) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = nn.Parameter(torch.tensor(-2.0))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(z)
        return mean, self.log_scale.clamp(min=LOGVAR_FLOOR / 2).to(mean.dtype).expand_as(mean)


class LogisticDecoder(nn.Module):
    """Of a decoder's 2 C channels makes (mean, log_scale) of each pixel, in units of [-1, 1]."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.both = both

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.both(z).chunk(2, 1)
        return mean, log_scale.clamp(min=LOG_SCALE_FLOOR)


class MixtureDecoder(nn.Module):
    """Spreads the means of the components of a mixture over [-1, 1]; training starts from there."""

    def __init__(self, parameters: nn.Module, channels: int, components: int) -> None:
        super().__init__()
        self.parameters_of = parameters
        kinds = 3 if channels == 3 else 2
        start = torch.zeros(1 + kinds * channels, components)
        start[1::kinds] = torch.linspace(-1, 1, components + 2)[1:-1]
        start[2::kinds] = -2.0
        self.start = nn.Parameter(start.reshape(-1, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.parameters_of(z) + self.start


class CountDecoder(nn.Module):
    """z -> log proportions [B, D]; of the negative binomials log_theta [D] too; of zero inflation logits [B, D]."""

    def __init__(self, likelihood: str, features: int, latent_dim: int, widths: list[int]) -> None:
        super().__init__()
        self.outputs = 2 if likelihood == "zero_inflated_negative_binomial" else 1
        self.layers = mlp([latent_dim, *widths[::-1], self.outputs * features])
        self.log_theta = None if likelihood == "poisson" else nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        share, *logits = self.layers(z).chunk(self.outputs, 1)
        log_mu = torch.log_softmax(share, 1)
        return log_mu if self.log_theta is None else (log_mu, self.log_theta, *logits)


def image_decoder(
    likelihood: str, make: MakeDecoder, shape: tuple[int, ...], components: int, levels: int
) -> nn.Module:
    """z -> the likelihood's parameters for images of `shape`, (C, H, W)."""
    channels, *sides = shape
    if likelihood == "gaussian":
        return GaussianDecoder(make(shape))
    if likelihood == "laplace":
        return LaplaceDecoder(make(shape))
    if likelihood == "discretized_logistic":
        return LogisticDecoder(make((2 * channels, *sides)))
    if likelihood == "discretized_logistic_mixture":
        width = components * (10 if channels == 3 else 1 + 2 * channels)
        return MixtureDecoder(make((width, *sides)), channels, components)
    if likelihood == "categorical":
        return nn.Sequential(make((levels * channels, *sides)), nn.Unflatten(1, (levels, channels)))
    return make(shape)


def loss_options(likelihood: str, levels: int) -> dict[str, float]:
    """What the loss is told beside tensors: counts by logarithms; images in [0, 1], of so many levels."""
    if likelihood in ("negative_binomial", "zero_inflated_negative_binomial"):
        return {"log_mu": True, "log_theta": True}
    if likelihood.startswith("discretized"):
        return {"levels": levels, "x_low": 0.0, "x_high": 1.0}
    return {}


def data_form(likelihood: str, levels: int | None) -> dict[str, Any]:
    """How `VAEData` must give the likelihood its data."""
    if likelihood == "categorical":
        return {"quantise": LEVELS[likelihood] if levels is None else levels}
    return {"counts": likelihood in COUNTS}
