"""The PTX emulator on what nvcc makes of CUDA C++, and on kernels with planted errors."""

import math
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from ptx_emulator import EmulatorError, MemoryFault, run

each_arch = pytest.mark.parametrize("cc", [80, 90])
KERNELS = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void fused(const float4* __restrict__ x, float* __restrict__ y, float* __restrict__ row_sum,
                                 int n4, float scale) {
  __shared__ float partial[32];
  float sum = 0.f;
  int base = blockIdx.x * n4;
  for (int i = threadIdx.x; i < n4; i += blockDim.x) {
    float4 v = x[base + i], r;
    r.x = __expf(-v.x) * scale;
    r.y = log1pf(v.y * v.y);
    r.z = lgammaf(v.z);
    r.w = sinf(v.w * 1e5f) + tanhf(v.w);
    reinterpret_cast<float4*>(y)[base + i] = r;
    sum += r.x + r.y + r.z + r.w;
  }
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    float t = threadIdx.x < (blockDim.x + 31) / 32 ? partial[threadIdx.x] : 0.f;
    for (int o = 16; o; o >>= 1) t += __shfl_xor_sync(0xffffffffu, t, o);
    if (threadIdx.x == 0) row_sum[blockIdx.x] = t;
  }
}

__constant__ float coefficients[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__device__ int table[4] = {10, 20, 30, 40};

__device__ __noinline__ double polynomial(double x, int k) {
  if (k == 3) return x;
  double r = coefficients[k & 7];
  for (int i = 0; i < k; i++) r = r * x + coefficients[i & 7];
  return r;
}

extern "C" __global__ void scalars(double* d, int* n, unsigned long long* u, __half* h, __nv_bfloat16* b, int size) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  d[i] = exp(d[i]) + log(fabs(d[i]) + 1) / sqrt(d[i] * d[i] + 1.0) + polynomial(d[i], n[i] & 15);
  int v = n[i];
  n[i] = v / 7 + v % (i + 1) + __popc(v) + __clz(v) + (__brev(v) >> 8) + table[i & 3];
  u[i] = u[i] / (i + 3) + __umul64hi(u[i], 0x123456789abcdefULL) + __ballot_sync(__activemask(), v & 1);
  h[i] = __hfma(h[i], h[i], __float2half(1.5f));
  b[i] = __hfma(b[i], b[i], __float2bfloat16(0.5f));
  atomicAdd(&u[size], (unsigned long long)(v & 255));
  atomicMax(&n[size], v);
  atomicCAS(&n[size + 1], 0, i + 1);
}

extern "C" __global__ void stack(float* y, const int* index) {
  extern __shared__ float s[];
  float local[16];
  for (int i = 0; i < 16; i++) local[i] = i * threadIdx.x;
  s[threadIdx.x] = local[index[threadIdx.x] & 15];
  __syncthreads();
  local[index[threadIdx.x] & 7] = s[blockDim.x - 1 - threadIdx.x];
  float v = local[index[threadIdx.x] & 15] + powf(fabsf(y[threadIdx.x]), 1.3f) + erff(y[threadIdx.x]);
  y[threadIdx.x] = v + __syncthreads_count(y[threadIdx.x] > 0);
}

extern "C" __global__ void planted(float* y, int error, int n) {
  __shared__ float s[64];
  int i = threadIdx.x;
  if (error == 0) y[i] = 1.f;                                          // beyond the end
  if (error == 1) ((float4*)(y + 1))[0] = make_float4(1, 2, 3, 4);     // misaligned
  if (error == 2) {                                                    // s[63] is never written
    if (i < 63) s[i] = i;
    __syncthreads();
    y[i] = s[63 - i];
  }
  if (error == 3) {                                                    // a barrier for half a warp
    if (i < 16) { __syncthreads(); y[0] = 2; } else y[1] = 3;
    __syncthreads();
  }
  if (error == 4) { volatile float* v = y; while (v[0] == 0); }        // endless
  if (error == 5) *(volatile float*)0 = 1;                             // null
  if (error == 6) s[i + n] = 1, y[0] = s[i + n];                       // beyond shared memory
}

extern "C" __global__ void jumps(int* y, int n) {
  int i = threadIdx.x, v = y[i];
  switch (v) {
    case 0: v = i * 3; break;
    case 1: v += 100; break;
    case 2: v = -i; break;
    case 3: v ^= 77; break;
    case 4: v = __shfl_sync(__activemask(), i, __ffs(__activemask()) - 1); break;
    case 5: v = i % 7; break;
    case 6: v = i / 5; break;
    case 11: v = __shfl_sync(__activemask(), i, 0); break;
    default: v = 9;
  }
  y[i] = v;
}

struct Operands {
  float* data[3];
  long long stride[3];
  int n;
};

extern "C" __global__ void __launch_bounds__(64)
    scattered(const __grid_constant__ Operands p, const __grid_constant__ Operands q, int second, int error) {
  const Operands& o = second ? q : p;
  for (int i = threadIdx.x; i < o.n; i += blockDim.x) o.data[i % 3][i / 3 * o.stride[i % 3]] = i;
  if (error == 1) *const_cast<volatile int*>(&o.n) = 0;
  if (error == 2) o.data[2][o.stride[2] * o.n] = 0;
}

extern "C" __global__ void reversed(float* y, int mode) {
  __shared__ float s[128];
  int i = threadIdx.x;
  volatile float* v = s;
  v[i] = i;
  if (mode != 0) __syncthreads();
  float a = v[mode == 3 ? i : 127 - i];
  if (mode == 4) { a = v[0]; if (i == 127) v[0] = 9; }  // every warp reads v[0], the last one writes it
  if (mode != 1) __syncthreads();
  v[i] = a + 1;
  __syncthreads();
  y[i] = v[i];
}
"""


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """The kernels' PTX for an architecture and nvcc's options."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc isn't installed")
    folder, texts = tmp_path_factory.mktemp("cuda"), {}
    (folder / "kernels.cu").write_text(KERNELS)

    def get(cc, *options):
        if (cc, options) not in texts:
            command = [nvcc, "-ptx", f"-arch=sm_{cc}", *options, "kernels.cu", "-o", "kernels.ptx"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            texts[cc, options] = (folder / "kernels.ptx").read_text()
        return texts[cc, options]

    return get


@each_arch
@pytest.mark.parametrize("options", [(), ("-use_fast_math",)], ids=["accurate", "fast"])
def test_fused_functions_and_row_sums(ptx, cc, options):
    rows, n4 = 9, 75
    x = (np.random.default_rng(5).standard_normal((rows, n4, 4)) * 3).astype(np.float32)
    x[0, :8, 2] = [0.5, 1, 2, 3, 10, 100, -2, 1e10]
    y, sums = np.zeros_like(x), np.zeros(rows, np.float32)
    stats = run(ptx(cc, *options), "fused", (rows,), 96, [x, y, sums, n4, 0.5])
    d = torch.from_numpy(x).double()
    angle = torch.from_numpy(x[..., 3] * np.float32(1e5)).double()
    terms = (torch.exp(-d[..., 0]) * 0.5, torch.log1p(d[..., 1] ** 2), torch.lgamma(d[..., 2]))
    expected = torch.stack([*terms, torch.sin(angle) + torch.tanh(d[..., 3])], -1)
    assert np.isinf(y[0, 6, 2])  # lgamma(-2)
    assert torch.isinf(expected[0, 6, 2])
    y[0, 6, 2] = expected[0, 6, 2] = 0
    bound = (2e-5 if options else 3e-6) * expected.abs().clamp(min=1)
    assert ((torch.from_numpy(y) - expected).abs() <= bound).all()
    np.testing.assert_allclose(sums[1:], expected.sum((1, 2))[1:], rtol=1e-5)
    assert stats.widths["ld", 16] == rows * n4
    assert stats.coalescing("ld") > 0.95
    assert stats.traffic == {0: (x.nbytes, 0), 1: (0, y.nbytes), 2: (0, sums.nbytes)}


def polynomial(x, k):
    if k == 3:
        return x
    r = float((k & 7) + 1)
    for j in range(k):
        r = r * x + ((j & 7) + 1)
    return r


def integer_functions(v, i):
    """What `scalars` makes of element i of its integers."""
    bits, quotient = v & 0xFFFFFFFF, [int(math.copysign(abs(v) // b, v)) for b in (7, i + 1)]
    remainder = v - quotient[1] * (i + 1)
    reverse = int(f"{bits:032b}"[::-1], 2) >> 8
    return quotient[0] + remainder + bits.bit_count() + 32 - bits.bit_length() + reverse + 10 * (i % 4 + 1)


@each_arch
def test_scalars_of_all_kinds(ptx, cc):
    rng, size = np.random.default_rng(6), 77
    d, n = rng.standard_normal(size), rng.integers(-(2**31), 2**31, size + 2).astype(np.int32)
    n[size:] = [-(2**31), 0]
    u = rng.integers(0, 2**63, size + 1, dtype=np.uint64) * np.uint64(2)
    u[size] = 0
    h = rng.standard_normal(size).astype(np.float16)
    b = torch.randn(size, generator=torch.Generator().manual_seed(0)).bfloat16()
    d0, v, u0, h0, b0 = d.copy(), [int(x) for x in n[:size]], [int(x) for x in u], h.astype(float), b.double()
    run(ptx(cc), "scalars", (3,), 32, [d, n, u, h, b, size])
    poly = [polynomial(x, k & 15) for x, k in zip(d0, v, strict=True)]
    np.testing.assert_allclose(d, np.exp(d0) + np.log(abs(d0) + 1) / np.sqrt(d0**2 + 1) + poly, rtol=1e-13)
    assert [int(x) & 0xFFFFFFFF for x in n[:size]] == [integer_functions(x, i) & 0xFFFFFFFF for i, x in enumerate(v)]
    ballots = [sum((x & 1) << j for j, x in enumerate(v[warp : warp + 32])) for warp in range(0, size, 32)]
    for i in range(size):
        assert u[i] == (u0[i] // (i + 3) + (u0[i] * 0x123456789ABCDEF >> 64) + ballots[i // 32]) % 2**64
    assert np.array_equal(h, (h0**2 + 1.5).astype(np.float16))
    assert torch.equal(b, (b0**2 + 0.5).to(torch.bfloat16))
    assert (u[size], n[size], n[size + 1]) == (sum(x & 255 for x in v), max(v), 1)


@each_arch
def test_local_and_dynamic_shared_memory(ptx, cc):
    rng, n = np.random.default_rng(7), 70
    y, index = rng.standard_normal(n).astype(np.float32), rng.integers(0, 100, n).astype(np.int32)
    y0, i = y.astype(np.float64), np.arange(n)
    run(ptx(cc), "stack", (1,), n, [y, index], dynamic_shared=4 * n)
    local = np.arange(16.0) * i[:, None]
    s = local[i, index & 15]
    local[i, index & 7] = s[::-1]
    expected = local[i, index & 15] + np.abs(y0) ** 1.3 + [math.erf(t) for t in y0] + (y0 > 0).sum()
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2e-6)


@each_arch
def test_a_switch_parts_the_warp(ptx, cc):
    before = np.random.default_rng(1).integers(0, 9, 64).astype(np.int32)
    y = before.copy()
    run(ptx(cc), "jumps", (1,), 64, [y, 64])
    for i, (case, result) in enumerate(zip(before, y, strict=True)):
        first = next((j for j in range(i // 32 * 32, 64) if before[j] == 4), None)
        assert result == [i * 3, 101, -i, 3 ^ 77, first, i % 7, i // 5, 9, 9][case]
    y[:] = [0] + [11] * 63  # lane 0 doesn't take part in the shuffle that reads it
    with pytest.raises(EmulatorError, match="lane that does not take part"):
        run(ptx(cc), "jumps", (1,), 64, [y, 64])


PLANTED = [
    (MemoryFault, "outside every global buffer"),
    (MemoryFault, "misaligned 16-byte store"),
    (MemoryFault, "uninitialised shared"),
    (EmulatorError, "divergent barrier|deadlock"),
    (EmulatorError, "step limit"),
    (MemoryFault, "outside every global"),
    (MemoryFault, "outside shared"),
]


@each_arch
@pytest.mark.parametrize("number", range(len(PLANTED)), ids=[text for _, text in PLANTED])
def test_planted_errors(ptx, cc, number):
    y = np.zeros(63 if number == 0 else 64, np.float32)
    error, text = PLANTED[number]
    with pytest.raises(error, match=text) as caught:
        run(ptx(cc), "planted", (1,), 64, [y, number, 10], max_steps=20000)
    assert "kernel planted" in str(caught.value)


def operands(arrays, n):
    """A struct Operands, and its arrays by the addresses that stand in it."""
    placed = {(1 << 60) + a.__array_interface__["data"][0]: a for a in arrays}
    return struct.pack("<6qi4x", *placed, 1, 2, 3, n), placed


@each_arch
def test_pointers_in_a_struct(ptx, cc):
    outputs = [np.zeros(35 * stride + 1, np.float32) for stride in (1, 2, 3)]
    p, placed = operands(outputs, 100)
    q, _ = operands(outputs, 101)
    stats = run(ptx(cc), "scattered", 1, 64, [p, q, 1, 0], placed=placed)
    for k, (y, stride) in enumerate(zip(outputs, (1, 2, 3), strict=True)):
        count = len(range(k, 101, 3))
        assert y[: count * stride : stride].tolist() == list(range(k, 101, 3))
        assert np.count_nonzero(y) == count - (k == 0)
    assert [traffic.stored for traffic in stats.traffic.values()] == [4 * 34, 4 * 34, 4 * 33]
    with pytest.raises(MemoryFault, match="store to a parameter"):
        run(ptx(cc), "scattered", 1, 64, [p, q, 0, 1], placed=placed)
    with pytest.raises(MemoryFault, match="outside every global"):
        run(ptx(cc), "scattered", 1, 64, [p, q, 0, 2], placed=placed)
    with pytest.raises(EmulatorError, match="takes at most 64 threads"):
        run(ptx(cc), "scattered", 1, 65, [p, q, 0, 0], placed=placed)


def test_an_array_both_placed_and_given(ptx):
    y, at = np.zeros(96, np.int32), 1 << 60
    run(ptx(80), "jumps", 1, 32, [y[32:64], 0], placed={at: y})
    run(ptx(80), "jumps", 1, 32, [(at + 4 * 64).to_bytes(8, "little"), 0], placed={at: y})
    assert y.tolist() == [0] * 32 + [*range(0, 96, 3)] * 2
    with pytest.raises(EmulatorError, match="two addresses for the same memory"):
        run(ptx(80), "jumps", 1, 32, [y, 0], placed={at: y, at + 4: y[:7]})


@pytest.mark.parametrize("mode", range(5))
def test_racecheck(ptx, mode):
    y = np.zeros(128, np.float32)

    def go():
        run(ptx(80), "reversed", (2,), 128, [y, mode], racecheck=True)

    if mode in (2, 3):
        go()
        assert np.array_equal(y, (np.arange(128) if mode == 3 else np.arange(128)[::-1]) + 1)
    else:
        with pytest.raises(EmulatorError, match="after a write" if mode == 0 else "after a read"):
            go()
