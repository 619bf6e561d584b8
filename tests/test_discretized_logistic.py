"""discretized_logistic_nll against the float64 reference, and that against mpmath: values, gradients, mean, draws."""

from decimal import Decimal
from functools import partial

import mpmath
import pytest
import torch
from operands import FLOATING, LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, levels, wide

import vae_fast
from vae_fast import ELBOLoss, reference

RELATIVE = 2e-6  # of gradients: products of five factors, one of them e^-n, as well known as n


def expected(mean, log_scale, x, incoming=None, **options):
    """(nll, gradients of mean and log_scale) in float64; x counts levels or lies in [-1, 1]."""
    mean, log_scale = wide(mean), wide(log_scale)
    if not x.is_floating_point():
        options = {"x_low": 0.0, "x_high": options.get("levels", 256.0) - 1, **options}
    nll = reference.discretized_logistic(mean, log_scale, x.double(), **options).sum(1)
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    return nll.detach(), torch.autograd.grad(nll, (mean, log_scale), incoming)


def parameters(shape, dtype=torch.float32):
    """Means within the levels and beyond; scales from a tenth of a bin to all of them."""
    return leaf(torch.randn(shape).to(dtype)), leaf((2 * torch.randn(shape) - 3.5).clamp(-8, 2).to(dtype))


def exact(level, mean, log_scale, count=256):
    """(-log P, its derivatives with respect to mean and log-scale) by mpmath."""
    m, s, steps = mpmath.mpf(mean), mpmath.mpf(log_scale), count - 1
    difference = mpmath.mpf(2 * level - steps) / steps - m
    if difference > 0:  # where sigmoids are near 1
        value, by_mean, by_log_scale = exact(steps - level, -m, s, count)
        return value, -by_mean, by_log_scale
    a, b = ((difference + edge) * mpmath.exp(-s) for edge in (-mpmath.mpf(1) / steps, mpmath.mpf(1) / steps))

    def sigmoid(v):
        return 1 / (1 + mpmath.exp(-v))

    at_a, at_b = (sigmoid(a), sigmoid(a) * sigmoid(-a)), (sigmoid(b), sigmoid(b) * sigmoid(-b))
    if level == 0:
        p, by_a, by_b = at_b[0], 0, at_b[1]
    elif level == steps:
        p, by_a, by_b = sigmoid(-a), -at_a[1], 0
    else:
        p, by_a, by_b = at_b[0] - at_a[0], -at_a[1], at_b[1]
    return -mpmath.log(p), mpmath.exp(-s) * (by_a + by_b) / p, (a * by_a + b * by_b) / p


@pytest.fixture(scope="module")
def grid():
    """(level, mean, log_scale) in float32, and what is exact there: near and far from each level, at all scales."""
    places = []
    for log_scale in (-10.0, -8.5, -7.0, -5.0, -4.1875, -4.125, -3.0, -1.0, 0.0, 2.0, 5.0, 20.0):
        for level in (0, 1, 100, 127, 128, 254, 255):
            centre = torch.tensor(2 * level / 255 - 1)
            shifts = torch.tensor([0.0, 1e-6, -1e-4, 0.5 / 255, 1 / 255, -1.01 / 255, 0.03, -0.3, 1.5])
            places += [(level, float(centre + shift), log_scale) for shift in shifts]
    with mpmath.workdps(300):
        true = [[float(v) for v in exact(*place)] for place in places]
    return torch.tensor(places, dtype=torch.float64), torch.tensor(true, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_are_mpmath_s(grid, dtype):
    """Of the reference and of the kernels; float64 is truth for all other tests."""
    places, true = grid
    level, mean, log_scale = places.to(dtype).unsqueeze(1).unbind(2)
    functions = [vae_fast.discretized_logistic_nll]
    if dtype == torch.float64:
        functions.append(
            lambda m, s, x: reference.discretized_logistic(m, s, x.double(), x_low=0.0, x_high=255.0).sum(1)
        )
    for function in functions:
        mean, log_scale = leaf(mean), leaf(log_scale)
        nll = function(mean, log_scale, level.to(torch.int64))
        nll.sum().backward()
        value, least = true[:, 0], 1e-30 if dtype == torch.float32 else 1e-300
        half = (
            torch.exp(-places[:, 2]) / 255
        )  # of a bin: n, an edge's distance, is known to 2^-24 of it, as is the mean
        size = value * (1 - value.clamp(least, 1).log()) + half / 16 + least  # and e^-n, where small, as well as n
        assert_values(nll, value, size, 1e-6 if dtype == torch.float32 else 1e-13)
        for parameter, gradient in ((mean, true[:, 1:2]), (log_scale, true[:, 2:])):
            n = (255 * half[:, None] / gradient.abs().clamp(min=least)).log().clamp(1, 100)
            size = gradient.abs() * n + (1 + gradient.abs()) * half[:, None] / 16
            error = (parameter.grad.double() - gradient).abs() / size.clamp(min=1)
            assert error.max() <= (1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("mean", [-1.3, -0.37, 0.0, 0.003, 0.9])
@pytest.mark.parametrize("log_scale", [-10.0, -7.0, -5.0, -4.0, -2.0, 0.0, 2.0, 5.0])
def test_probabilities_add_up_to_one(log_scale, mean):
    x = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    nll = vae_fast.discretized_logistic_nll(torch.full((256, 1), mean), log_scale, x)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(shape, layout, poisoned):
    mean, log_scale = (leaf(LAYOUTS[layout](t.detach())) for t in parameters(shape))
    x = LAYOUTS[layout](levels(shape))
    incoming = torch.randn(shape[0])
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, x)
    nll.backward(incoming)
    value, gradients = expected(mean, log_scale, x, incoming)
    assert_values(nll, value)
    assert_gradients([mean.grad, log_scale.grad], gradients, relative=RELATIVE)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("x_dtype", [*FLOATING, torch.uint8, torch.int32, torch.int64, torch.uint16], ids=str)
def test_dtypes(dtype, x_dtype, poisoned):
    mean, log_scale = parameters((5, 1025), dtype)
    x = levels((5, 1025), x_dtype)
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, x)
    nll.sum().backward()
    value, gradients = expected(mean, log_scale, x)
    assert_values(nll, value)
    assert_gradients([mean.grad, log_scale.grad], gradients, relative=RELATIVE)


@pytest.mark.parametrize("shape", [(), (1,), (37,), (5, 1)], ids=str)
def test_shared_scales(shape):
    mean, x = leaf(torch.randn(5, 37)), levels((5, 37), torch.uint8)
    log_scale = leaf(torch.randn(shape) - 2)
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, x)
    nll.sum().backward()
    value, gradients = expected(mean, log_scale, x)
    assert_values(nll, value)
    assert_gradients([mean.grad], gradients[:1], relative=RELATIVE)
    assert_gradients([log_scale.grad], gradients[1:], 185 / max(1, log_scale.numel()), RELATIVE)


@pytest.mark.parametrize("count", [2, 3, 16, 256, 65536])
@pytest.mark.parametrize("x_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)], ids=str)
def test_ranges_and_numbers_of_levels(count, x_range):
    """The same levels as numbers and on any range."""
    mean, log_scale = parameters((5, 37))
    level = torch.randint(count, (5, 37))
    low, high = x_range
    x = (low + level.double() * ((high - low) / (count - 1))).float()
    value, gradients = expected(mean, log_scale, level, levels=float(count))
    for given in (level, x):
        mean.grad = log_scale.grad = None
        nll = vae_fast.discretized_logistic_nll(mean, log_scale, given, levels=count, x_range=x_range)
        nll.sum().backward()
        assert_values(nll, value)
        assert_gradients([mean.grad, log_scale.grad], gradients, relative=RELATIVE)


def test_x_is_taken_to_the_nearest_level():
    mean, log_scale = torch.zeros(1, 4), torch.zeros(1, 4)
    near = torch.tensor([[-1.2, 0.4 / 255, 0.996, 7.0]])
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, near)
    exactly = vae_fast.discretized_logistic_nll(mean, log_scale, torch.tensor([[0, 128, 254, 255]]))
    assert torch.equal(nll, exactly) or nll.item() == pytest.approx(exactly.item(), rel=1e-6)


@pytest.mark.parametrize("log_scale", [-1e4, -100.0, -69.5, -40.0, 60.0, 90.0, 1e4])
def test_finite_at_any_scale(log_scale):
    mean = leaf(torch.tensor([[0.3, -1.0, 1.0, 5.0, -1e3, 0.0]]))
    scale, x = leaf(torch.full((1, 6), log_scale)), torch.tensor([[100, 0, 255, 3, 255, 128]])
    nll = vae_fast.discretized_logistic_nll(mean, scale, x)
    nll.sum().backward()
    assert nll.isfinite().all() and mean.grad.isfinite().all() and scale.grad.isfinite().all()


def test_what_does_not_count_is_not_used():
    mean, log_scale = (t.detach() for t in parameters((6, 40)))
    x = levels((6, 40))
    mask, weight = torch.rand(6, 40) > 0.5, torch.tensor([1.0, 0, 2, 1, 0, 1])
    kept = mask & (weight[:, None] != 0)
    terms = reference.discretized_logistic(mean.double(), log_scale.double(), x.double())
    value = torch.where(kept, terms, 0).sum(1) * weight
    for t in (mean, log_scale, x):
        t[~mask], t[weight == 0] = torch.nan, torch.inf
    mean, log_scale = leaf(mean), leaf(log_scale)
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, x, weight=weight, mask=mask)
    nll.sum().backward()
    assert_values(nll, value, value + 1e-30)
    assert (mean.grad[~kept] == 0).all() and (log_scale.grad[~kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_stays_in_its_row(dtype):
    mean, log_scale = torch.randn(4, 37, dtype=dtype), torch.zeros(4, 37, dtype=dtype)
    mean[1, 5], log_scale[2, 3] = torch.nan, torch.nan
    mean, log_scale = leaf(mean), leaf(log_scale)
    nll = vae_fast.discretized_logistic_nll(mean, log_scale, levels((4, 37)))
    nll.sum().backward()
    assert nll.isfinite().tolist() == [True, False, False, True]
    for gradient, place in ((mean.grad, (1, 5)), (log_scale.grad, (2, 3))):
        assert gradient[place].isnan() and gradient[[0, 3]].isfinite().all()


def test_the_loss_reads_bytes_and_ranges():
    mean, log_scale = parameters((5, 37))
    level = torch.randint(256, (5, 37), dtype=torch.uint8)
    mu = torch.zeros(5, 2)
    value = expected(mean, log_scale, level)[0].mean()
    loss, unit = ELBOLoss("discretized_logistic"), ELBOLoss("discretized_logistic", x_range=(0, 1), validate_args=True)
    for got in (loss((mean, log_scale), level, mu, mu), unit((mean, log_scale), level / 255, mu, mu)):
        assert_values(got, value)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        unit((mean, log_scale), level.float(), mu, mu)
    with pytest.raises(TypeError, match="recon must be a tuple"):
        loss(mean, level, mu, mu)


def test_errors():
    mean, x = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8)
    for options, message in (
        ({"levels": 1}, "levels must be an integer, at least 2, got 1"),
        ({"levels": 2.5}, "levels must be an integer, at least 2, got 2.5"),
        ({"compat": "vdvae"}, r"compat must be one of pixelcnn\+\+, nvae, got 'vdvae'"),
    ):
        with pytest.raises(ValueError, match=message):
            vae_fast.discretized_logistic_nll(mean, mean, x, **options)
    with pytest.raises(ValueError, match=r"x_range must be \(low, high\), finite numbers, low below high"):
        vae_fast.discretized_logistic_nll(mean, mean, x.float(), x_range=(1.0, 1.0))


def test_options_that_were_chosen_before_are_nobody_s():
    """Those that equal others are checked themselves; and what a loss holds is its own, which nothing else reads."""
    mean, x = torch.zeros(2, 3), torch.zeros(2, 3)
    call = partial(vae_fast.discretized_logistic_nll, mean, mean, x)
    before = call(x_range=(0, 7), levels=8)
    assert torch.equal(before, call(x_range=[0.0, 7.0], levels=8.0))
    for x_range in ((Decimal(0), Decimal(7)), (0j, 7 + 0j)):
        with pytest.raises(ValueError, match="x_range must be"):
            call(x_range=x_range, levels=8)
    loss = ELBOLoss("discretized_logistic", x_range=(0, 7), levels=8)
    loss.options["levels"] = 2.0
    assert torch.equal(before, call(x_range=(0, 7), levels=8))
    assert ELBOLoss("discretized_logistic", x_range=(0, 7), levels=8).options["levels"] == 8


# What trained models were trained with


def theirs(mean, log_scale, x, lowest, top, least):
    """-log p as in the published code: https://github.com/openai/pixel-cnn (nn.py), https://github.com/NVlabs/NVAE
    (distributions.py); x in [-1, 1]."""
    s = log_scale.clamp(min=lowest)
    plus, minus, middle = ((x - mean + shift) * torch.exp(-s) for shift in (1 / 255, -1 / 255, 0))
    softplus = torch.nn.functional.softplus
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - s - 2 * softplus(middle) - torch.log(torch.tensor(127.5, dtype=x.dtype))
    safe = torch.where(delta > 1e-5, torch.log(delta.clamp(min=least)), density)
    return -torch.where(x < -0.999, plus - softplus(plus), torch.where(x > top, -softplus(minus), safe))


@pytest.mark.parametrize("compat, form", [("pixelcnn++", (-7.0, 0.999, 1e-12)), ("nvae", (-8.0, 0.99, 1e-10))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compatible_with(compat, form, dtype):
    mean, log_scale = (leaf(t.detach().to(dtype)) for t in parameters((50, 37)))
    level = torch.randint(240, 256, (50, 37), dtype=torch.uint8)
    x = 2 * level.to(dtype) / 255 - 1
    published = theirs(mean, log_scale, x, *form).sum(1)
    gradients = torch.autograd.grad(published.sum(), (mean, log_scale))
    unit = {"x_range": (0.0, 1.0)}
    for given, options in ((x, {}), (level, {}), (level.to(dtype) / 255, unit)):
        mean.grad = log_scale.grad = None
        nll = vae_fast.discretized_logistic_nll(mean, log_scale, given, compat=compat, **options)
        nll.sum().backward()
        close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-7}
        assert torch.allclose(nll, published, **close)
        if dtype == torch.float64:
            assert torch.allclose(mean.grad, gradients[0], **close)
            assert torch.allclose(log_scale.grad, gradients[1], **close)


def test_compatible_losses():
    mean, log_scale = parameters((5, 37))
    x, mu = levels((5, 37)), torch.zeros(5, 2)
    for compat in ("pixelcnn++", "nvae"):
        loss = ELBOLoss("discretized_logistic", compat=compat, reduction="none")((mean, log_scale), x, mu, mu)
        assert torch.equal(loss, vae_fast.discretized_logistic_nll(mean, log_scale, x, compat=compat))


def test_what_the_fallback_costs():
    """At log-scale -7 the density stands in for a bin that is 8.6 scales wide."""
    mean, log_scale = torch.full((1, 1), -5 / 255), torch.full((1, 1), -7.0)
    x = torch.full((1, 1), 128)
    true, approximate = (
        vae_fast.discretized_logistic_nll(mean, log_scale, x, compat=compat).item() for compat in (None, "pixelcnn++")
    )
    assert approximate - true > 2.1


def test_nvae_counts_more_than_everything():
    x = torch.arange(256).unsqueeze(1)
    nll = vae_fast.discretized_logistic_nll(torch.full((256, 1), 0.99), -3.0, x, compat="nvae")
    assert torch.exp(-nll).sum() > 1.1


# Mean and draws


@pytest.mark.parametrize("x_low, x_high", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_the_mean_and_draws(x_low, x_high):
    options = {"x_low": x_low, "x_high": x_high}
    mean, log_scale = torch.tensor([0.2, -0.95, 1.4, 0.1]), torch.tensor([-4.0, -1.0, 0.5, -7.0])
    levels_of_x = x_low + torch.arange(256, dtype=torch.float64) * ((x_high - x_low) / 255)
    wide_mean, wide_scale = (t.double().expand(256, 4) for t in (mean, log_scale))
    p = torch.exp(-reference.discretized_logistic(wide_mean, wide_scale, levels_of_x[:, None], **options))
    true = (p * levels_of_x[:, None]).sum(0)
    got = reference.discretized_logistic_mean(mean, log_scale, **options)
    assert (got - true).abs().max() <= 2e-5 * (x_high - x_low)
    generator = torch.Generator().manual_seed(3)
    x = reference.discretized_logistic_sample(
        mean.expand(50_000, 4), log_scale.expand(50_000, 4), generator=generator, **options
    )
    level = (x - x_low) * 255 / (x_high - x_low)
    assert (level - level.round()).abs().max() < 1e-3 and level.min() >= 0 and level.max() <= 255
    assert (x.mean(0) - true).abs().max() <= 0.01 * (x_high - x_low)
    counts = torch.bincount(level[:, 1].round().long(), minlength=256) / 50_000
    assert (counts - p[:, 1]).abs().max() < 0.01
