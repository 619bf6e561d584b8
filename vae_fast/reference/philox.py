"""Philox4x32-10 and Box-Muller: the noise of element i from (seed, i) alone, on any device."""

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a 32 x 32 -> 64 bit product."""
    product = a * b
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words, as int64, for each counter of four 32-bit words; the key is the 64-bit seed.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        high0, low0 = _product(0xD2511F53, c0)
        high1, low1 = _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _box_muller(word0: Tensor, word1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sqrt(-2 ln u) (cos, sin)(pi s): u = (word0 | 1) / 2^32 as float32, s in [-1, 1) from word1's upper 23 bits."""
    u = (word0 | 1).to(torch.float32).to(dtype) * 2.0**-32
    s = (word1 >> 9).to(dtype) * 2.0**-22 - 1
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * torch.cos(math.pi * s), radius * torch.sin(math.pi * s)


def normals(shape: torch.Size | tuple[int, ...], seed: Tensor, dtype: torch.dtype, stream: int = 0) -> Tensor:
    """N(0, 1) noise: element i is word i % 4 at counter (i // 4, stream). seed: 0-dim int64 on the device wanted."""
    count = math.prod(shape)
    index = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    upper = torch.full_like(index, stream)
    words = philox((index & _LOW, index >> 32, upper & _LOW, upper >> 32), seed)
    pairs = _box_muller(words[0], words[1], dtype) + _box_muller(words[2], words[3], dtype)
    return torch.stack(pairs, dim=-1).flatten()[:count].reshape(shape)
