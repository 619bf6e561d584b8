"""Networks for images of any size and for counts: encoders x [B, ...] -> [B, 2 Z], decoders z [B, Z] -> [B, C, H, W].

What makes parameters of a likelihood of a decoder's output is in heads.py.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 8


def mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def mlp_encoder(shape: tuple[int, ...], latent_dim: int, widths: list[int]) -> nn.Module:
    """x [B, C, H, W] -> [B, 2 Z], through hidden layers of the given widths."""
    return nn.Sequential(nn.Flatten(), mlp([math.prod(shape), *widths, 2 * latent_dim]))


def mlp_decoder(shape: tuple[int, ...], latent_dim: int, widths: list[int]) -> nn.Module:
    """z [B, Z] -> [B, C, H, W], the encoder's widths in reverse."""
    return nn.Sequential(mlp([latent_dim, *widths[::-1], math.prod(shape)]), nn.Unflatten(1, shape))


def _halvings(size: int, times: int) -> list[int]:
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def _bottleneck(shape: tuple[int, ...], widths: list[int]) -> tuple[int, int, int]:
    *channels, _ = widths
    times = len(channels)
    return channels[-1], _halvings(shape[1], times)[-1], _halvings(shape[2], times)[-1]


def conv_encoder(shape: tuple[int, ...], latent_dim: int, widths: list[int]) -> nn.Module:
    """x [B, C, H, W] -> [B, 2 Z]. `widths`: channels of each convolution of stride 2, then a hidden layer.

    A convolution halves the sides, rounding up, so any height and width will do.
    """
    *channels, hidden = widths
    layers: list[nn.Module] = []
    for inputs, outputs in zip([shape[0], *channels[:-1]], channels, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
    features = math.prod(_bottleneck(shape, widths))
    return nn.Sequential(*layers, nn.Flatten(), mlp([features, hidden, 2 * latent_dim]))


def conv_decoder(shape: tuple[int, ...], latent_dim: int, widths: list[int]) -> nn.Module:
    """z [B, Z] -> [B, C, H, W], the encoder mirrored: transposed convolutions give back the exact sizes."""
    *channels, hidden = widths
    bottleneck = _bottleneck(shape, widths)
    heights, columns = _halvings(shape[1], len(channels)), _halvings(shape[2], len(channels))
    layers: list[nn.Module] = []
    for level in reversed(range(len(channels))):
        outputs = channels[level - 1] if level else shape[0]
        even = (1 - heights[level] % 2, 1 - columns[level] % 2)
        layers += [
            nn.SiLU(),
            nn.ConvTranspose2d(channels[level], outputs, 3, 2, padding=1, output_padding=even),
        ]
    return nn.Sequential(mlp([latent_dim, hidden, math.prod(bottleneck)]), nn.Unflatten(1, bottleneck), *layers)


class Log1p(nn.Module):
    """log(1 + x): counts of any size as numbers that a network takes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x)


def count_encoder(shape: tuple[int, ...], latent_dim: int, widths: list[int]) -> nn.Module:
    """Counts [B, D] -> [B, 2 Z]"""
    return nn.Sequential(Log1p(), mlp_encoder(shape, latent_dim, widths))


NETWORKS = {"mlp": (mlp_encoder, mlp_decoder), "conv": (conv_encoder, conv_decoder)}
WIDTHS = {"mlp": [512, 256], "conv": [32, 64, 256], "counts": [128]}
