"""The Triton kernels as compiled for GPUs, executed in the emulator: numbers, bytes, accesses."""

import cases
import pytest
import torch
from cases import ALIGNED, DTYPES, KERNELS, SHAPES
from launches import OPERATORS, emulated, recorded
from ptx_emulator import MemoryFault, never_written

from vae_fast.kernels import elbo, latent
from vae_fast.kernels.fold import add_partials
from vae_fast.kernels.scale import scale_rows_
from vae_fast.kernels.tiling import latent_tiling_of, tiling_of

ARCHITECTURES = [80, 90, 100]
EVERYWHERE = ("bernoulli", "gaussian", "elbo", "sample", "reparameterize", "monte_carlo", "negative_binomial, each")
EXECUTED = [(name, cc) for name in KERNELS for cc in ARCHITECTURES if cc == 90 or name.startswith(EVERYWHERE)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "cc"), EXECUTED)
def test_numbers(name, dtype, cc, poisoned):
    for shape in SHAPES[: 2 if cc == 80 else 1] if cc != 90 else SHAPES[2:]:
        case = KERNELS[name](*shape, dtype)
        with emulated(cc, racecheck=True) as launches:
            case.check(OPERATORS)
        for launch in launches:
            compiled = launch.stats.compiled
            undefined = never_written(compiled.asm["ptx"], compiled.metadata.name)
            assert not [where for where in undefined if "mov.b64" not in where]  # a lane of a pair may stay unused


def test_numbers_where_a_tile_has_many_rows(poisoned):
    """16 rows a tile, the last tile not full, a masked tail; and groups of tiles for gradients that rows share."""
    for shape in ((8200, 37), (8195, 20)):
        for name in ("bernoulli", "gaussian, one a feature", "elbo, given prior", "sample_kl_backward, given prior"):
            case = KERNELS[name](*shape, torch.bfloat16)
            with emulated(90):
                case.check(OPERATORS)


@pytest.mark.parametrize("shape", [(3, 784), (1, 12_288), (700, 40)], ids=str)
@pytest.mark.parametrize("z", [2, 5, 80, 1500])
@pytest.mark.parametrize("prior", [False, True])
def test_numbers_for_latents_of_any_width(prior, z, shape, poisoned):
    """With tails and cuts of their own, beside images whose rows are cut, whole or many a tile."""
    case = cases.elbo_case(*shape, torch.float32, prior=prior, z=z)
    with emulated(80):
        case.check(OPERATORS)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "laplace", "continuous_bernoulli", "gaussian_kl"])
def test_numbers_with_the_worst_errors_of_approximate_instructions(name):
    """Each .approx instruction as wrong as its bound allows."""
    case = KERNELS[name](5, 784, torch.float32)
    with emulated(90, approx_noise=7):
        got, exact = case.run(OPERATORS), case.exact()
    for g, e in zip(got, exact, strict=True):
        assert ((g - e).abs() <= 2e-6 * e.abs().clamp(min=1)).all()


@pytest.mark.parametrize("cc", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALIGNED)
def test_bytes(name, dtype, cc):
    """Each input is read once and each output written once, in whole sectors; what is small may be read by many."""
    case = KERNELS[name](*ALIGNED[name], dtype)
    with emulated(cc) as launches:
        outputs = case.run(OPERATORS)
    (launch,) = launches
    assert_read_once(case, launch)
    assert launch.stats.bytes["st"] == sum(t.numel() * t.element_size() for t in outputs)
    assert launch.stats.coalescing("st") >= 0.95
    assert launch.stats.coalescing("ld") >= 0.95


def assert_read_once(case, launch):
    tensors = {k: a for k, a in enumerate(launch.runtime) if isinstance(a, torch.Tensor)}
    read = {a.data_ptr(): launch.stats.traffic[k].loaded for k, a in tensors.items()}
    assert case.large()
    for t in case.large():
        size = t.numel() * t.element_size()
        assert size <= read[t.data_ptr()] <= 1.02 * size


def test_bytes_of_rows_with_a_tail():
    """784 pixels: the tail's tile is as wide as the tail."""
    case = cases.bernoulli(8192, 784, torch.bfloat16)
    with emulated(90) as launches:
        case.run(OPERATORS)
    assert_read_once(case, launches[0])


@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.bool])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_and_bits_as_x(dtype, x_dtype):
    with emulated(80):
        cases.bytes_or_bits(dtype, x_dtype).check(OPERATORS)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "spaced", "expanded"])
def test_layouts(layout):
    with emulated(90):
        for case in cases.in_layout(layout):
            case.check(OPERATORS)


def test_what_is_masked_or_of_weight_zero_stays_out():
    """NaN and inf there reach neither the values nor the gradients."""
    case = cases.dropped()
    with emulated(90):
        got = case.check(OPERATORS)
    *_, weight, mask = case.arguments
    assert (got[1][~mask] == 0).all() and (got[2][weight == 0] == 0).all()


@pytest.mark.parametrize("prior", ["row", "number", "column", "full"])
@pytest.mark.parametrize("shape", [(7, 37), (5, 80), (3, 1500)], ids=str)
def test_priors_of_any_shape(prior, shape, poisoned):
    """Beside columns that fill no tile, too."""
    for make in (cases.gaussian_kl, cases.sample_kl, cases.sample_kl_backward):
        with emulated(90):
            make(*shape, torch.float32, prior).check(OPERATORS)


def test_a_row_that_is_masked_whole_needs_no_variance():
    with emulated(90):
        got = cases.rows_masked_whole().check(OPERATORS)
    assert (got[0][2:4] == 0).all()


def test_small_gradients_keep_their_digits():
    case, exact = cases.confident_logits()
    with emulated(90):
        _, gradient = case.run(OPERATORS)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", [1e-39, 0.0, -1e-39, 3e-38])
def test_gradients_at_the_smallest_weights(weight):
    with emulated(90):
        value, gradient = cases.smallest_weight(weight).run(OPERATORS)
    assert value.abs() < 1e-35 and gradient.abs().max() <= 4e-38


def test_float64_beside_float32_parameters():
    with emulated(90):
        cases.float64_beside_float32().check(OPERATORS)


def test_wrong_shapes_raise_before_anything_is_read():
    mu, seed = torch.zeros(4, 8), cases.SEED
    wrong = [
        lambda: latent.reparameterize(mu, mu[:2], seed),
        lambda: latent.sample_kl(mu, mu, torch.zeros(3, 8), torch.zeros(3, 8), seed),
        lambda: latent.sample_kl(mu, mu, torch.zeros(1, 8), None, seed),
        lambda: latent.sample_kl_backward(mu[:2], None, mu, mu, None, None, seed, 3),
        lambda: latent.sample_kl_backward(None, torch.zeros(2), mu, mu, None, None, seed, 3),
        lambda: elbo.gaussian_kl(mu, mu, torch.zeros(1, 8), None, None, 0),
        lambda: elbo.nll("bernoulli", mu, mu, torch.zeros(3), None, 0),
        lambda: elbo.nll("bernoulli", mu, mu, None, torch.ones(4, 2, dtype=torch.bool), 0),
        lambda: scale_rows_([mu.t()], torch.tensor(2.0)),
        lambda: scale_rows_([mu], torch.ones(3)),
    ]
    for call in wrong:
        with recorded() as launches, pytest.raises(RuntimeError, match="must"):
            call()
        assert launches == []


def test_nan_and_infinity_stay_in_their_row():
    with emulated(90):
        value, gradient = cases.logits_not_finite().run(OPERATORS)
    assert value.isfinite().tolist() == [True, False, False, True]
    assert gradient[[0, 3]].isfinite().all() and gradient[1, 3].isnan()


def test_zero_and_negative_zero_logits():
    for dtype in DTYPES:
        with emulated(90):
            cases.zero_logits(dtype).check(OPERATORS)


def test_sums_of_several_programs_have_the_same_bits_whatever_runs_first():
    case = cases.gaussian(700, 33, torch.float32, lambda b, d: (1, d))
    results = []
    for threads in (1, 16_384):  # programs one by one, and many at a time
        with emulated(90, batch_threads=threads):
            results.append(case.run(OPERATORS))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Faults, planted: the emulator must not pass them over


def planted(case, change):
    """The case's first launch, its arguments changed by name."""
    with recorded() as launches:
        case.call(OPERATORS, *case.arguments)
    launch = launches[0]
    names = [p.name for p in launch.kernel.params]
    arguments = dict(zip(names, launch.arguments, strict=True))
    arguments.update(change(arguments))
    launch.arguments = tuple(arguments[name] for name in names)
    return launch


def longer_rows(arguments):
    """Every operand's rows one element further apart."""
    pointers, strides, *rest = arguments["operands"]
    return {"operands": (pointers, tuple((row + 1, column) for row, column in strides), *rest)}


FAULTS = {
    "a row too many": lambda arguments: {"rows": arguments["rows"] + 1},
    "a column too many": lambda arguments: {"width": arguments["width"] + 1},
    "a wrong stride": longer_rows,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    launch = planted(cases.bernoulli(3, 1021, torch.float32), FAULTS[fault])
    launch.grid = (launch.grid[0] + (fault == "a row too many"), 1)
    with pytest.raises(MemoryFault):
        launch.execute(90)


def test_the_launch_that_faults_are_planted_in_is_right():
    planted(cases.bernoulli(3, 1021, torch.float32), lambda arguments: {}).execute(90)


# Targets that nothing here executes


@pytest.mark.parametrize("target", [120, "gfx942", "gfx1100"])
@pytest.mark.parametrize(
    "name", ["bernoulli", "gaussian", "discretized_logistic", "elbo, given prior", "sample_kl", "sample_kl_backward"]
)
def test_compiles(name, target):
    case = KERNELS[name](64, 96, torch.bfloat16)
    with recorded() as launches:
        case.call(OPERATORS, *case.arguments)
    for launch in launches:
        assert launch.compile(target)[0].asm["cubin" if isinstance(target, int) else "hsaco"]


# The second stages


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [torch.tensor(0.5), torch.tensor(0.0), torch.randn(7), torch.randn(14)[::2]])
def test_scaling(factor, dtype):
    """Gradients of different widths in one launch; a factor of 0 leaves no NaN."""
    gradients = [torch.randn(7, 300).to(dtype), torch.randn(7, 5).to(dtype), torch.randn(7, 1)]
    if factor.dim():
        factor[3] = 0
        gradients[0][3, 2] = torch.nan
    each = factor.double().reshape(-1, 1)
    exact = [torch.where(each == 0, 0, g.double() * each) for g in gradients]
    with emulated(90) as launches:
        scale_rows_(gradients, factor)
    assert len(launches) == 1
    for g, e in zip(gradients, exact, strict=True):
        assert torch.equal(g, e.to(g.dtype)) or (g - e).abs().max() <= e.abs().max() * torch.finfo(g.dtype).eps


@pytest.mark.parametrize("factor", [torch.tensor(1.0), torch.ones(()).expand(3)], ids=["one", "of a sum"])
def test_scaling_by_one_moves_nothing(factor):
    gradient = torch.randn(3, 5000)
    with emulated(90) as launches:
        scale_rows_([gradient], factor)
    assert launches[0].stats.bytes["st"] == 0
    assert launches[0].stats.traffic[0].loaded == 0
    scale_rows_([], torch.tensor(1.0).expand(0))


@pytest.mark.parametrize("shape", [(1, 1), (3000, 1), (7, 130), (0, 4), (5, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_partial_sums(dtype, shape):
    partial, out = torch.randn(shape), torch.full(shape[1:], torch.nan, dtype=dtype)
    with emulated(90, racecheck=True):
        add_partials(partial, out)
    exact = partial.double().sum(0)
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    assert ((out.double() - exact).abs() <= 2e-7 * partial.abs().sum(0) + rounding * exact.abs()).all()


# The host's side


def test_empty_batches_launch_nothing_but_what_writes_zeros():
    for rows, width in ((0, 5), (4, 0)):
        x = torch.zeros(rows, width)
        with emulated(90):
            latents = (torch.zeros(rows, 3), torch.zeros(rows, 3), None, None)
            outputs = elbo.elbo("bernoulli", x, x, *latents, None, None, None, 1.0, 1.0, True, 7)
            loss, nll, kl, *gradients = outputs
            assert loss == 0 and nll.shape == kl.shape == (rows,) and (nll == 0).all() and (kl == 0).all()
            assert [g.shape for g in gradients[:3]] == [(rows, width), (rows, 3), (rows, 3)]
            z, kl = latent.sample_kl(x, x, None, None, cases.SEED)
            assert z.shape == x.shape and torch.equal(kl, torch.zeros(rows))
            shared = torch.zeros(1, width)
            gradient = elbo.nll("gaussian", x, shared, x, None, None, 2)[2]
            assert gradient.shape == shared.shape and (gradient == 0).all()


@pytest.mark.parametrize("vector", [4, 8])
@pytest.mark.parametrize("rows", [1, 64, 1024, 4096, 8192, 131_072])
@pytest.mark.parametrize("width", [784, 3072, 12_288])
def test_padding_wastes_little(width, rows, vector):
    columns = tiling_of(rows, width, 64, vector, shared=False).columns
    computed = columns.whole(width) * columns.tile + columns.tail
    assert width <= computed <= 1.1 * width


def test_long_rows_fill_the_gpu_and_short_rows_share_a_program():
    assert tiling_of(1, 200_000, 0, 8, shared=False).splits > 150
    assert tiling_of(64, 200_000, 0, 8, shared=False).splits * 64 >= 400
    grouped = tiling_of(16_400, 20, 0, 8, shared=True)
    assert grouped.groups * grouped.tiles * grouped.rows < 16_400 + grouped.groups * grouped.rows
    for width in (2, 4, 8, 16, 32, 64):
        tiling = latent_tiling_of(1 << 20, width)
        assert tiling.rows == 1024 // width and tiling.groups * tiling.tiles * tiling.rows == 1 << 20


def test_an_elbo_of_each_row_is_one_launch_and_a_mean_one_more_of_one_program():
    for reduce, grids in ((False, [(512, 1)]), (True, [(512, 1), (1,)])):
        case = cases.elbo_case(8192, 784, torch.bfloat16, reduce=reduce)
        with recorded() as launches:
            case.call(OPERATORS, *case.arguments)
        assert [launch.grid for launch in launches] == grids
