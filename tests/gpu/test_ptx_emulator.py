"""The PTX emulator on Triton's kernels, against float64 and NumPy."""

import math
import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import emulator_kernels as kernels
import ptx_emulator
from ptx_emulator import EmulatorError, MemoryFault, compile_triton, run_triton

each_arch = pytest.mark.parametrize("cc", [80, 90, 100])
D = 784


def generator(seed):
    return torch.Generator().manual_seed(seed)


def bernoulli_data(rows=37):
    logits = (torch.randn(rows, D, generator=generator(1)) * 4).to(torch.bfloat16)
    return logits, torch.randint(0, 2, (rows, D), generator=generator(1), dtype=torch.uint8)


def check_bernoulli(logits, x, grad, nll, scale):
    logits, x = logits.double(), x.double()
    expected = (logits.clamp(min=0) - logits * x + torch.log1p(torch.exp(-logits.abs()))).sum(1)
    torch.testing.assert_close(nll.double(), expected, rtol=2e-6, atol=0)
    slope = (torch.sigmoid(logits) - x) * scale
    assert ((grad.double() - slope).abs() <= slope.abs() * 2.0**-8 + 1e-7).all()  # one rounding to bfloat16


@each_arch
@pytest.mark.parametrize("batch_threads", [8192, 640, 1])  # all CTAs at once, five and a rest of two, one by one
def test_bernoulli(cc, batch_threads):
    logits, x = bernoulli_data()
    grad, nll = torch.full_like(logits, math.nan), torch.full((37,), math.nan)
    args = [logits, x, grad, nll, D, 0.125]
    stats = run_triton(
        kernels.bernoulli, (37,), args, {"BLOCK": 1024}, cc=cc, emulation={"batch_threads": batch_threads}
    )
    check_bernoulli(logits, x, grad, nll, 0.125)
    assert stats.threads == 37 * 128
    assert stats.traffic == {
        "logits_ptr": (37 * D * 2, 0),
        "x_ptr": (37 * D, 0),
        "grad_ptr": (0, 37 * D * 2),
        "nll_ptr": (0, 37 * 4),
    }
    assert stats.bytes["ld"] == 37 * D * 3
    assert stats.bytes["st"] == 37 * D * 2 + 37 * 4
    assert stats.widths["ld", 16] == 37 * D // 8
    assert stats.coalescing("ld") > 0.97


MUTATIONS = {
    "a constant (ln 2)": ("0f3F317218", "0f3F800000"),
    "fma loses its addend": (r"fma\.rn\.f32 (\s*%r\d+, %r\d+, %r\d+), %r\d+;", r"mul.f32 \1;"),
    "ex2 -> lg2": (r"ex2\.approx\.f32", "lg2.approx.f32"),
    "shuffle distance": (r"shfl\.sync\.bfly\.b32(\s+\S+ \S+) 16,", r"shfl.sync.bfly.b32\1 8,"),
    "sub -> add": (r"sub\.f32", "add.f32"),
    "halves swapped": (r"cvt\.rn\.bf16x2\.f32 (\s*\S+) (\S+), (\S+);", r"cvt.rn.bf16x2.f32 \1 \3, \2;"),
    "loop step": (r"add\.s32 (\s*%r\d+, %r\d+), 1024;", r"add.s32 \1, 512;"),
    "barrier moved": (r"(?s)(bar\.sync\s+0;)(.*?)(ld\.shared[^;]*;)", r"\3\2\1"),
}


@pytest.mark.parametrize(("find", "replace"), MUTATIONS.values(), ids=MUTATIONS)
def test_one_changed_instruction_is_noticed(find, replace):
    logits, x = bernoulli_data()
    args = [logits, x, logits, torch.zeros(37), D, 0.125]
    compiled, _ = compile_triton(kernels.bernoulli, args, {"BLOCK": 1024}, cc=80)
    ptx = compiled.asm["ptx"]
    mutated = re.sub(find, replace, ptx, count=1)
    assert mutated != ptx

    def run(text):
        grad, nll = torch.zeros_like(logits), torch.zeros(37)
        args = [logits, x, grad, nll, D, 0.125, None, None]
        ptx_emulator.run(text, "bernoulli", (37,), 128, args, compiled.metadata.shared)
        check_bernoulli(logits, x, grad, nll, 0.125)

    run(ptx)
    with pytest.raises((AssertionError, EmulatorError)):
        run(mutated)


def philox_words(seed, n):
    c = [np.arange(n, dtype=np.uint64)] + [np.zeros(n, np.uint64) for _ in range(3)]
    k0, k1, mask = seed & 0xFFFFFFFF, seed >> 32, np.uint64(0xFFFFFFFF)
    high = np.uint64(32)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> high) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> high) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1).astype(np.uint32)


@pytest.mark.parametrize(("cc", "seed"), [(80, 0x123456789ABCDEF), (90, 12345), (100, 0x123456789ABCDEF)])
def test_philox(cc, seed):
    n = 1500
    normal, words = np.zeros((n, 4), np.float32), np.zeros((n, 4), np.int32)
    run_triton(kernels.philox, (3,), [normal, words, seed, n], {"BLOCK": 512}, cc=cc)
    expected = philox_words(seed, n)
    assert np.array_equal(words.view(np.uint32), expected)
    s = expected.view(np.int32).astype(np.int64)
    u = np.where(s < 0, -s - 1, s) * 4.6566127342e-10
    radius = np.sqrt(-2 * np.log(np.maximum(1e-7, u[:, 0::2])))
    angle = 2 * np.pi * u[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(n, 4)
    assert np.abs(normal - pairs).max() < 3e-6


@each_arch
@pytest.mark.parametrize("num_warps", [1, 4, 8])
def test_reductions_over_warps_and_atomics(cc, num_warps):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    total, top, histogram = np.zeros(1, np.float32), np.full(1, -np.inf, np.float32), np.zeros(16, np.int32)
    args = [x, total, top, histogram, 5000]
    stats = run_triton(kernels.atomic_sums, (5,), args, {"BLOCK": 1024}, num_warps=num_warps, cc=cc)
    assert abs(total[0] - x.astype(np.float64).sum()) < 1e-3
    assert top[0] == x.max()
    assert np.array_equal(histogram, np.bincount(np.minimum((np.abs(x) * 4).astype(int), 15), minlength=16))
    assert stats.traffic["x_ptr"] == (20000, 0)
    assert stats.traffic["sum_ptr"] == (5 * 4, 5 * 4)  # an atomic both loads and stores


@each_arch
def test_loops_whose_length_the_data_decides(cc):
    n = np.arange(1, 1025, dtype=np.int32)
    out, trips = np.zeros(1024, np.int32), np.array([0, 3, 17, 200], np.int32)
    run_triton(kernels.collatz, (4,), [n, out, trips], {"BLOCK": 256}, cc=cc)

    def steps(v):
        return 0 if v <= 1 else 1 + steps(3 * v + 1 if v & 1 else v // 2)

    assert out.tolist() == [steps(int(v)) for v in n]


def test_many_functions():
    n, rng = 500, np.random.default_rng(3)
    x = rng.standard_normal(n).astype(np.float32) * 2
    y = rng.integers(0, 10**6, n).astype(np.int32)
    out = np.zeros(4 * n + 17, np.float32)
    run_triton(kernels.many_functions, (1,), [x, y, out, n], {"BLOCK": 512}, cc=100)
    d, size = x.astype(np.float64), np.abs(x.astype(np.float64))
    f = np.sqrt(size) + np.sin(d) + np.cos(d) + 1 / (1 + np.exp(-d)) + [math.erf(v) for v in d]
    f += np.log2(size + 1) + np.exp2(d) + 1 / np.sqrt(size + 1) + np.floor(d) + np.ceil(d)
    np.testing.assert_allclose(out[:n], f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[n : 2 * n], np.cumsum(f), rtol=1e-5, atol=1e-3)
    assert np.array_equal(out[2 * n : 3 * n], np.sort(np.r_[x, np.ones(12, np.float32)])[:n])
    y64 = y.astype(np.int64)
    q = y64 // 7 + y64 % 5 + (y64 >> 2) + (y64 * 77777 >> 32)
    assert np.array_equal(out[3 * n : 4 * n], q.astype(np.float32))
    assert np.array_equal(out[4 * n : 4 * n + 16], np.bincount(np.r_[y & 15, [1] * 12], minlength=16))
    assert out[4 * n + 16] == x.argmax()


@each_arch
def test_softmax_through_shared_memory(cc):
    x = torch.randn(50, 60, generator=generator(0)).half()
    out = torch.zeros(60, 50, dtype=torch.half)
    run_triton(kernels.softmax_transposed, (4,), [x, out, 50, 60], {"BM": 16, "BN": 64}, cc=cc)
    assert (out.double() - torch.softmax(x.double(), 1).T).abs().max() < 3e-4


LIBRARY = ["lgamma", "log1p", "expm1", "tanh", "erfinv", "sin", "pow", "atan2", "exp", "log", "div"]


@pytest.mark.parametrize(("dtype", "cc"), [(torch.float32, 80), (torch.float64, 90)])
@pytest.mark.parametrize("op", LIBRARY)
def test_libdevice(dtype, cc, op):
    g = generator(4)
    x = torch.randn(600, generator=g, dtype=torch.float64) * 2
    if op in ("log1p", "log"):
        x = x.abs() * 10.0 ** torch.randint(-6, 6, (600,), generator=g) + 1e-9
    x = (torch.tanh(x) if op == "erfinv" else x).to(dtype)
    out, d = torch.zeros_like(x), x.double()
    run_triton(kernels.library, (2,), [x, out, 600], {"OP": op, "BLOCK": 512}, cc=cc)
    if op == "sin":
        expected = torch.sin((x * 1000).double())
    elif op == "div":
        expected = torch.tensor(1.7, dtype=dtype).double() / d
    else:
        two = {"pow": lambda: d.abs() ** d, "atan2": lambda: torch.atan2(d, d * d - 1)}
        expected = two[op]() if op in two else getattr(torch, op)(d)
    bound = 12 * torch.finfo(dtype).eps * expected.abs().clamp(min=1)
    assert ((out.double() - expected).abs() <= bound).all()


@each_arch
@pytest.mark.parametrize(("dtype", "out"), [("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_matrix_products(cc, dtype, out):
    m, n, k = 70, 100, 96
    g = generator(2)
    a, b = (torch.randn(*shape, generator=g).to(getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    c = torch.zeros(m, n, dtype=getattr(torch, out))
    stats = run_triton(kernels.matmul, (3, 2), [a, b, c, m, n, k], {"BM": 32, "BN": 64, "BK": 32}, cc=cc)
    assert any(op.startswith("mma.sync") for op in stats.opcodes)
    if dtype == "float32":  # tf32 cuts the mantissa
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    expected = a.double() @ b.double()
    tolerance = 2.0**-8 if out == "bfloat16" else 1e-5
    assert ((c.double() - expected).abs() <= tolerance * expected.abs() + 2e-5).all()


def test_device_assert():
    x = np.array([3], np.int32)
    run_triton(kernels.checked, (1,), [x, 5], debug=True)
    assert x[0] == 7
    with pytest.raises(EmulatorError, match="value too large"):
        run_triton(kernels.checked, (1,), [x, 5], debug=True)


def test_approx_noise_is_small_and_repeatable():
    logits, x = bernoulli_data(8)
    expected = torch.sigmoid(logits.double()) - x.double()

    def run(noise):
        grad, nll = torch.zeros(8, D), torch.zeros(8)
        args = [logits, x, grad, nll, D, 1.0]
        run_triton(kernels.bernoulli, (8,), args, {"BLOCK": 1024}, emulation={"approx_noise": noise})
        return grad, (grad.double() - expected).abs().max()

    (_, exact), (one, error), (two, _), (again, _) = run(None), run(1), run(2), run(1)
    assert exact < error < 2e-6
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_racecheck_accepts_triton_and_needs_its_barriers():
    racecheck = {"racecheck": True}
    x, out = torch.randn(50, 60, generator=generator(0)).half(), torch.zeros(60, 50, dtype=torch.half)
    run_triton(kernels.softmax_transposed, (4,), [x, out, 50, 60], {"BM": 16, "BN": 64}, emulation=racecheck)
    a, b, c = torch.randn(64, 96).half(), torch.randn(96, 64).half(), torch.zeros(64, 64)
    args = [a, b, c, 64, 64, 96]
    blocks = {"BM": 32, "BN": 64, "BK": 32}
    stats = run_triton(kernels.matmul, (2, 1), args, blocks, cc=80, emulation=racecheck)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=0, atol=1e-4)
    ptx, shared = stats.compiled.asm["ptx"], stats.compiled.metadata.shared
    pieces = re.split(r"bar\.sync\s+0;", ptx)
    noticed = 0
    for k in range(1, len(pieces)):
        without_one = "bar.sync 0;".join([*pieces[: k - 1], pieces[k - 1] + pieces[k], *pieces[k + 1 :]])
        try:
            ptx_emulator.run(without_one, "matmul", (2, 1), 128, [*args, None, None], shared, racecheck=True)
        except EmulatorError:
            noticed += 1
    assert noticed


@pytest.mark.parametrize(("seed", "clean"), [(1 << 40, True), (7, False)])
@pytest.mark.filterwarnings("ignore:Value 32 exceeds the maximum bitwidth")
def test_poison_leaves_a_register_that_nobody_writes(seed, clean):
    """A 32-bit seed shifted by 32 is poison in LLVM: the PTX reads a register that nothing writes, and still runs."""
    out = torch.zeros(32, dtype=torch.int32)
    compiled, _ = compile_triton(kernels.shifted_seed, [out, seed], {"BLOCK": 32}, num_warps=1)
    assert (ptx_emulator.never_written(compiled.asm["ptx"], "shifted_seed") == []) == clean


@pytest.mark.parametrize(("options", "fused"), [({}, True), ({"enable_fp_fusion": False}, False)])
def test_multiplications_fuse_with_additions_unless_told_not_to(options, fused):
    logits, x = bernoulli_data(1)
    args = {"logits_ptr": logits, "x_ptr": x, "grad_ptr": logits, "nll_ptr": torch.zeros(1), "D": D, "scale": 0.5}
    compiled, runtime = compile_triton(kernels.bernoulli, args, {"BLOCK": 1024}, **options)
    assert runtime == list(args.values())
    assert ("fma.rn.f32" in compiled.asm["ptx"]) == fused
    assert ptx_emulator.unsupported(compiled.asm["ptx"], "bernoulli") == []


@each_arch
def test_arguments_that_share_memory(cc):
    n = np.arange(1, 257, dtype=np.int32)
    trips, out, same = np.array([2], np.int32), np.zeros(256, np.int32), n.copy()
    run_triton(kernels.collatz, (1,), [n, out, trips], {"BLOCK": 256}, cc=cc)
    stats = run_triton(kernels.collatz, (1,), [same, same, trips], {"BLOCK": 256}, cc=cc)
    assert np.array_equal(same, out)
    assert stats.traffic["n_ptr"] == stats.traffic["steps_ptr"] == (1024, 1024)
    z = np.arange(1, 401, dtype=np.int32)
    run_triton(kernels.collatz, (1,), [z[:256], z[100:356], trips], {"BLOCK": 256}, cc=cc)  # overlapping views
    assert np.array_equal(z[100:356], out)
    assert np.array_equal(z[:100], np.arange(1, 101))


def views_off_alignment(logits):
    """Two views of one storage, 2 bytes off, the first a copy of the logits."""
    n = logits.numel()
    store = torch.zeros(2 + 2 * n, dtype=logits.dtype)
    one, two = store[1 : 1 + n].view_as(logits), store[1 + n : 1 + 2 * n].view_as(logits)
    one.copy_(logits)
    return store, one, two


@each_arch
def test_views_keep_their_misalignment(cc):
    logits, x = bernoulli_data(4)
    store, one, two = views_off_alignment(logits)
    nll = torch.zeros(4)
    stats = run_triton(kernels.bernoulli, (4,), [one, x, two, nll, D, 0.5], {"BLOCK": 1024}, cc=cc)
    check_bernoulli(logits, x, two, nll, 0.5)
    assert stats.widths["ld", 2] == 4 * D
    assert ("ld", 16) not in stats.widths
    assert store[0] == store[-1] == 0
    aligned, _ = compile_triton(kernels.bernoulli, [logits, x, logits, nll, D, 0.5], {"BLOCK": 1024}, cc=cc)
    args = [one, x, two, nll, D, 0.5, None, None]
    with pytest.raises(MemoryFault, match="misaligned"):
        ptx_emulator.run(aligned.asm["ptx"], "bernoulli", (4,), 128, args, aligned.metadata.shared)


@pytest.mark.parametrize("make", [torch.arange, np.arange], ids=["torch", "numpy"])
@pytest.mark.parametrize("first", [-1, 1, 4096, 100_000, -100_000])
def test_a_view_ends_at_its_elements(make, first):
    """An access that stays in the storage behind a view, or lands in another argument, is still a fault."""
    store, out = make(1000), make(64)
    view = store[300:364]
    run_triton(kernels.copy, (1,), [view, out, 0, 64], {"BLOCK": 64})
    assert out[5] == 305
    with pytest.raises(MemoryFault, match="8-byte load outside every global buffer"):
        run_triton(kernels.copy, (1,), [view, out, first, 64], {"BLOCK": 64})


def test_a_strided_view_spans_its_gaps():
    store = torch.arange(64)
    out = torch.zeros(63, dtype=torch.int64)
    stats = run_triton(kernels.copy, (1,), [store[::2], out, 0, 63], {"BLOCK": 64}, num_warps=1)
    assert torch.equal(out, store[:63])
    assert stats.traffic == {"x_ptr": (63 * 8, 0), "out_ptr": (0, 63 * 8)}
    with pytest.raises(MemoryFault):
        run_triton(kernels.copy, (1,), [store[::2], torch.zeros(64).long(), 0, 64], {"BLOCK": 64})
