"""The CUDA kernels as nvcc compiled them, launched by their own host code and executed in the emulator: numbers, bytes,
accesses. They are held to what test_kernels.py holds the Triton kernels to, on the same operands.

Fresh memory holds NaN here, so that an output's element that nobody writes shows.
"""

import copy
import functools
import itertools
from collections import Counter

import cases
import cuda_launches
import operator_calls
import pytest
import torch
from cases import ALIGNED, BF16, DTYPES, F16, F32, KERNELS, SEED, SHAPES, normal
from cuda_launches import address, emulated, recorded
from ptx_emulator import EmulatorError, MemoryFault, never_written

from vae_fast import reference
from vae_fast.ops import library

pytestmark = pytest.mark.skipif(cuda_launches.unavailable() is not None, reason=str(cuda_launches.unavailable()))
OPERATORS = torch.ops.vae_fast
never_written = functools.cache(never_written)


def check(case, **emulation):
    """The launches of a case whose results are right."""
    with emulated(racecheck=True, **emulation) as launches:
        case.check(OPERATORS)
    return launches


def shifted(t):
    """One element away from where vectors could be read."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_numbers(name, dtype):
    for shape in SHAPES:
        for launch in check(KERNELS[name](*shape, dtype)):
            assert never_written(launch.ptx, launch.kernel) == []


@pytest.mark.parametrize("shape", [(8200, 37), (8195, 16)], ids=str)
@pytest.mark.parametrize("name", ["bernoulli", "sample_kl", "sample_kl_backward"])
def test_numbers_where_a_block_has_many_rows(name, shape):
    """The last block not full."""
    check(KERNELS[name](*shape, BF16))


@pytest.mark.parametrize("shape", [(3, 784), (1, 12_288), (700, 40)], ids=str)
@pytest.mark.parametrize("z", [2, 5, 80, 1500])
@pytest.mark.parametrize("prior", [False, True])
def test_numbers_for_latents_of_any_width(prior, z, shape):
    check(cases.elbo_case(*shape, F32, prior=prior, z=z))


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "laplace", "continuous_bernoulli", "gaussian_kl"])
def test_numbers_with_the_worst_errors_of_approximate_instructions(name):
    """Each .approx instruction as wrong as its bound allows."""
    case = KERNELS[name](5, 784, F32)
    with emulated(approx_noise=7):
        got, exact = case.run(OPERATORS), case.exact()
    for g, e in zip(got, exact, strict=True):
        assert ((g - e).abs() <= 2e-6 * e.abs().clamp(min=1)).all()


@pytest.mark.parametrize("name", [name for name in operator_calls.OPERATORS if name != "scale_rows_"])
@pytest.mark.filterwarnings("ignore:vae_fast. the plain PyTorch reference runs on cpu. the kernels for GPUs")
def test_calls_drawn_at_random(name):
    """Of any layouts, dtypes, masks, weights, priors; with any of the gradients asked for."""
    for draw in range(100, 110):
        with emulated(racecheck=True):
            operator_calls.test_call(name, draw, None)


# Gradients that are sums

SHARED = {
    "each": lambda b, d: (b, d),
    "row": lambda b, d: (b, 1),
    "column": lambda b, d: (1, d),
    "number": lambda b, d: (1, 1),
}


def with_shared(first, second, b, d, z, dtype=F32):
    """An ELBO whose likelihood and prior each have a first and a second parameter of these shapes."""
    parameters, prior = ([normal(*SHARED[s](b, n), dtype) for s in (first, second)] for n in (d, z))
    latent = [normal(b, z, dtype), normal(b, z, dtype), *prior]
    return cases.elbo("gaussian", parameters, torch.rand(b, d), latent)


@pytest.mark.parametrize("second", SHARED)
@pytest.mark.parametrize("first", SHARED)
def test_parameters_and_priors_of_any_shape(first, second):
    """Beside columns that fill no block, and rows that are cut among blocks."""
    check(with_shared(first, second, 7, 37, 5))
    check(with_shared(first, second, 2, 1500, 80, BF16))


@pytest.mark.parametrize("shape", ["row", "column", "number"])
def test_sums_over_more_rows_than_blocks_take_at_once(shape):
    """Of 512 tiles of rows and more, several are one block's."""
    b = 1100
    for case in (with_shared("each", shape, b, 20, 8), cases.gaussian(b, 20, BF16, SHARED[shape])):
        launches = check(case)
        assert launches[0].grid[0] <= 512


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_sums_over_rows_stay_in_registers(dtype):
    """Of a log-variance for each column: rows of weight 0 add nothing, and partial sums are written once a group."""
    b, d, weight = 1100, 1032, torch.rand(1100)
    weight[::7] = 0
    mean, logvar = normal(b, d, dtype), normal(1, d, dtype)
    first, fold, _ = check(cases.nll("gaussian", [mean, logvar], torch.rand(b, d).to(dtype), weight))
    gradient, groups = b * d * dtype.itemsize, first.grid[0]
    assert groups * first.grid[1] <= 512
    assert gradient + 4 * groups * d < first.stats.bytes["st"] <= 1.02 * (gradient + 4 * groups * d)
    assert fold.stats.bytes["ld"] == 4 * groups * d


@pytest.mark.parametrize("prior", ["row", "number", "column", "full"])
@pytest.mark.parametrize("shape", [(7, 37), (5, 80), (3, 1500)], ids=str)
def test_priors_of_any_shape(prior, shape):
    for make in (cases.gaussian_kl, cases.sample_kl, cases.sample_kl_backward):
        check(make(*shape, F32, prior))


# Operands that are special


def mixed():
    """Operands whose dtypes differ, in a width that vectors suit."""
    b, d, z = 5, 96, 64
    x = torch.rand(b, d)
    half = [normal(b, z, BF16), normal(b, z, BF16)]
    wide = [normal(1, z), normal(1, z)]
    yield cases.nll("gaussian", [normal(b, d, BF16), normal(b, d)], x)
    yield cases.nll("gaussian", [normal(b, d), normal(b, 1, BF16)], x, torch.rand(b).bfloat16())
    yield cases.nll("gaussian", [normal(b, d, F16), normal(1, d)], x.to(BF16))
    yield cases.nll("bernoulli", [cases.logits(b, d, BF16)], x)
    yield cases.nll("bernoulli", [cases.logits(b, d, F32)], x.half(), torch.rand(b).double())
    yield cases.nll("bernoulli", [cases.logits(b, d, F16)], x.double())
    yield cases.elbo("bernoulli", [cases.logits(b, d, BF16)], x.double(), [normal(b, z), normal(b, z), None, None])
    yield cases.elbo("bernoulli", [cases.logits(b, d, BF16)], x, [normal(b, z, F16), normal(b, z), *wide])
    yield cases.elbo("bernoulli", [cases.logits(b, d, F32)], x, [*half, *wide], beta_factor=torch.tensor(0.7).half())
    for latent in ([*half, *wide], [normal(b, z), half[1], None, None], [half[0], normal(b, z, F16), *wide]):
        yield cases.kl_of(latent, torch.rand(b).half())
        yield cases.sample_of(latent)
        yield cases.sample_backward_of(normal(b, z), torch.rand(b).bfloat16(), latent)
        yield cases.sample_backward_of(normal(b, z, BF16), torch.rand(b).double(), latent)
    yield cases.log_ratio_of([normal(b, z), *half, normal(b, 1, F16), wide[1]])


@pytest.mark.parametrize("number", range(len(list(mixed()))))
def test_mixed_dtypes(number):
    check(next(itertools.islice(mixed(), number, None)))


@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.bool])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_and_bits_as_x(dtype, x_dtype):
    check(cases.bytes_or_bits(dtype, x_dtype))


@pytest.mark.parametrize("layout", ["sliced", "transposed", "spaced", "expanded"])
def test_layouts(layout):
    for case in cases.in_layout(layout):
        check(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_operand_that_vectors_do_not_suit(dtype):
    """Unaligned, with rows at odd distances, or by columns: it alone, or all."""
    operands = [normal(5, 96, dtype), normal(5, 96, dtype), torch.rand(5, 96).to(dtype)]
    change = [shifted, lambda t: torch.cat([t, t[:, :1]], 1)[:, :-1], lambda t: t.t().contiguous().t()]
    for alter, alone in itertools.product(change, (0, 1, 2, None)):
        mean, logvar, x = (alter(t) if alone in (k, None) else t for k, t in enumerate(operands))
        check(cases.nll("gaussian", [mean, logvar], x))
        check(cases.sample_of([mean, logvar, None, None]))
        check(cases.sample_backward_of(x, torch.rand(5), [mean, logvar, None, None]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mask", [None, "each", "row", "column", "number"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_what_is_masked_or_of_weight_zero_stays_out(dtype, mask, weighted):
    """NaN and inf there reach neither the values nor the gradients."""
    b, d = 6, 80
    parameters, x, latent = [normal(b, d, dtype), normal(b, d, dtype)], torch.rand(b, d), normal(4 * b, d, dtype)
    latent = list(latent.reshape(4, b, d).unbind())
    mask = None if mask is None else torch.rand(SHARED[mask](b, d)) > 0.5
    weight = torch.tensor([1.0, 0, 2, 1, 0, -0.5]) if weighted else None
    for t in (*parameters, x) if mask is not None else ():
        t[~mask.expand(b, d)] = torch.nan
    for t in (*parameters, x, *latent) if weighted else ():
        t[weight == 0] = torch.inf
    check(cases.nll("gaussian", parameters, x, weight, mask))
    check(cases.elbo("gaussian", parameters, x, latent, weight, mask))
    check(cases.elbo("gaussian", parameters, x, [*latent[:2], None, None], weight, mask, reduce=False))
    check(cases.kl_of(latent, weight))


def test_what_is_dropped_has_gradients_of_zero():
    case = cases.dropped()
    with emulated():
        got = case.check(OPERATORS)
    *_, weight, mask = case.arguments
    assert (got[1][~mask] == 0).all() and (got[2][weight == 0] == 0).all()


def test_a_row_that_is_masked_whole_needs_no_variance():
    with emulated():
        got = cases.rows_masked_whole().check(OPERATORS)
    assert (got[0][2:4] == 0).all()


def test_small_gradients_keep_their_digits():
    case, exact = cases.confident_logits()
    with emulated():
        _, gradient = case.run(OPERATORS)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", [1e-39, 0.0, -1e-39, 3e-38])
def test_gradients_at_the_smallest_weights(weight):
    with emulated():
        value, gradient = cases.smallest_weight(weight).run(OPERATORS)
    assert value.abs() < 1e-35 and gradient.abs().max() <= 4e-38


@pytest.mark.parametrize("beta, factor", [(0.0, None), (0.5, 0.0), (0.5, 3.0)])
def test_beta(beta, factor):
    """With 0, a KL that isn't finite counts for nothing."""
    latent = [normal(5, 8), normal(5, 8), None, None]
    if beta == 0 or factor == 0:
        latent[0][2, 3] = 1e30  # whose square is infinite
    factor = None if factor is None else torch.tensor(factor)
    case = cases.elbo("bernoulli", [normal(5, 40)], torch.rand(5, 40), latent, beta_factor=factor, beta=beta)
    with emulated(racecheck=True):
        (loss, nll, kl, *got), (exact, _, _, *gradients) = case.run(OPERATORS), case.exact()
    assert nll.isfinite().all() and kl.isfinite().tolist() == [True, True, bool(latent[0][2, 3] < 1e30), True, True]
    assert (loss - exact).abs() <= 1e-6 * (1 + exact.abs())
    assert all((g - e).abs().max() <= 1e-6 * e.abs().max().clamp(min=1) for g, e in zip(got, gradients, strict=True))


def test_float64_beside_float32_parameters():
    check(cases.float64_beside_float32())


def test_nan_and_infinity_stay_in_their_row():
    with emulated():
        value, gradient = cases.logits_not_finite().run(OPERATORS)
    assert value.isfinite().tolist() == [True, False, False, True]
    assert gradient[[0, 3]].isfinite().all() and gradient[1, 3].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_and_negative_zero_logits(dtype):
    check(cases.zero_logits(dtype))


# Bytes and accesses


IN_HALF = [name for name in ALIGNED if not name.startswith(("poisson", "negative", "zero"))]  # by vectors


@pytest.mark.parametrize(("name", "dtype"), [(name, F32) for name in ALIGNED] + [(name, BF16) for name in IN_HALF])
def test_bytes(name, dtype):
    """Each input is read once and each output written once, in whole sectors and by the widest accesses; what is small
    may be read by many."""
    case = KERNELS[name](*ALIGNED[name], dtype)
    with emulated() as launches:
        outputs = case.run(OPERATORS)
    first, *folds = launches
    assert len(folds) == (name == "gaussian, one a row" and dtype != F32)  # sums are rounded once they are complete
    assert_read_once(case, first)
    written = {t: first.stats.traffic[address(t)].stored for t in outputs if address(t) in first.stats.traffic}
    assert all(stored == t.numel() * t.element_size() for t, stored in written.items())
    assert first.stats.bytes["st"] <= 1.02 * sum(t.numel() * t.element_size() for t in outputs)
    assert first.stats.coalescing("st") >= 0.95 and first.stats.coalescing("ld") >= 0.95
    large = Counter()
    for kind, tensors in (("ld", case.large()), ("st", [t for t in outputs if t.numel() > 10_000])):
        for t in tensors:
            large[kind, t.element_size() * 16 // dtype.itemsize] += t.numel() * dtype.itemsize // 16
    assert all(first.stats.widths[access] >= count for access, count in large.items())


def assert_read_once(case, launch):
    assert case.large()
    for t in case.large():
        size = t.numel() * t.element_size()
        assert size <= launch.stats.traffic[address(t)].loaded <= 1.02 * size


@pytest.mark.parametrize("name", ["bernoulli, x as the logits", "gaussian", "gaussian_kl", "sample_kl_backward"])
def test_bytes_of_operands_that_are_not_aligned(name):
    """Element by element, each once, by neighbours."""
    case = KERNELS[name](64, 1536, BF16)
    case.arguments = [shifted(t) if isinstance(t, torch.Tensor) and t.dim() == 2 else t for t in case.arguments]
    launch, *_ = check(case)
    assert_read_once(case, launch)
    widths = launch.stats.widths
    assert {size for kind, size in widths if widths[kind, size] > 20_000} == {2}
    if not case.noise:  # whose threads take fours
        assert launch.stats.coalescing("ld") >= 2 / 3  # a warp's 64 bytes lie in three sectors


@pytest.mark.parametrize("width", [784, 3072])
def test_bytes_of_other_rows(width):
    case = cases.bernoulli(2048, width, BF16)
    with emulated() as launches:
        case.run(OPERATORS)
    (launch,) = launches
    assert_read_once(case, launch)
    assert launch.stats.coalescing("ld") >= 0.95


# The noise


def standard(operator, seed, rows, columns, **emulation):
    """eps as an operator makes it."""
    zeros, ones, seed = torch.zeros(rows, columns), torch.ones(rows, columns), torch.tensor(seed)
    with emulated(**emulation):
        if operator == "reparameterize":
            return OPERATORS.reparameterize(zeros, zeros, seed)
        if operator == "sample_kl":
            return OPERATORS.sample_kl(zeros, zeros, None, None, seed)[0]
        return 2 * OPERATORS.sample_kl_backward(ones, None, zeros, zeros, None, None, seed, 3)[1]


NOISY = ["reparameterize", "sample_kl", "sample_kl_backward"]


@pytest.mark.parametrize("seed", [0, -1, 2**40 + 7, -(2**62) + 3])
@pytest.mark.parametrize("operator", NOISY)
def test_normals_are_the_reference_s(operator, seed):
    """Rows that begin a four, rows that begin within one, rows cut among blocks."""
    for shape in ((5, 64), (7, 37), (9, 3), (3, 1501), (1, 12_288)):
        exact = reference.normals(shape, torch.tensor(seed), torch.float64)
        assert (standard(operator, seed, *shape) - exact).abs().max() <= 4e-6


@pytest.mark.parametrize("operator", NOISY)
def test_noise_is_the_element_s_whatever_the_shape(operator):
    flat = standard("reparameterize", 5, 1, 4096).flatten()
    for rows, columns in ((64, 64), (16, 256), (4096, 1), (2048, 2), (1, 4096), (37, 7), (4, 1001)):
        eps = standard(operator, 5, rows, columns).flatten()
        assert torch.equal(eps, flat[: rows * columns])
    strided = torch.zeros(37, 8)[:, 1:]
    with emulated():
        z = OPERATORS.reparameterize(strided, strided, torch.tensor(5))
    assert torch.equal(z.flatten(), flat[: 37 * 7])


def test_normals_with_the_worst_errors_of_approximate_instructions():
    """lg2.approx may be 2^-22 off next to 1, where the radius is its square root: one sample in a thousand."""
    exact = reference.normals((100, 1000), torch.tensor(99), torch.float64)
    error = (standard("reparameterize", 99, 100, 1000, approx_noise=3) - exact).abs()
    assert (error > 6e-6).double().mean() < 2e-3
    assert error.max() < 6e-4


# The host's side


@pytest.mark.parametrize(
    "case",
    [
        lambda: cases.gaussian(600, 33, F32, SHARED["column"]),
        lambda: cases.elbo_case(700, 20, BF16),
        lambda: cases.elbo_case(3, 12_288, F32, prior=True, z=7),
        lambda: cases.sample_kl(8200, 16, F32),
    ],
    ids=["gradient over rows", "mean", "cut rows", "sample"],
)
def test_results_have_the_same_bits_on_any_gpu(case):
    """Few blocks that take many tiles each, or many; one by one, or together."""
    case, results, grids = case(), [], set()
    for options in ({"multiprocessors": 1}, {"multiprocessors": 7, "batch_threads": 1}, {"batch_threads": 65_536}):
        with emulated(**options) as launches:
            results.append(case.run(OPERATORS))
        grids.add(tuple(launch.grid for launch in launches))
    assert len(grids) > 1
    assert all(torch.equal(a, b) for others in results[1:] for a, b in zip(results[0], others, strict=True))


def test_an_elbo_of_each_row_is_one_launch_and_a_mean_one_more():
    counts = {}
    for name in ("elbo of each row", "elbo", "bernoulli", "gaussian_kl", "sample_kl", "reparameterize"):
        case = KERNELS[name](8192, 784, BF16)
        with recorded() as launches:
            case.call(OPERATORS, *case.arguments)
        counts[name] = len(launches)
        assert all("vae_fast::fold(" in launch.name for launch in launches[1:])
    assert counts == dict.fromkeys(counts, 1) | {"elbo": 2}


@pytest.mark.parametrize("rows, width", [(0, 5), (4, 0), (0, 0)])
def test_empty_batches_and_rows(rows, width):
    x, code, given = torch.zeros(rows, width), torch.zeros(rows, 3), torch.zeros(1, 3)
    with emulated():
        for prior in ((None, None), (given, given)):
            loss, nll, kl, *gradients = OPERATORS.elbo_bernoulli(
                x, x, code, code, *prior, None, None, None, 1.0, 1.0, True, 31
            )
            assert loss == 0 and torch.equal(nll, torch.zeros(rows)) and torch.equal(kl, torch.zeros(rows))
            assert [g.shape for g in gradients[:3]] == [(rows, width), (rows, 3), (rows, 3)]
            if prior[0] is not None:
                assert all(torch.equal(g, given) for g in gradients[3:])
            z, kl = OPERATORS.sample_kl(x, x, None, None, SEED)
            assert z.shape == x.shape and torch.equal(kl, torch.zeros(rows))
        assert OPERATORS.reparameterize(x, x, SEED).shape == x.shape
        for shape in ((1, width), (rows, 1), (1, 1)):
            shared = torch.zeros(shape)
            gradient = OPERATORS.gaussian_nll(x, shared, x, None, None, 2)[2]
            assert torch.equal(gradient, shared)


def test_wrong_shapes_raise_before_anything_is_read():
    mu, seed, o = torch.zeros(4, 8), SEED, OPERATORS
    wrong = [
        lambda: o.reparameterize(mu, mu[:2], seed),
        lambda: o.sample_kl(mu, mu, torch.zeros(3, 8), torch.zeros(3, 8), seed),
        lambda: o.sample_kl(mu, mu, torch.zeros(1, 8), None, seed),
        lambda: o.sample_kl_backward(mu[:2], None, mu, mu, None, None, seed, 3),
        lambda: o.sample_kl_backward(None, torch.zeros(2), mu, mu, None, None, seed, 3),
        lambda: o.gaussian_kl(mu, mu, torch.zeros(1, 8), None, None, 0),
        lambda: o.bernoulli_nll(mu, mu, torch.zeros(3), None, 0),
        lambda: o.bernoulli_nll(mu, mu, None, torch.ones(4, 2, dtype=torch.bool), 0),
        lambda: o.scale_rows_(mu.t(), torch.tensor(2.0)),
        lambda: o.scale_rows_(mu, torch.ones(3)),
    ]
    for call in wrong:
        with recorded() as launches, pytest.raises(RuntimeError, match=r"must|go together"):
            call()
        assert launches == []


def test_float64_goes_to_the_reference():
    case = cases.elbo("gaussian", [normal(3, 8, torch.float64)] * 2, torch.rand(3, 8), [normal(3, 2)] * 2 + [None] * 2)
    library.announce.cache_clear()
    with recorded() as launches, pytest.warns(library.ReferenceWarning, match="don't compute in float64"):
        got = case.run(OPERATORS)
    assert launches == [] and got[0].dtype == torch.float64
    torch.testing.assert_close(got[0], case.exact()[0])


# The second stage, and backward


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", ["number", "zero", "each", "strided"])
@pytest.mark.parametrize("shape", [(7, 304), (7, 5), (7, 1), (300, 64)], ids=str)
def test_scaling(shape, factor, dtype):
    """A factor of 0 leaves no NaN."""
    b = shape[0]
    factor = {"number": torch.tensor(0.5), "zero": torch.zeros(()), "each": torch.randn(b)}.get(
        factor, torch.randn(2 * b)[::2]
    )
    gradient = normal(*shape, dtype)
    if factor.dim():
        factor[2], factor[3], gradient[3, 0] = 1, 0, torch.nan
    each = factor.double().reshape(-1, 1)
    exact = torch.where(each == 0, 0, gradient.double() * each).to(dtype)
    unaligned = shifted(gradient)
    with emulated(racecheck=True) as launches:
        OPERATORS.scale_rows_(gradient, factor)
        OPERATORS.scale_rows_(unaligned, factor)
    assert len(launches) == 2
    for got in (gradient, unaligned):
        assert (got - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("factor", [torch.tensor(1.0), torch.ones(()).expand(3)], ids=["one", "of a sum"])
def test_scaling_by_one_moves_nothing(factor):
    gradient = torch.randn(3, 5000)
    with emulated() as launches:
        OPERATORS.scale_rows_(gradient, factor)
    assert launches[0].stats.bytes["st"] == 0
    assert launches[0].stats.traffic[address(gradient)] == (0, 0)


# Faults, planted: the emulator must not pass them over


def run_changed(case, change):
    """Checks the case's results, its kernel changed on its way to the GPU."""

    def receive(launch, memory):
        if "fold" not in launch.name:
            before = copy.copy(launch)
            change(launch)
            changed.append(launch != before)
        cuda_launches.execute(launch, memory, racecheck=True)

    changed = []
    with cuda_launches.library().serving_cpu(receive, cc=90, multiprocessors=132):
        try:
            case.check(OPERATORS)
        finally:
            assert changed == [change is not unchanged], "nothing was planted"


def unchanged(launch):
    pass


def integers(size, before, change):
    """Changes the integers of that many bytes in the launch's arguments wherever they are `before`."""

    def plant(launch):
        words = [[raw[at : at + size] for at in range(0, len(raw), size)] for raw in launch.arguments]
        old, new = (n.to_bytes(size, "little") for n in (before, before + change))
        launch.arguments = [b"".join(new if word == old else word for word in raw) for raw in words]

    return plant


def without_barriers(launch):
    launch.ptx = launch.ptx.replace("bar.sync", "//")


def without_a_block(launch):
    """The last of those that a row is cut among."""
    launch.grid = (launch.grid[0], launch.grid[1] - 1, 1)


ROWS, COLUMNS, STRIDE = 3, 5021, 5023
FAULTS = {
    "a row too many": (integers(8, ROWS, 1), MemoryFault, "outside every global buffer"),
    "a column too many": (integers(4, COLUMNS, 1), MemoryFault, "outside every global buffer"),
    "a wrong stride": (integers(8, STRIDE, 1), MemoryFault, "outside every global buffer"),
    "a row too few": (integers(8, ROWS, -1), AssertionError, "error nan"),
    "a column too few": (integers(4, COLUMNS, -1), AssertionError, "error"),
    "a block too few": (without_a_block, AssertionError, "error nan"),
    "no barriers": (without_barriers, EmulatorError, "shared-memory race"),
}


def faulty():
    """Cases of one kernel each, whose rows are further apart than they are long, and are cut among blocks."""
    mean, logvar = (normal(ROWS, STRIDE)[:, :COLUMNS] for _ in range(2))
    return {"nll": cases.nll("gaussian", [mean, logvar], mean), "sample": cases.sample_of([mean, logvar, None, None])}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["nll", "sample"])
def test_a_planted_fault_is_caught(fault, name):
    change, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        run_changed(faulty()[name], change)


@pytest.mark.parametrize("name", ["nll", "sample"])
def test_the_launch_that_faults_are_planted_in_is_right(name):
    run_changed(faulty()[name], unchanged)
