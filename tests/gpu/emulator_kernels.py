"""Triton kernels for the tests of the PTX emulator."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def bernoulli(logits_ptr, x_ptr, grad_ptr, nll_ptr, D, scale, BLOCK: tl.constexpr):
    """The negative log-likelihood of each row and its gradient in the logits."""
    row = tl.program_id(0)
    nll = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < D
        logits = tl.load(logits_ptr + row * D + cols, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * D + cols, mask=mask, other=0).to(tl.float32)
        e = tl.exp(-tl.abs(logits))
        nll += tl.where(mask, tl.maximum(logits, 0.0) + tl.log(1.0 + e) - logits * x, 0.0)
        r = 1.0 / (1.0 + e)
        sigmoid = tl.where(logits >= 0, r, e * r)
        tl.store(grad_ptr + row * D + cols, (sigmoid - x) * scale, mask=mask)
    tl.store(nll_ptr + row, tl.sum(nll))


@triton.jit
def philox(normal_ptr, word_ptr, seed, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < N
    a, b, c, d = tl.randn4x(seed, i)
    tl.store(normal_ptr + 4 * i, a, mask=mask)
    tl.store(normal_ptr + 4 * i + 1, b, mask=mask)
    tl.store(normal_ptr + 4 * i + 2, c, mask=mask)
    tl.store(normal_ptr + 4 * i + 3, d, mask=mask)
    a, b, c, d = tl.randint4x(seed, i)
    tl.store(word_ptr + 4 * i, a, mask=mask)
    tl.store(word_ptr + 4 * i + 1, b, mask=mask)
    tl.store(word_ptr + 4 * i + 2, c, mask=mask)
    tl.store(word_ptr + 4 * i + 3, d, mask=mask)


@triton.jit
def atomic_sums(x_ptr, sum_ptr, max_ptr, histogram_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < N
    x = tl.load(x_ptr + i, mask=mask, other=0.0)
    tl.atomic_add(sum_ptr, tl.sum(x))
    tl.atomic_max(max_ptr, tl.max(tl.where(mask, x, -float("inf"))))
    bucket = tl.minimum((tl.abs(x) * 4).to(tl.int32), 15)
    tl.atomic_add(histogram_ptr + bucket, 1, mask=mask)


@triton.jit
def collatz(n_ptr, steps_ptr, trips_ptr, BLOCK: tl.constexpr):
    """Some trips of a loop that memory counts, then as many as the data needs."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.load(n_ptr + i)
    steps = tl.zeros((BLOCK,), tl.int32)
    for _ in range(tl.load(trips_ptr + tl.program_id(0))):
        live = n > 1
        n = tl.where(live, tl.where((n & 1) == 1, 3 * n + 1, n // 2), n)
        steps += live.to(tl.int32)
    while tl.max(n) > 1:
        live = n > 1
        n = tl.where(live, tl.where(n % 2 == 1, 3 * n + 1, n // 2), n)
        steps += live.to(tl.int32)
    tl.store(steps_ptr + i, steps)


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        a = tl.load(a_ptr + rm[:, None] * K + rk[None, :], mask=(rm[:, None] < M) & (rk[None, :] < K), other=0.0)
        b = tl.load(b_ptr + rk[:, None] * N + rn[None, :], mask=(rk[:, None] < K) & (rn[None, :] < N), other=0.0)
        acc = tl.dot(a, b, acc)
    mask = (rm[:, None] < M) & (rn[None, :] < N)
    tl.store(c_ptr + rm[:, None] * N + rn[None, :], acc.to(c_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_transposed(x_ptr, out_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BN)
    mask = (r[:, None] < M) & (c[None, :] < N)
    x = tl.load(x_ptr + r[:, None] * N + c[None, :], mask=mask, other=-float("inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 1)[:, None])
    y = (e / tl.sum(e, 1)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + c[None, :] * M + r[:, None], y, mask=mask)


@triton.jit
def many_functions(x_ptr, y_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """In turn: a sum of functions, its running sum, x sorted, integer functions, a histogram and an argmax."""
    i = tl.arange(0, BLOCK)
    mask = i < N
    x = tl.load(x_ptr + i, mask=mask, other=1.0)
    y = tl.load(y_ptr + i, mask=mask, other=1)
    f = tl.sqrt(tl.abs(x)) + tl.sin(x) + tl.cos(x) + tl.sigmoid(x) + tl.erf(x)
    f += tl.log2(tl.abs(x) + 1) + tl.exp2(x) + tl.rsqrt(tl.abs(x) + 1) + tl.floor(x) + tl.ceil(x)
    q = (y // 7) + (y % 5) + (y >> 2) + tl.umulhi(y.to(tl.uint32), 77777).to(tl.int32)
    tl.store(out_ptr + i, f, mask=mask)
    tl.store(out_ptr + N + i, tl.cumsum(f, 0), mask=mask)
    tl.store(out_ptr + 2 * N + i, tl.sort(x), mask=mask)
    tl.store(out_ptr + 3 * N + i, q.to(tl.float32), mask=mask)
    tl.store(out_ptr + 4 * N + tl.arange(0, 16), tl.histogram((y & 15).to(tl.int32), 16).to(tl.float32))
    tl.store(out_ptr + 4 * N + 16, tl.argmax(x, 0).to(tl.float32))


@triton.jit
def library(x_ptr, out_ptr, N, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < N, other=0.5)
    if OP == "lgamma":
        r = libdevice.lgamma(x)
    elif OP == "log1p":
        r = libdevice.log1p(x)
    elif OP == "expm1":
        r = libdevice.expm1(x)
    elif OP == "tanh":
        r = libdevice.tanh(x)
    elif OP == "erfinv":
        r = libdevice.erfinv(x)
    elif OP == "sin":
        r = libdevice.sin(x * 1000)
    elif OP == "pow":
        r = libdevice.pow(tl.abs(x), x)
    elif OP == "atan2":
        r = libdevice.atan2(x, x * x - 1)
    elif OP == "exp":
        r = tl.exp(x)
    elif OP == "log":
        r = tl.log(x)
    elif OP == "div":
        r = 1.7 / x
    tl.store(out_ptr + i, r, mask=i < N)


@triton.jit
def copy(x_ptr, out_ptr, first, N, BLOCK: tl.constexpr):
    """out[i] = x[first + i]"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + first + i, mask=i < N), mask=i < N)


@triton.jit
def checked(x_ptr, N):
    tl.device_assert(tl.load(x_ptr) < N, "value too large")
    tl.store(x_ptr, 7)


@triton.jit
def shifted_seed(out_ptr, seed, BLOCK: tl.constexpr):
    """Poison where the seed has 32 bits."""
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, ((seed >> 32) ^ i).to(tl.int32))
