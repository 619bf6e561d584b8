"""What is left of logarithms of the gamma function, and of log1p, once their large terms have cancelled."""

import math

import torch
from torch import Tensor

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_ARTANH = tuple(1 / k for k in range(3, 27, 2))
_SERIES_FROM = 16


def _polynomial(v: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(v, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * v + c
    return total


def stirling(v: Tensor) -> Tensor:
    """S(v) = ln Gamma(v + 1) - [(v + 1/2) ln v - v + 1/2 ln 2 pi], v > 0: the remainder of Stirling's formula."""
    far = v > _SERIES_FROM
    near = torch.where(far, _SERIES_FROM, v)
    exact = torch.lgamma(near + 1) - ((near + 0.5) * torch.log(near) - near + 0.5 * math.log(2 * math.pi))
    u = 1 / torch.where(far, v, _SERIES_FROM)
    return torch.where(far, u * _polynomial(u**2, _STIRLING), exact)


def log1p_minus(v: Tensor, u: Tensor) -> Tensor:
    """L(v) = v - ln(1 + v) >= 0, v > -1, given u = 1 + v. Where v is small by ln(1 + v) = 2 artanh(v / (2 + v))."""
    small = v.abs() < 0.4
    near = torch.where(small, v, 0)
    z = near / (2 + near)
    series = z * (near - 2 * z**2 * _polynomial(z**2, _ARTANH))
    return torch.where(small, series, v - torch.log(torch.where(small, 1, u)))
