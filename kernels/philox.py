"""The counter-based normal generator: Philox4x32-10 and Box-Muller, the noise of element i from (seed, i) alone.

Key = the 64-bit seed; counter = (i // 4 as 64 bits, 0 as 64 bits); word = i % 4.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import triton
import triton.language as tl

from vae_fast.kernels.fastmath import LN_2, PI, cos, lg2, one_to_two, sin, sqrt, wide_product


@triton.jit
def _halves(v):
    """The high and the low word of 64 bits."""
    return (v >> 32).to(tl.uint32), v.to(tl.uint32)


@triton.jit
def philox(counter, seed):
    """Four random 32-bit words for each 64-bit counter."""
    key1, key0 = _halves(seed.to(tl.uint64))
    c1, c0 = _halves(counter.to(tl.uint64))
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = wide_product(c0, tl.full([1], 0xD2511F53, tl.uint32))
        high1, low1 = wide_product(c2, tl.full([1], 0xCD9E8D57, tl.uint32))
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _polar(word0, word1):
    """Radius and angle: sqrt(-2 ln u) with u = (word0 | 1) / 2^32, and pi s with s in [-1, 1) from 23 bits of word1."""
    u = (word0 | 1).to(tl.float32) * 2.3283064365386963e-10
    radius = sqrt(tl.abs(lg2(u) * (-2 * LN_2)))
    return radius, (one_to_two(word1) - 1.5) * (2 * PI)


@triton.jit
def normals_of_four(counter, seed):
    """The four normals of each counter: elements 4 counter to 4 counter + 3."""
    w0, w1, w2, w3 = philox(counter, seed)
    r, a = _polar(w0, w1)
    s, b = _polar(w2, w3)
    return r * cos(a), r * sin(a), s * cos(b), s * sin(b)


@triton.jit
def normals_of_each(index, seed):
    """The normal of each element: four times the work of `normals_of_four`, for rows that don't begin a four."""
    w0, w1, w2, w3 = philox(index >> 2, seed)
    second = (index & 2) != 0
    radius, angle = _polar(tl.where(second, w2, w0), tl.where(second, w3, w1))
    return radius * tl.where((index & 1) != 0, sin(angle), cos(angle))


@triton.jit
def normals(first, step, seed, ROWS: tl.constexpr, COLS: tl.constexpr, TOGETHER: tl.constexpr):
    """[ROWS, COLS] normals of rows that begin at element `first` and every `step`.

    TOGETHER is how many neighbours a thread holds, 8 or 4, so that it makes just what it uses; `first` and `step` are
    multiples of it. 1 is for any.
    """
    if TOGETHER == 1:
        row = tl.arange(0, ROWS)[:, None]
        return normals_of_each(first + row.to(tl.int64) * step + tl.arange(0, COLS)[None, :], seed)
    else:
        place = tl.arange(0, ROWS * COLS // TOGETHER)
        row, within = place // (COLS // TOGETHER), place % (COLS // TOGETHER) * (TOGETHER // 4)
        counter = (first >> 2) + row * (step >> 2) + within
        n0, n1, n2, n3 = normals_of_four(counter, seed)
        if TOGETHER == 8:
            m0, m1, m2, m3 = normals_of_four(counter | 1, seed)
            n0, n1, n2, n3 = tl.join(n0, m0), tl.join(n1, m1), tl.join(n2, m2), tl.join(n3, m3)
        return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [ROWS, COLS])
