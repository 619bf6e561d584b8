"""The networks of each likelihood: from a decoder's output to its parameters, and what it is told of the data."""

from typing import Any

import torch
from torch import Tensor, nn

from .networks import NETWORKS, count_encoder, mlp

LOGVAR_FLOOR = -12.0
LOG_SCALE_FLOOR = -7.0  # of PixelCNN++: in units of [-1, 1] a quarter of a grey level
MIXTURE = "discretized_logistic_mixture"
COMPONENTS = 10
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
BYTES = 256
LEVELS = {"categorical": 16, "discretized_logistic": BYTES, MIXTURE: BYTES}


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
    """z -> log proportions [B, D]; of the negative binomials log_theta [D] too; of zero inflation logits [B, D].

    Training starts near Poisson counts with little dropout: theta from e, logits from about -2.
    """

    def __init__(self, likelihood: str, features: int, latent_dim: int, widths: list[int]) -> None:
        super().__init__()
        self.outputs = 2 if likelihood == "zero_inflated_negative_binomial" else 1
        self.layers = mlp([latent_dim, *widths[::-1], self.outputs * features])
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        nn.init.constant_(last.bias[features:], -2.0)
        self.log_theta = None if likelihood == "poisson" else nn.Parameter(torch.ones(features))

    def forward(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        share, *logits = self.layers(z).chunk(self.outputs, 1)
        log_mu = torch.log_softmax(share, 1)
        return log_mu if self.log_theta is None else (log_mu, self.log_theta, *logits)


class Divided(nn.Module):
    """x / d: the numbers of grey levels as grey values."""

    def __init__(self, d: float) -> None:
        super().__init__()
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        return x / self.d


def networks(
    likelihood: str,
    shape: tuple[int, ...],
    latent_dim: int,
    network: str,
    widths: list[int],
    components: int | None,
    levels: int | None,
) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) for images of `shape`, (C, H, W), or counts, (D,)."""
    if likelihood in COUNTS:
        return count_encoder(shape, latent_dim, widths), CountDecoder(likelihood, shape[0], latent_dim, widths)
    make_encoder, make_decoder = NETWORKS[network]
    encoder = make_encoder(shape, latent_dim, widths)
    if likelihood == "categorical" and levels:
        encoder = nn.Sequential(Divided(levels - 1), encoder)
    outputs = _outputs(likelihood, shape[0], components, levels)
    decoder = make_decoder((outputs, *shape[1:]), latent_dim, widths)
    return encoder, _with_head(likelihood, decoder, shape[0], components)


def _outputs(likelihood: str, channels: int, components: int | None, levels: int | None) -> int:
    """How many numbers a pixel needs."""
    if likelihood == "discretized_logistic":
        return 2 * channels
    if likelihood == MIXTURE and components:
        return components * (10 if channels == 3 else 3)
    return channels * levels if likelihood == "categorical" and levels else channels


def _with_head(likelihood: str, decoder: nn.Module, channels: int, components: int | None) -> nn.Module:
    """z -> the likelihood's parameters."""
    if likelihood == "gaussian":
        return GaussianDecoder(decoder)
    if likelihood == "laplace":
        return LaplaceDecoder(decoder)
    if likelihood == "discretized_logistic":
        return LogisticDecoder(decoder)
    if likelihood == MIXTURE and components:
        return MixtureDecoder(decoder, channels, components)
    if likelihood == "categorical":
        return nn.Sequential(decoder, nn.Unflatten(1, (-1, channels)))
    return decoder


def loss_options(likelihood: str, channels: int, levels: int | None) -> dict[str, Any]:
    """What the loss is told beside tensors: counts by logarithms; images in [0, 1], of so many levels."""
    if likelihood in ("negative_binomial", "zero_inflated_negative_binomial"):
        return {"log_mu": True, "log_theta": True}
    if levels is None or likelihood == "categorical":
        return {}
    options = {"levels": levels, "x_range": (0.0, 1.0)}
    return {"channels": channels, **options} if likelihood == MIXTURE else options


def data_form(likelihood: str, levels: int | None) -> dict[str, Any]:
    """How `VAEData` must give the likelihood its data: counts, or images cut into so many grey levels."""
    return {"counts": likelihood in COUNTS, "quantise": LEVELS.get(likelihood) if levels is None else levels}
